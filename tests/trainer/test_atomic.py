"""A folder is whole at its final path, or not there; what stood there is never lost."""

from pathlib import Path

import pytest

from serve_cli.errors import InputError, MnistError
from trainer.atomic import atomic_folder

MARKER = "mark.json"
OURS = frozenset({MARKER, "extra.json", "artifact/model.onnx"})


def publish(final: Path, content: str, *, overwrite: bool = False) -> None:
    with atomic_folder(final, ours=OURS, overwrite=overwrite) as folder:
        (folder / MARKER).write_text(content)
        assert not final.exists() or overwrite


def test_a_new_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    final = tmp_path / "deep" / "er" / "final"
    publish(final, "new")
    assert (final / MARKER).read_text() == "new"
    assert [path.name for path in final.parent.iterdir()] == ["final"]


def test_it_has_the_permissions_of_an_ordinary_folder(tmp_path: Path) -> None:
    publish(tmp_path / "final", "new")
    (tmp_path / "ordinary").mkdir()
    assert (tmp_path / "final").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_of_a_failure(tmp_path: Path, error: type[BaseException]) -> None:
    final = tmp_path / "final"
    with pytest.raises(error), atomic_folder(final, ours=OURS, overwrite=False) as folder:  # noqa: PT012
        (folder / MARKER).write_text("half")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_what_stands_there_is_refused(tmp_path: Path) -> None:
    publish(tmp_path / "final", "old")
    with pytest.raises(InputError, match="exists already"):
        publish(tmp_path / "final", "new")
    assert (tmp_path / "final" / MARKER).read_text() == "old"


def test_overwrite_replaces_the_whole_folder(tmp_path: Path) -> None:
    final = tmp_path / "final"
    publish(final, "old")
    (final / "extra.json").write_text("")
    publish(final, "new", overwrite=True)
    assert [path.name for path in final.iterdir()] == [MARKER]
    assert (final / MARKER).read_text() == "new"
    assert list(tmp_path.iterdir()) == [final]


def test_a_failed_overwrite_leaves_the_old_one(tmp_path: Path) -> None:
    final = tmp_path / "final"
    publish(final, "old")
    with pytest.raises(RuntimeError), atomic_folder(final, ours=OURS, overwrite=True):
        raise RuntimeError
    assert (final / MARKER).read_text() == "old"
    assert list(tmp_path.iterdir()) == [final]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_rename_brings_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    final = tmp_path / "final"
    publish(final, "old")
    rename = Path.rename

    def fail(path: Path, target: Path) -> Path:
        if path.name == "new":
            raise error
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(InputError if isinstance(error, OSError) else KeyboardInterrupt):
        publish(final, "new", overwrite=True)
    assert (final / MARKER).read_text() == "old"
    assert list(tmp_path.iterdir()) == [final]


def test_only_our_own_folders_are_replaced(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("ten years of work")
    for final in (precious, precious / "thesis.txt"):
        with pytest.raises(InputError, match="not ours to replace"):
            publish(final, "new", overwrite=True)
    publish(precious.parent / "ours", "old")
    for name in ("thesis.txt", "artifact/thesis.txt", "src/mark.json"):
        path = tmp_path / "ours" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("ten years of work")
        with pytest.raises(InputError, match=f"holds {name}, so it is not ours"):
            publish(tmp_path / "ours", "new", overwrite=True)
        assert path.read_text() == "ten years of work"
        path.unlink()
    link = tmp_path / "link"
    publish(tmp_path / "real", "old")
    link.symlink_to(tmp_path / "real")
    with pytest.raises(InputError, match="not ours to replace"):
        publish(link, "new", overwrite=True)
    assert (precious / "thesis.txt").read_text() == "ten years of work"


def test_a_parent_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write to"):
        publish(tmp_path / "file" / "final", "new")
    with pytest.raises(InputError, match="cannot write to"):
        publish(Path("/proc/nowhere/final"), "new")


def test_a_full_disk_is_one_line_and_changes_nothing(tmp_path: Path) -> None:
    final = tmp_path / "final"
    publish(final, "old")
    with (
        pytest.raises(MnistError, match="No space left") as caught,
        atomic_folder(final, ours=OURS, overwrite=True),
    ):
        raise OSError(28, "No space left on device")
    assert caught.value.exit_code == 1
    assert str(final) in str(caught.value)
    assert (final / MARKER).read_text() == "old"


def test_the_slower_of_two_writers_is_refused(tmp_path: Path) -> None:
    final = tmp_path / "final"
    with pytest.raises(InputError, match="exists already"), atomic_folder(final, ours=OURS, overwrite=False):
        publish(final, "faster")
    assert (final / MARKER).read_text() == "faster"
    assert list(tmp_path.iterdir()) == [final]
