"""Processes start together, fail together and stop together, or say why not."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from accelerate import PartialState

from serve_cli.errors import InputError, MnistError
from tests.command import Mnist
from tests.trainer.runs import (
    ENVIRONMENT,
    LONG,
    MNIST_TRAIN,
    QUICK,
    checkpoint_steps,
    epochs,
    finish,
    report,
    started,
    torchrun,
)
from trainer import distributed
from trainer.distributed import (
    WORLD_SIZES,
    join_processes,
    local_main_process_first,
    lost_process,
    on_all_processes,
    on_main_process,
    require_same,
)

LAUNCHER_VARIABLES = (*WORLD_SIZES, "MASTER_ADDR", "MASTER_PORT", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """No launcher and no cluster in the environment; this process trains alone."""
    for name in (*LAUNCHER_VARIABLES, *(name for name in os.environ if name.startswith("ACCELERATE_"))):
        monkeypatch.delenv(name, raising=False)
    PartialState(cpu=True)


# How they start.


@pytest.mark.parametrize("name", WORLD_SIZES)
def test_training_alone_is_refused_where_the_environment_names_several_processes(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "4")
    with pytest.raises(InputError, match=f"{name} is 4.*--num-processes N"):
        join_processes()
    monkeypatch.setenv(name, "1")
    assert join_processes().num_processes == 1


def test_the_single_process_that_accelerate_starts_silently_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What `accelerate launch --cpu --num_processes 2` leaves in the environment."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("WORLD_SIZE", "1")  # torchrun with one process says so
    assert join_processes().num_processes == 1
    monkeypatch.delenv("WORLD_SIZE")
    with pytest.raises(InputError, match="accelerate was asked for several processes and started one"):
        join_processes()


def test_more_processes_than_accelerators_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed.torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(distributed.torch.accelerator, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(InputError, match=r"4 processes were started on this machine.*has 1 accelerator"):
        join_processes()


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        (
            {"ACCELERATE_USE_FSDP": "true", "ACCELERATE_MIXED_PRECISION": "no"},
            "without FSDP, with --multi_gpu",
        ),
        ({"ACCELERATE_USE_DEEPSPEED": "1"}, "without DeepSpeed"),
        ({"ACCELERATE_USE_CPU": "maybe"}, "leave it out"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "without Megatron-LM"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, "--accumulate"),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "leave it out"),
        ({"ACCELERATE_SOMETHING_NEW": "2"}, "which this program does not support"),
        ({"ACCELERATE_A": "true", "ACCELERATE_USE_FSDP": "true"}, "without FSDP"),  # the cause comes first
    ],
)
def test_a_setting_of_accelerate_that_would_be_ignored_is_refused(
    mnist: Mnist, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], advice: str
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    mnist("train", *QUICK, "--output", tmp_path / "run").assert_refused(" is ", advice, "ACCELERATE_")
    assert not (tmp_path / "run").exists()


def test_a_setting_of_accelerate_that_changes_nothing_is_accepted(
    mnist: Mnist, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    neutral = {"GRADIENT_ACCUMULATION_STEPS": "1", "DYNAMO_BACKEND": "NO", "USE_FSDP": "false", "NEW": ""}
    for name, value in neutral.items():
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert mnist("train", *QUICK, "--output", tmp_path / "run").code == 0


# How they act together.


def test_an_error_in_one_process_is_raised_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise InputError("no such folder")

    for together in (on_main_process, on_all_processes, local_main_process_first):
        assert together(lambda: 7) == 7
        with pytest.raises(InputError, match="no such folder"):
            together(refuse)
    monkeypatch.setattr(distributed, "gather_object", lambda _: [None, InputError("no data here")])
    with pytest.raises(InputError, match="no data here"):
        on_all_processes(lambda: 7)
    monkeypatch.setattr(distributed, "broadcast_object_list", lambda _: [(None, InputError("not there"))])
    with pytest.raises(InputError, match="not there"):
        on_main_process(lambda: 7)


def test_a_full_disk_names_the_file_and_a_bug_keeps_its_traceback() -> None:
    def full_disk() -> None:
        raise OSError(28, "No space left on device", "run/report.json")

    def bug() -> None:
        raise ZeroDivisionError("a bug")

    with pytest.raises(MnistError, match=r"cannot write run/report\.json: No space left"):
        on_main_process(full_disk)
    for together in (on_main_process, on_all_processes):
        with pytest.raises(ZeroDivisionError, match="a bug"):
            together(bug)


def test_processes_with_other_data_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would compute gradients of its own data, and no line would say so."""
    require_same("abc", "their data")
    monkeypatch.setattr(distributed, "gather_object", lambda value: [*value, "abc", "other"])
    with pytest.raises(InputError, match="processes 2 differ from process 0 in their data"):
        require_same("abc", "their data")


def test_an_error_of_the_network_is_said_to_be_a_lost_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no other error is; alone there is nobody to lose."""
    network, other = RuntimeError("gloo: Connection closed by peer\nmore"), RuntimeError("shape mismatch")
    assert lost_process(network) is None
    monkeypatch.setitem(PartialState._shared_state, "num_processes", 2)
    assert lost_process(other) is None
    found = lost_process(network)
    assert found is not None
    assert not found.on_main_process_only
    assert re.search(r"process 0 lost another process .*Connection closed by peer\).*--resume", str(found))


@pytest.mark.parametrize("processes", [1, 2])
def test_curves_for_tensorboard(tmp_path: Path, processes: int) -> None:
    """The loss of a step is that of all processes together."""
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = tmp_path / "run"
    flags = (*QUICK, "--tracker", "tensorboard", "--output", run, "--overwrite")
    for _ in range(2):  # an --overwrite knows the files of the tracker
        result = finish([*MNIST_TRAIN, *flags, "--num-processes", processes])
        assert result.returncode == 0, result.stderr
    curves = event_accumulator.EventAccumulator(str(run / "tensorboard"))
    curves.Reload()
    train_losses = [epoch["train_loss"] for epoch in epochs(run)]
    assert [event.step for event in curves.Scalars("train/loss")] == [10, 20]
    assert [event.value for event in curves.Scalars("train/loss")] == pytest.approx(train_losses)
    steps = curves.Scalars("train/step_loss")
    assert [event.step for event in steps] == list(range(1, 21))
    assert sum(event.value for event in steps[:10]) / 10 == pytest.approx(train_losses[0], rel=1e-5)


def test_two_processes_train_as_one_and_refuse_together(mnist: Mnist, tmp_path: Path) -> None:
    """On a machine without a GPU too, where a plain launch would train twice alone; one process prints."""
    flags = (*QUICK, "--batch-size", "70")  # odd shares, and a ragged last batch
    command = (*MNIST_TRAIN, *flags, "--num-processes", "2", "--output", tmp_path / "two")
    two = finish(command)
    assert two.returncode == 0, two.stderr
    (start,) = two.stderr.splitlines()
    assert "2 processes on cpu" in start
    assert two.stdout.count("Epoch 1/2") == 1
    assert mnist("train", *flags, "--output", tmp_path / "one").code == 0
    one, other = report(tmp_path / "one"), report(tmp_path / "two")
    assert (one["train"]["processes"], other["train"]["processes"]) == (1, 2)
    assert one["test"]["samples"] == other["test"]["samples"] == 1000
    assert other["test"]["loss"] == pytest.approx(one["test"]["loss"], rel=1e-4)
    losses = [[epoch["train_loss"] for epoch in epochs(tmp_path / name)] for name in ("one", "two")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)

    again = finish(command)
    assert again.returncode == 2  # the exit code of the processes, and their line alone
    assert re.fullmatch(r"mnist train: .*two contains a finished run: .*\n", again.stderr)
    by_torchrun = finish(torchrun(2, *flags, "--output", tmp_path / "two"))
    assert by_torchrun.stderr.count("contains a finished run") == 1
    assert "Connection closed" not in by_torchrun.stderr
    assert "exitcode  : 2" in by_torchrun.stderr


def test_the_number_of_processes_of_a_launcher_is_not_changed(
    mnist: Mnist, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    flags = ("train", *QUICK, "--output", tmp_path / "run", "--num-processes")
    mnist(*flags, "3").assert_refused("--num-processes is 3", "a launcher has started 2")


BROKEN = """
import sys
from trainer import main, train

def fail(*arguments):
    raise ZeroDivisionError("a bug in the report")

train.make_report = fail
main.main()
"""


def test_an_exception_of_the_first_process_ends_the_others_with_a_line_that_names_it(tmp_path: Path) -> None:
    """They would wait for it until the launcher kills them."""
    script = tmp_path / "broken.py"
    script.write_text(BROKEN)
    command = torchrun(2, *QUICK, "--output", tmp_path / "run")
    command[command.index("-m", 3) : command.index("trainer.main") + 1] = [str(script)]
    result = finish(command, timeout_s=100, PYTHONPATH=str(Path(__file__).parents[2]))
    assert result.returncode != 0
    assert "ZeroDivisionError: a bug in the report" in result.stderr
    assert "process 0 failed (ZeroDivisionError: a bug in the report)" in result.stderr


# How they stop.


def ranks(output: Path) -> list[int]:
    """The processes that train into `output` in their order, launchers not among them."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_text().split("\0")
                if str(output) in line and "trainer.main" in line[:4]:
                    environment = (entry / "environ").read_text().split("\0")
                    rank = next(word for word in environment if word.startswith("RANK="))
                    found.append((rank, int(entry.name)))
    return [pid for _, pid in sorted(found)]


def wait_until(condition: Callable[[], object], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_stops(mnist: Mnist, tmp_path: Path, number: signal.Signals, code: int) -> None:
    output = tmp_path / "run"
    with started([*MNIST_TRAIN, *LONG, "--output", output]) as child:
        for flag in ("--resume", "--overwrite"):
            mnist("train", *LONG, "--output", output, flag).assert_refused(f"process {child.pid} trains into")
        child.send_signal(number)
        assert child.wait(timeout=30) == code
        assert child.stderr is not None
        line = child.stderr.read().splitlines()[-1]
    step = checkpoint_steps(output)[-1]
    assert f"stopped by {number.name} after step {step}" in line
    assert re.search(rf"the last checkpoint is .*step-0*{step}-.*, --resume goes on there", line)
    mnist("train", *LONG, "--output", output).assert_refused("an unfinished run")


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_signal_reaches_the_processes_that_mnist_starts(tmp_path: Path, processes: str) -> None:
    output = tmp_path / "run"
    with started([*MNIST_TRAIN, *LONG, "--num-processes", processes, "--output", output]) as child:
        child.send_signal(signal.SIGTERM)
        assert child.wait(timeout=60) == 143
        assert child.stderr is not None
        assert "stopped by SIGTERM after step" in child.stderr.read()
    assert ranks(output) == []


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("killed", ["process 0", "process 1", "launcher"])
def test_no_process_outlives_its_group(tmp_path: Path, killed: str) -> None:
    output = tmp_path / "run"
    with started([*MNIST_TRAIN, *LONG, "--num-processes", "2", "--output", output]) as launcher:
        wait_until(lambda: checkpoint_steps(output), 30)  # it is written while training goes on
        pids = ranks(output)
        assert len(pids) == 2
        victim = launcher.pid if killed == "launcher" else pids[int(killed[-1])]
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: not ranks(output), 30)
        code = launcher.wait(timeout=30)
        assert launcher.stderr is not None
        if killed != "launcher":
            assert code == 1
            assert f"mnist train: {killed} of 2 was ended by SIGKILL" in launcher.stderr.read()
    assert checkpoint_steps(output)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_the_second_one_acts_at_once(number: signal.Signals) -> None:
    program = (
        "from trainer.distributed import StopSignal\n"
        "import time\n"
        "with StopSignal():\n"
        "    print('ready', flush=True)\n"
        "    while True: time.sleep(0.01)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=ENVIRONMENT
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        child.send_signal(number)
        time.sleep(0.3)
        assert child.poll() is None  # asked once: it finishes its step
        child.send_signal(number)
        assert child.wait(timeout=10) in (-number, 1)
