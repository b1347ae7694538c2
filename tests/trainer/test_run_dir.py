"""Who may write into a run directory, and what becomes of a run that stood there before."""

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from serve_cli.errors import InputError
from trainer import checkpoint, run_dir
from trainer.atomic import write_file
from trainer.checkpoint import Checkpoint
from trainer.run_dir import Standing, begin, open_run


def save(output: Path, step: int) -> None:
    weights = {"fc1.weight": np.zeros((2, 2), np.float32)}
    checkpoint.write(
        output / "checkpoints", Checkpoint(step=step, model=weights, training=weights, state={"step": step})
    )


def finish(output: Path, seed: int) -> None:
    write_file(output / "mnist_model.pth", str(seed).encode())
    write_file(output / "report.json", b"{}")


def make(output: Path, seed: int, *, finished: bool = True) -> None:
    with open_run(output, overwrite=False, resume=False):
        begin(output, {"seed": seed}, overwrite=False)
        save(output, 1)
        if finished:
            finish(output, seed)


def content(output: Path) -> dict[str, bytes]:
    """Every file but the lock, by its name."""
    return {
        path.relative_to(output).as_posix(): path.read_bytes()
        for path in output.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def test_a_new_run(tmp_path: Path) -> None:
    output = tmp_path / "deep" / "run"
    with open_run(output, overwrite=False, resume=False) as standing:
        assert standing is Standing.NOTHING
        begin(output, {"seed": 1}, overwrite=False)
        save(output, 1)
    assert set(content(output)) == {
        "config.json",
        *(f"checkpoints/step-00000001/{name}" for name in checkpoint.FILES),
    }


@pytest.mark.parametrize("resume", [True, False])
def test_what_never_had_a_checkpoint_leaves_nothing(tmp_path: Path, resume: bool) -> None:
    output = tmp_path / "run"
    for begins in (True, False):
        with pytest.raises(RuntimeError), open_run(output, overwrite=False, resume=resume):  # noqa: PT012
            if begins:
                begin(output, {"seed": 1}, overwrite=False)
            raise RuntimeError
        assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_there_stays(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), open_run(tmp_path, overwrite=False, resume=False):
        raise RuntimeError
    assert tmp_path.is_dir()


@pytest.mark.parametrize(
    ("finished", "words"),
    [(True, ("a finished run", "--overwrite")), (False, ("an unfinished run", "--resume", "--overwrite"))],
)
def test_a_run_is_not_trained_over(tmp_path: Path, finished: bool, words: tuple[str, ...]) -> None:
    make(tmp_path / "run", 1, finished=finished)
    before = content(tmp_path / "run")
    with (
        pytest.raises(InputError) as caught,
        open_run(tmp_path / "run", overwrite=False, resume=False),
    ):
        pass
    assert all(word in str(caught.value) for word in words)
    assert content(tmp_path / "run") == before


def test_resume_finds_what_stands_there(tmp_path: Path) -> None:
    make(tmp_path / "a", 1, finished=False)
    make(tmp_path / "b", 1)
    for name, expected in (("a", Standing.UNFINISHED), ("b", Standing.FINISHED), ("c", Standing.NOTHING)):
        with open_run(tmp_path / name, overwrite=False, resume=True) as standing:
            assert standing is expected


def test_overwrite_keeps_the_old_run_until_the_new_one_is_finished(tmp_path: Path) -> None:
    output = tmp_path / "run"
    make(output, 1)
    (output / "artifact").mkdir()
    (output / "artifact" / "model.onnx").write_bytes(b"exported")
    old = content(output)
    with open_run(output, overwrite=True, resume=False):
        begin(output, {"seed": 2}, overwrite=True)
        assert content(output / ".replaced") == old
        save(output, 1)
        assert content(output / ".replaced") == old
        finish(output, 2)
    assert content(output)["mnist_model.pth"] == b"2"
    assert not any(name.startswith((".replaced", "artifact")) for name in content(output))


def fail_over_a_finished_run(output: Path, *, saves: bool) -> dict[str, bytes]:
    """Overwrite a finished run with one that fails; return what the finished one held."""
    make(output, 1)
    old = content(output)
    with pytest.raises(RuntimeError), open_run(output, overwrite=True, resume=False):  # noqa: PT012
        begin(output, {"seed": 2}, overwrite=True)
        if saves:
            save(output, 1)
        raise RuntimeError
    return old


def test_an_overwrite_that_fails_early_brings_the_old_run_back(tmp_path: Path) -> None:
    output = tmp_path / "run"
    old = fail_over_a_finished_run(output, saves=False)
    assert content(output) == old


def test_an_overwrite_that_fails_later_can_go_on_and_keeps_the_old_run(tmp_path: Path) -> None:
    output = tmp_path / "run"
    old = fail_over_a_finished_run(output, saves=True)
    assert content(output / ".replaced") == old
    with open_run(output, overwrite=True, resume=False):  # over the unfinished one: the finished one is kept
        begin(output, {"seed": 3}, overwrite=True)
        save(output, 1)
    assert content(output / ".replaced") == old
    with open_run(output, overwrite=False, resume=True) as standing:
        assert standing is Standing.UNFINISHED
        finish(output, 3)
    assert not (output / ".replaced").exists()
    assert content(output)["mnist_model.pth"] == b"3"


def test_a_kill_at_any_rename_of_an_overwrite_loses_nothing(tmp_path: Path) -> None:
    """The process is gone after the n-th change; the next one finds the old run, the new one, or both."""
    program = (
        "import os, sys, pathlib\n"
        "from tests.trainer.test_run_directory import begin, finish, open_run, save\n"
        "left = int(sys.argv[2])\n"
        "def guard(name):\n"
        "    original = getattr(os, name)\n"
        "    def call(*a, **k):\n"
        "        global left\n"
        "        left -= 1\n"
        "        if left < 0: os._exit(137)\n"
        "        return original(*a, **k)\n"
        "    setattr(os, name, call)\n"
        "output = pathlib.Path(sys.argv[1])\n"
        "with open_run(output, overwrite=True, resume=False):\n"
        "    for name in ('rename', 'replace', 'unlink', 'rmdir', 'mkdir'): guard(name)\n"
        "    begin(output, {'seed': 2}, overwrite=True)\n"
        "    save(output, 1)\n"
        "    finish(output, 2)\n"
        "print('end')\n"
    )
    seen = set()
    for number in range(100):
        output = tmp_path / str(number)
        make(output, 1)
        old = content(output)
        child = subprocess.run(
            [sys.executable, "-c", program, output, str(number)], capture_output=True, text=True
        )
        assert child.returncode in (0, 137), child.stderr
        with open_run(output, overwrite=False, resume=True) as standing:
            if standing is Standing.FINISHED:
                new = content(output).get("mnist_model.pth") == b"2"
                assert new or content(output) == old
                seen.add("new" if new else "old")
            else:
                assert standing is Standing.UNFINISHED
                assert content(output / ".replaced") == old
                seen.add("both")
        if child.stdout == "end\n":
            break
    assert seen == {"old", "both", "new"}


def test_files_that_are_not_ours_survive_everything(tmp_path: Path) -> None:
    """Of other programs, with a config.json too, and those that come while a run begins."""
    for name in ("config.json", "mnist_model.pth"):
        (tmp_path / name).write_text("precious")
    for resume in (True, False):
        with suppress(InputError), open_run(tmp_path, overwrite=False, resume=resume):
            raise InputError("bad data")
    assert content(tmp_path) == {"config.json": b"precious", "mnist_model.pth": b"precious"}

    output = tmp_path / "run"
    with pytest.raises(RuntimeError), open_run(output, overwrite=False, resume=False):  # noqa: PT012
        begin(output, {"seed": 1}, overwrite=False)
        (output / "checkpoints" / "notes").write_text("mine")
        raise RuntimeError
    assert content(output) == {"checkpoints/notes": b"mine"}


def test_the_loser_of_two_starts_leaves_the_folder_to_the_winner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both found that there was no folder; the winner has not written anything yet."""
    output = tmp_path / "run"
    with open_run(output, overwrite=False, resume=False):
        monkeypatch.setattr(run_dir, "_make", lambda _: True)
        with pytest.raises(InputError, match="trains into"), open_run(output, overwrite=False, resume=False):
            pass
        assert output.is_dir()
        begin(output, {"seed": 1}, overwrite=False)
        save(output, 1)
    assert (output / "config.json").exists()


def test_a_path_that_is_too_long(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match="cannot write to"),
        open_run(tmp_path / ("x" * 300), overwrite=False, resume=False),
    ):
        pass


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    output = tmp_path / "run"
    program = (
        "import sys, pathlib\n"
        "from trainer.run_dir import open_run\n"
        "with open_run(pathlib.Path(sys.argv[1]), overwrite=False, resume=False):\n"
        "    print('in', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, output], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as first:
        assert first.stdout is not None
        assert first.stdin is not None
        assert first.stdout.readline() == b"in\n"
        for resume in (True, False):
            with (
                pytest.raises(InputError, match=f"process {first.pid} trains into .*run"),
                open_run(output, overwrite=False, resume=resume),
            ):
                pass
        first.stdin.close()
        assert first.wait(timeout=10) == 0
    with open_run(output, overwrite=False, resume=True) as standing:
        assert standing is Standing.NOTHING


@pytest.mark.parametrize("name", ["thesis.txt", "checkpoints/thesis.txt", "checkpoints/step-00000001/x.txt"])
@pytest.mark.parametrize("overwrite", [True, False])
def test_other_peoples_files_are_not_touched(tmp_path: Path, name: str, overwrite: bool) -> None:
    output = tmp_path / "run"
    make(output, 1)
    (output / name).write_text("ten years of work")
    before = content(output)
    with (
        pytest.raises(InputError, match=f"holds {name}, so it is not ours"),
        open_run(output, overwrite=overwrite, resume=False),
    ):
        pass
    assert content(output) == before


def test_a_lone_state_dict_is_no_run(tmp_path: Path) -> None:
    """It is what the tutorial saves: nobody asked us to train into its folder."""
    (tmp_path / "mnist_model.pth").write_bytes(b"precious")
    for resume in (True, False):
        with (
            pytest.raises(InputError, match="files of ours but no run"),
            open_run(tmp_path, overwrite=False, resume=resume),
        ):
            pass
    assert content(tmp_path) == {"mnist_model.pth": b"precious"}


def test_a_file_is_no_run_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    for output in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(InputError), open_run(output, overwrite=True, resume=False):
            pass
    assert (tmp_path / "file").read_text() == "precious"


def test_half_written_checkpoints_are_cleared_up(tmp_path: Path) -> None:
    output = tmp_path / "run"
    make(output, 1, finished=False)
    (output / "checkpoints" / ".step-00000002-abc" / "new").mkdir(parents=True)
    (output / "checkpoints" / ".step-00000002-abc" / "new" / "state.json").write_text("half")
    with open_run(output, overwrite=False, resume=True):
        assert [path.name for path in (output / "checkpoints").iterdir()] == ["step-00000001"]


def test_a_report_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    for text in ("", "[]", '{"test": 1}'):
        path.write_text(text)
        with pytest.raises(InputError, match=r"report\.json"):
            run_dir.read_report(path)
    with pytest.raises(InputError, match="cannot read"):
        run_dir.read_report(tmp_path / "nowhere.json")
