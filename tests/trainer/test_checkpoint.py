"""A checkpoint is whole or it is none: every bit, every length, every file, every name."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from serve_cli.errors import MnistError
from trainer import checkpoint
from trainer.checkpoint import FILES, KEPT, Checkpoint, Damaged, newest, prune, read, write


def example(step: int) -> Checkpoint:
    weights = {"fc1.weight": np.arange(6, dtype=np.float32).reshape(2, 3) + step}
    return Checkpoint(
        step=step,
        model=weights,
        training={"losses": np.array([0.1 + step, 2.5])},
        state={"step": step, "loss": 0.1 + 0.2},
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with the checkpoints of steps 1 and 2."""
    for step in (1, 2):
        write(tmp_path, example(step))
    return tmp_path


def steps(root: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in root.glob("step-*"))


def test_what_is_written_comes_back_bit_for_bit(tmp_path: Path) -> None:
    folder = write(tmp_path, example(938))
    assert folder == tmp_path / "step-00000938"
    assert {path.name for path in folder.iterdir()} == FILES
    found, written = read(folder), example(938)
    assert found.step == 938
    assert found.state == written.state
    for ours, theirs in ((found.model, written.model), (found.training, written.training)):
        assert ours.keys() == theirs.keys()
        assert all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)
        assert all(ours[name].dtype == theirs[name].dtype for name in ours)
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_the_manifest_has_size_and_hash_of_each_file(root: Path) -> None:
    folder = root / "step-00000002"
    files = {name: (folder / name).read_bytes() for name in FILES - {checkpoint.MANIFEST}}
    assert json.loads((folder / checkpoint.MANIFEST).read_text()) == {
        "files": {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
            for name, data in files.items()
        },
        "format": 1,
    }


def test_no_file_holds_code(root: Path) -> None:
    for path in root.rglob("*.*"):
        assert path.suffix in (".json", ".safetensors")
        assert b"pickle" not in path.read_bytes()


@pytest.mark.parametrize("name", sorted(FILES))
def test_every_flipped_bit_is_noticed(root: Path, name: str) -> None:
    path = root / "step-00000002" / name
    data = path.read_bytes()
    for position in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[position] ^= 1 << bit
            path.write_bytes(changed)
            with pytest.raises(Damaged):
                read(path.parent)
    path.write_bytes(data)
    assert read(path.parent).step == 2


@pytest.mark.parametrize("name", sorted(FILES))
def test_every_truncation_is_noticed(root: Path, name: str) -> None:
    path = root / "step-00000002" / name
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(Damaged):
            read(path.parent)
    path.write_bytes(data + b" ")
    with pytest.raises(Damaged):
        read(path.parent)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_damaged_one_is_skipped_by_name(root: Path, name: str) -> None:
    (root / "step-00000002" / name).unlink()
    found, skipped = newest(root)
    assert found is not None
    assert found.step == 1
    assert len(skipped) == 1
    assert skipped[0][0] == root / "step-00000002"
    assert name in str(skipped[0][1])


def test_files_of_two_checkpoints_do_not_mix(root: Path) -> None:
    for name in FILES - {checkpoint.MANIFEST}:
        data = (root / "step-00000001" / name).read_bytes()
        (root / "step-00000002" / name).write_bytes(data)
        with pytest.raises(Damaged):
            read(root / "step-00000002")


def test_the_message_says_what_is_damaged(root: Path) -> None:
    folder = root / "step-00000002"
    (folder / checkpoint.STATE).write_text("{}")
    with pytest.raises(Damaged, match=r"step-00000002 is damaged: its files are not those of its manifest"):
        read(folder)
    (folder / checkpoint.STATE).unlink()
    (folder / checkpoint.STATE).mkdir()
    with pytest.raises(Damaged, match=r"step-00000002 is damaged: .*state.json is no file"):
        read(folder)


def test_one_without_its_step_is_of_no_version_we_know(tmp_path: Path) -> None:
    folder = write(tmp_path, Checkpoint(step=1, model={}, training={}, state={"epoch": 1}))
    with pytest.raises(Damaged, match="step-00000001 is no checkpoint of this version: 'step'"):
        read(folder)


def test_what_may_not_be_read_is_not_damaged(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(MnistError, match=r"cannot read .*model.safetensors: Permission denied") as refused:
        newest(root)
    assert refused.type is MnistError


def test_a_checkpoint_is_never_written_over(root: Path) -> None:
    before = (root / "step-00000002" / checkpoint.MODEL).read_bytes()
    changed = Checkpoint(step=2, model={}, training={}, state={"step": 2})
    with pytest.raises(MnistError, match="exists already"):
        write(root, changed)
    assert (root / "step-00000002" / checkpoint.MODEL).read_bytes() == before


def test_equal_documents_have_equal_bytes() -> None:
    assert checkpoint.canonical_json({"b": [1, 2], "a": None}) == b'{"a":null,"b":[1,2]}'
    with pytest.raises(ValueError, match="JSON"):
        checkpoint.canonical_json({"loss": float("nan")})


def test_a_renamed_checkpoint_is_noticed(root: Path) -> None:
    (root / "step-00000002").rename(root / "step-00000009")
    with pytest.raises(Damaged, match="it holds step 2"):
        read(root / "step-00000009")


def test_one_of_another_version_is_skipped(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "canonical_json", lambda document: json.dumps(document).encode())
    with pytest.raises(Damaged, match="step-00000002"):
        read(root / "step-00000002")


def test_foreign_entries_and_times_do_not_matter(root: Path) -> None:
    for name in (".tmp", "notes", "checkpoint_9", "step-", "step-7", "step-00000008x", ".step-00000009-ab"):
        (root / name).mkdir()
    (root / "step-00000010").write_text("a file")
    (root / "step-00000002" / "notes.txt").write_text("not listed")
    os.utime(root / "step-00000001", (2e9, 2e9))
    os.utime(root / "step-00000002", (1, 1))
    found, skipped = newest(root)
    assert found is not None
    assert (found.step, skipped) == (2, [])


def test_without_any_there_is_none(tmp_path: Path) -> None:
    assert newest(tmp_path) == (None, [])
    assert newest(tmp_path / "nowhere") == (None, [])


def test_steps_are_compared_as_numbers(tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000):
        write(tmp_path, example(step))
    found, _ = newest(tmp_path)
    assert found is not None
    assert found.step == 100_000_000
    write(tmp_path, example(100_000_001))
    prune(tmp_path, None)
    assert steps(tmp_path) == [100_000_000, 100_000_001]


def test_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    for step in range(1, 7):
        write(tmp_path, example(step))
        prune(tmp_path, best=2 if step >= 2 else None)
    assert steps(tmp_path) == [2, *range(7 - KEPT, 7)]
    prune(tmp_path, best=None)
    assert steps(tmp_path) == list(range(7 - KEPT, 7))


def test_clean_removes_what_kills_have_left(root: Path) -> None:
    for name in (".step-00000003-x8f2", ".step-00000001-gone"):
        (root / name / "new").mkdir(parents=True)
        (root / name / "new" / "state.json").write_text("half")
    checkpoint.clean(root)
    assert sorted(path.name for path in root.iterdir()) == ["step-00000001", "step-00000002"]


def test_what_a_killed_removal_has_left_is_in_nobodys_way(root: Path) -> None:
    write(root, example(3))
    (root / ".step-00000001-gone" / "half").mkdir(parents=True)
    prune(root, None)
    assert sorted(path.name for path in root.iterdir()) == ["step-00000002", "step-00000003"]


def test_a_damaged_one_does_not_push_out_whole_ones(root: Path) -> None:
    for step in (7, 8):
        write(root, example(step))
        (root / f"step-0000000{step}" / "state.json").write_text("{}")
    _, skipped = newest(root)
    assert [folder.name for folder, _ in skipped] == ["step-00000008", "step-00000007"]
    for folder, _ in (*skipped, *skipped[:1]):
        if not folder.exists():
            write(root, example(8))  # a second time: what was put aside before goes
        checkpoint.put_aside(folder)
    write(root, example(3))
    prune(root, None)
    assert steps(root) == [2, 3]
    assert (root / "damaged-step-00000007" / "state.json").read_text() == "{}"


CALLS = ("open", "write", "fsync", "rename", "mkdir", "rmdir", "unlink")


def calls_of_os(monkeypatch: pytest.MonkeyPatch, fail_at: int) -> Iterator[int]:
    """Count the calls that change a disk, and let the one with number `fail_at` find it full."""
    count = 0

    def guarded(name: str):  # type: ignore[no-untyped-def]
        original = getattr(os, name)

        def call(*arguments: object, **options: object) -> object:
            nonlocal count
            count += 1
            if count == fail_at:
                raise OSError(28, "No space left on device", str(arguments[0]))
            return original(*arguments, **options)

        return call

    for name in CALLS:
        monkeypatch.setattr(os, name, guarded(name))
    while True:
        yield count


def test_a_full_disk_at_any_call_leaves_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    """The same as scripts/crash_points, where there is no strace: errors instead of kills."""
    refused, number, total = 0, 0, 1
    while number < total:
        number += 1
        root = tmp_path / str(number)
        for step in (1, 2):
            write(root, example(step))
        with pytest.MonkeyPatch.context() as monkeypatch:
            counter = calls_of_os(monkeypatch, fail_at=number)
            try:
                next(counter)
                write(root, example(3))
                prune(root, None)
                saved = True
            except (MnistError, OSError):
                saved = False
                refused += 1
            total = max(total, next(counter))
        found, skipped = newest(root)
        assert found is not None
        assert not skipped
        assert found.step == 3 or (found.step == 2 and not saved)
    assert total > 10
    assert refused > 10


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_a_limit_on_the_size_of_files_leaves_what_was_there(root: Path) -> None:
    """In a child, whose limit stays: EFBIG from the system, as ENOSPC from a full disk."""
    program = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from serve_cli.errors import MnistError\n"
        "from tests.trainer.test_checkpoint import example, write\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))\n"
        "try:\n"
        "    write(Path(sys.argv[1]), example(3))\n"
        "except MnistError as error:\n"
        "    print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", program, root], capture_output=True, text=True)
    assert result.stdout == f"cannot write {root}/step-00000003 (File too large): nothing was changed\n", (
        result
    )
    assert sorted(path.name for path in root.iterdir()) == ["step-00000001", "step-00000002"]
    assert read(root / "step-00000002").step == 2
