"""A checkpoint is whole or it is none: every bit, every length, every name."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from serve_cli.errors import MnistError
from trainer import checkpoint
from trainer.checkpoint import KEEP, Checkpoint, CorruptCheckpoint, find, latest, load, save, set_aside


def example(step: int) -> Checkpoint:
    return Checkpoint(
        step=step,
        tensors={"net.fc1.weight": np.arange(6, dtype=np.float32).reshape(2, 3) + step, "losses": np.ones(2)},
        state={"loss": 0.1 + 0.2, "epochs": [{"step": step}]},
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the checkpoints of steps 1 and 2."""
    for step in (1, 2):
        save(tmp_path, example(step))
    return tmp_path


def steps(folder: Path) -> list[int]:
    return sorted(map(checkpoint.step_of, find(folder)))


def latest_step(folder: Path) -> int | None:
    _, found, _ = latest(folder)
    return found.step if found else None


def test_what_is_saved_comes_back_bit_for_bit(tmp_path: Path) -> None:
    path = save(tmp_path, example(938))
    assert path.name.startswith("step-00000938-")
    found, saved = load(path), example(938)
    assert found.step == 938
    assert {name: found.state[name] for name in saved.state} == saved.state
    assert found.tensors.keys() == saved.tensors.keys()
    for name, array in saved.tensors.items():
        assert (found.tensors[name].dtype, found.tensors[name].tobytes()) == (array.dtype, array.tobytes())
    assert list(tmp_path.iterdir()) == [path]


def test_the_name_has_the_sha256_that_sha256sum_prints(folder: Path) -> None:
    for path in find(folder):
        printed = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout
        assert path.stem.split("-")[2] == printed[:16]


def test_no_file_holds_code(folder: Path) -> None:
    assert [path.suffix for path in folder.iterdir()] == [".safetensors"] * 2
    assert not any(b"pickle" in path.read_bytes() for path in folder.iterdir())


def test_every_flipped_bit_is_noticed(folder: Path) -> None:
    path = find(folder)[0]
    data = path.read_bytes()
    for position in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[position] ^= 1 << bit
            path.write_bytes(changed)
            with pytest.raises(CorruptCheckpoint, match=f"{path.name} is damaged"):
                load(path)


def test_every_truncation_is_noticed(folder: Path) -> None:
    path = find(folder)[0]
    data = path.read_bytes()
    for changed in (*(data[:length] for length in range(len(data))), data + b" "):
        path.write_bytes(changed)
        with pytest.raises(CorruptCheckpoint):
            load(path)


def test_a_renamed_checkpoint_is_noticed(folder: Path) -> None:
    path = find(folder)[0]
    path = path.rename(path.with_name(path.name.replace("step-00000002", "step-00000009")))
    with pytest.raises(CorruptCheckpoint):
        load(path)


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"\0" * 8, (10**9).to_bytes(8, "little"), (4).to_bytes(8, "little") + b"null"]
)
def test_a_file_of_another_kind_is_noticed_though_its_hash_is_right(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / f"step-00000001-{checkpoint._digest(data)}.safetensors"
    path.write_bytes(data)
    with pytest.raises(CorruptCheckpoint, match="is no checkpoint of this version"):
        load(path)


def test_damaged_ones_are_skipped_and_set_aside_so_that_whole_ones_stay(folder: Path) -> None:
    for step in (7, 8):
        (folder / f"step-0000000{step}-0123456789abcdef.safetensors").write_bytes(b"damaged")
    path, found, skipped = latest(folder)
    assert path == find(folder)[2]
    assert (found.step if found else None) == 2
    assert [str(error).split()[0] for error in skipped] == [str(path) for path in find(folder)[:2]]
    set_aside(folder, path)
    save(folder, example(3))
    assert steps(folder) == [2, 3]
    assert sorted(file.name[:21] for file in folder.glob("damaged-*")) == [
        "damaged-step-00000007",
        "damaged-step-00000008",
    ]


def test_what_may_not_be_read_is_not_damaged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> int:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "read", refuse)
        with pytest.raises(MnistError, match=r"cannot read .*step-00000002.*: Permission denied") as refused:
            latest(folder)
    assert refused.type is MnistError


def test_foreign_entries_and_times_do_not_matter(folder: Path) -> None:
    for name in (".tmp", "step-", "step-7", "step-00000009-0123456789abcdef", ".step-00000009-0.safetensors"):
        (folder / name).mkdir()
    (folder / "step-00000010").write_text("a file")
    for path, time in zip(find(folder), (1, 2e9), strict=True):
        os.utime(path, (time, time))
    _, found, skipped = latest(folder)
    assert found is not None
    assert (found.step, skipped) == (2, [])


def test_the_two_newest_are_kept_and_steps_are_compared_as_numbers(tmp_path: Path) -> None:
    for step in (1, 99_999_999, 100_000_000):
        save(tmp_path, example(step))
    assert KEEP == 2
    assert steps(tmp_path) == [99_999_999, 100_000_000]
    assert latest_step(tmp_path) == 100_000_000


CALLS = ("open", "fsync", "replace", "unlink")


def save_with_a_failing_call(folder: Path, step: int, fail_at: int) -> bool | None:
    """Save; whether it worked although the call `fail_at` of those that change a disk found it full.

    None if there are fewer calls.
    """
    count = 0
    with pytest.MonkeyPatch.context() as patch:

        def counted(original):  # type: ignore[no-untyped-def]
            def call(*arguments: object, **options: object) -> object:
                nonlocal count
                count += 1
                if count == fail_at:
                    raise OSError(28, "No space left on device", str(arguments[0]))
                return original(*arguments, **options)

            return call

        for name in CALLS:
            patch.setattr(os, name, counted(getattr(os, name)))
        patch.setattr(Path, "write_bytes", counted(Path.write_bytes))
        try:
            save(folder, example(step))
        except OSError:
            return False
    return True if count >= fail_at else None


def test_a_full_disk_at_any_call_leaves_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    """The same as scripts/crash_points, where there is no strace: errors instead of kills."""
    for number in range(1, 100):
        folder = tmp_path / str(number)
        folder.mkdir()
        for step in (1, 2):
            save(folder, example(step))
        saved = save_with_a_failing_call(folder, 3, number)
        _, found, skipped = latest(folder)
        assert found is not None
        assert not skipped
        assert found.step == 3 or (found.step == 2 and not saved)
        save(folder, example(4))
        assert steps(folder)[-2:] == [found.step, 4]
        if saved is None:
            break
    assert number > 6


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_a_limit_on_the_size_of_files_leaves_what_was_there(folder: Path) -> None:
    """In a child, whose limit stays: EFBIG from the system, as ENOSPC from a full disk."""
    program = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from tests.trainer.test_checkpoint import example, save\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))\n"
        "try:\n"
        "    save(Path(sys.argv[1]), example(3))\n"
        "except OSError as error:\n"
        "    print(error.strerror)\n"
    )
    result = subprocess.run([sys.executable, "-c", program, folder], capture_output=True, text=True)
    assert result.stdout == "File too large\n", result
    assert [checkpoint.step_of(path) for path in sorted(folder.iterdir())] == [1, 2]
    assert latest_step(folder) == 2
