"""Processes start together, fail together, or are told why not."""

import pytest

from serve_cli.errors import InputError, MnistError
from trainer import processes
from trainer.processes import (
    PROMISES,
    in_all,
    in_first,
    one_a_machine_first,
    require_same,
    start_processes,
)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No launcher and no cluster in the environment."""
    for name in (*PROMISES, "MASTER_ADDR", "MASTER_PORT", "RANK", "LOCAL_RANK", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)


def test_alone_is_fine() -> None:
    assert start_processes().num_processes == 1


@pytest.mark.parametrize("name", PROMISES)
def test_a_promise_of_more_processes_is_not_broken_silently(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "4")
    with pytest.raises(InputError, match=f"{name} is 4.*--num-processes N"):
        start_processes()
    monkeypatch.setenv(name, "1")
    assert start_processes().num_processes == 1


def test_accelerates_silent_single_process_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `accelerate launch --cpu --num_processes 2` leaves in the environment."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("WORLD_SIZE", "1")  # torchrun with one process says so
    assert start_processes().num_processes == 1
    monkeypatch.delenv("WORLD_SIZE")
    with pytest.raises(InputError, match="accelerate was asked for several processes and started one"):
        start_processes()


def test_more_processes_than_accelerators_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes.torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(processes.torch.accelerator, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(InputError, match=r"4 processes were started on this machine.*has 1 accelerator"):
        start_processes()


def test_what_another_process_refuses_is_raised_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "gather_object", lambda _: [None, InputError("no data here")])
    with pytest.raises(InputError, match="no data here"):
        in_all(lambda: 7)
    monkeypatch.setattr(processes, "broadcast_object_list", lambda _: [(None, InputError("no folder there"))])
    with pytest.raises(InputError, match="no folder there"):
        in_first(lambda: 7)


def test_processes_with_other_data_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would compute gradients of its own data, and no line would tell."""
    require_same("abc", "their data")
    monkeypatch.setattr(processes, "gather_object", lambda value: [*value, "abc", "other"])
    with pytest.raises(InputError, match="processes 2 differ from process 0 in their data"):
        require_same("abc", "their data")


def test_errors_reach_every_process() -> None:
    assert in_first(lambda: 7) == 7
    assert one_a_machine_first(lambda: 7) == 7

    def refuse() -> None:
        raise InputError("no such folder")

    for together in (in_first, in_all, one_a_machine_first):
        with pytest.raises(InputError, match="no such folder"):
            together(refuse)

    def full_disk() -> None:
        raise OSError(28, "No space left on device", "run/report.json")

    with pytest.raises(MnistError, match=r"cannot write run/report\.json: No space left"):
        in_first(full_disk)
