"""A file or folder is whole at its final path, or not there; what was there before is never lost."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from serve_cli.errors import InputError, MnistError
from trainer import atomic
from trainer.atomic import atomic_folder, lock, write_file

FILE = "contract.json"
OURS = frozenset({FILE, "extra.json", "artifact/model.onnx"})


def publish(final: Path, content: str, *, overwrite: bool = False) -> None:
    with atomic_folder(final, ours=OURS, overwrite=overwrite) as folder:
        (folder / FILE).write_text(content)
        assert not final.exists() or overwrite


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A folder that was published before."""
    publish(tmp_path / "final", "old")
    return tmp_path / "final"


def assert_only(final: Path, content: str) -> None:
    """Check that `final` has `content` and nothing else is beside it."""
    assert (final / FILE).read_text() == content
    assert list(final.parent.iterdir()) == [final]


def test_a_new_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    final = tmp_path / "deep" / "er" / "final"
    publish(final, "new")
    assert_only(final, "new")
    (tmp_path / "ordinary").mkdir()
    assert final.stat().st_mode == (tmp_path / "ordinary").stat().st_mode


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (RuntimeError("a bug"), RuntimeError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(28, "No space left on device"), MnistError),
    ],
)
def test_a_failure_inside_the_block_changes_nothing(
    tmp_path: Path, raised: BaseException, expected: type[BaseException]
) -> None:
    final = tmp_path / "final"
    for overwrite in (False, True):
        with pytest.raises(expected) as caught:  # noqa: PT012, SIM117
            with atomic_folder(final, ours=OURS, overwrite=overwrite) as folder:
                (folder / FILE).write_text("half")
                raise raised
        assert expected is not MnistError or "No space left on device" in str(caught.value)
        if not overwrite:
            assert list(tmp_path.iterdir()) == []
            publish(final, "old")
    assert_only(final, "old")


def test_an_existing_folder_is_replaced_as_a_whole_and_only_with_overwrite(old: Path) -> None:
    with pytest.raises(InputError, match=r"exists already.*--overwrite"):
        publish(old, "new")
    assert_only(old, "old")
    (old / "extra.json").write_text("")
    publish(old, "new", overwrite=True)
    assert_only(old, "new")
    assert not (old / "extra.json").exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_rename_gives_the_old_folder_its_name_back(
    old: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    rename = Path.rename

    def fail(path: Path, target: Path) -> Path:
        if path.name == "new":
            raise error
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(InputError if isinstance(error, OSError) else KeyboardInterrupt):
        publish(old, "new", overwrite=True)
    assert_only(old, "old")


@pytest.mark.parametrize("name", ["thesis.txt", "artifact/thesis.txt", "src/contract.json"])
def test_a_folder_with_files_of_somebody_else_is_not_replaced(old: Path, name: str) -> None:
    (old / name).parent.mkdir(exist_ok=True)
    (old / name).write_text("ten years of work")
    with pytest.raises(InputError, match=f"contains {name}, which this program did not create"):
        publish(old, "new", overwrite=True)
    assert (old / name).read_text() == "ten years of work"
    assert (old / FILE).read_text() == "old"


def test_files_and_links_are_not_replaced(old: Path) -> None:
    (old.parent / "link").symlink_to(old)
    for final in (old / FILE, old.parent / "link"):
        with pytest.raises(InputError, match="is not a folder"):
            publish(final, "new", overwrite=True)
    assert (old / FILE).read_text() == "old"


def test_a_parent_that_cannot_be_written_is_refused(old: Path) -> None:
    for final in (old / FILE / "final", Path("/proc/nowhere/final")):
        with pytest.raises(InputError, match="cannot write to"):
            publish(final, "new")


def test_the_slower_of_two_writers_is_refused(tmp_path: Path) -> None:
    final = tmp_path / "final"
    with pytest.raises(InputError, match="exists already"), atomic_folder(final, ours=OURS, overwrite=False):
        publish(final, "faster")
    assert_only(final, "faster")


def test_what_a_killed_process_left_is_removed_and_what_a_live_one_has_is_not(tmp_path: Path) -> None:
    final = tmp_path / "final"
    program = (
        "import os, pathlib, signal, sys\n"
        "from trainer.atomic import atomic_folder\n"
        "with atomic_folder(pathlib.Path(sys.argv[1]), ours=frozenset(), overwrite=False):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", program, final])
    (stale,) = tmp_path.iterdir()
    assert stale.name.startswith(".final-")
    with atomic_folder(final, ours=OURS, overwrite=False) as folder:
        assert not stale.exists()
        with pytest.raises(KeyboardInterrupt), atomic_folder(final, ours=OURS, overwrite=False):
            raise KeyboardInterrupt  # a second writer, which removes what is stale when it starts
        (folder / FILE).write_text("new")
    assert_only(final, "new")


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_kill_between_the_two_renames_keeps_the_old_folder(old: Path, overwrite: bool) -> None:
    stale = old.with_name(f".{old.name}-abc.partial")
    stale.mkdir()
    old.rename(stale / "old")
    with pytest.raises((InputError, RuntimeError)), atomic_folder(old, ours=OURS, overwrite=overwrite):
        raise RuntimeError
    assert (old / FILE).exists()
    assert not stale.exists()


def test_a_file_is_the_old_one_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_file(path, b"old")

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def nothing_noted_yet() -> None:
    atomic._note.cache_clear()


@pytest.mark.usefixtures("nothing_noted_yet")
@pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP])
def test_a_file_system_that_cannot_flush_is_noted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], code: int
) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    write_file(tmp_path / "file", b"new")
    publish(tmp_path / "final", "new")
    assert (tmp_path / "file").read_bytes() == b"new"
    (line,) = capfd.readouterr().err.splitlines()
    assert "cannot flush folders" in line


@pytest.mark.usefixtures("nothing_noted_yet")
@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], code: int
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", fail)
    with lock(tmp_path / "lock"):
        pass
    (line,) = capfd.readouterr().err.splitlines()
    assert "has no locks" in line
    publish(tmp_path / "final", "new")
    assert (tmp_path / "final" / FILE).read_text() == "new"
