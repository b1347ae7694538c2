"""Who may write into a run directory, and what becomes of the run that it contained."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from serve_cli.errors import InputError
from tests.command import Mnist
from tests.trainer.runs import QUICK
from trainer import checkpoint, run_dir
from trainer.atomic import write_file
from trainer.checkpoint import Checkpoint
from trainer.run_dir import RunStatus, begin, open_run


def save(output: Path, step: int) -> None:
    tensors = {"fc1.weight": np.zeros((2, 2), np.float32)}
    checkpoint.save(output / "checkpoints", Checkpoint(step=step, tensors=tensors, state={}))


def finish(output: Path, seed: int) -> None:
    write_file(output / "mnist_model.pth", str(seed).encode())
    write_file(output / "report.json", b"{}")


def make(output: Path, seed: int, *, finished: bool = True) -> None:
    with open_run(output, overwrite=False, resume=False):
        begin(output, {"seed": seed}, None)
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


def test_a_run_that_was_killed_before_its_settings_were_written_starts_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "local.json").write_text('{"data_dir": null}')
    for resume in (True, False):
        with open_run(folder, overwrite=False, resume=resume) as status:
            assert status is RunStatus.EMPTY
        assert not content(folder)


def test_the_root_is_no_run_directory(mnist: Mnist) -> None:
    mnist("train", *QUICK, "--output", "/").assert_refused("/ cannot be a run directory")


def test_a_data_folder_that_is_not_on_this_machine_is_not_remembered(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    run_dir.write_data_dir(tmp_path, tmp_path / "data")
    assert run_dir.read_data_dir(tmp_path) == tmp_path / "data"
    (tmp_path / "data").rmdir()
    assert run_dir.read_data_dir(tmp_path) is None


def test_sigterm_before_the_first_epoch_gives_a_replaced_run_its_name_back(
    mnist: Mnist, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(output, 1)
    before = content(output)
    monkeypatch.setattr("trainer.train.load_dataset", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as ended:
        mnist("train", *QUICK, "--output", output, "--overwrite")
    assert ended.value.code == 143
    assert content(output) == before


def seed_of(output: Path) -> int | None:
    with suppress(FileNotFoundError):
        return int(json.loads((output / "config.json").read_bytes())["seed"])
    return None


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def replaced(output: Path) -> Path:
    """Where the run goes that --overwrite replaces."""
    return output.with_name(".run.replaced")


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("is_new", [True, False])
def test_a_run_that_fails_before_its_first_checkpoint_leaves_nothing(
    output: Path, resume: bool, is_new: bool
) -> None:
    if not is_new:
        output.mkdir()
    for begins in (True, False):
        with pytest.raises(RuntimeError), open_run(output, overwrite=False, resume=resume):  # noqa: PT012
            if begins:
                begin(output, {"seed": 1}, None)
            raise RuntimeError
        assert output.exists() is not is_new
        assert is_new or content(output) == {}


def test_overwrite_keeps_the_old_run_until_the_new_one_is_finished(output: Path, replaced: Path) -> None:
    make(output, 1)
    (output / "artifact").mkdir()
    (output / "artifact" / "model.onnx").write_bytes(b"exported")
    old = content(output)
    with open_run(output, overwrite=True, resume=False):
        begin(output, {"seed": 2}, None)
        save(output, 1)
        assert content(replaced) == old
        finish(output, 2)
    assert list(output.parent.iterdir()) == [output]
    assert seed_of(output) == 2
    assert not (output / "artifact").exists()


def test_an_overwrite_that_fails_before_its_first_checkpoint_gives_the_old_run_its_name_back(
    output: Path,
) -> None:
    make(output, 1)
    old = content(output)
    with pytest.raises(RuntimeError), open_run(output, overwrite=True, resume=False):  # noqa: PT012
        begin(output, {"seed": 2}, None)
        raise RuntimeError
    assert content(output) == old
    assert list(output.parent.iterdir()) == [output]


def test_an_overwrite_that_fails_later_can_go_on_and_keeps_the_finished_run(
    output: Path, replaced: Path
) -> None:
    make(output, 1)
    old = content(output)
    for seed in (2, 3):  # the second time over the unfinished run
        with pytest.raises(RuntimeError), open_run(output, overwrite=True, resume=False):  # noqa: PT012
            begin(output, {"seed": seed}, None)
            save(output, 1)
            raise RuntimeError
        assert seed_of(output) == seed
        assert content(replaced) == old
    with open_run(output, overwrite=False, resume=True) as status:
        assert status is RunStatus.UNFINISHED
        finish(output, 3)
    assert seed_of(output) == 3
    assert list(output.parent.iterdir()) == [output]


def test_an_overwrite_keeps_the_newest_finished_run(output: Path, replaced: Path) -> None:
    """A process was killed while it removed the run that it had replaced."""
    make(output, 2)
    make(replaced, 1)
    with pytest.raises(RuntimeError), open_run(output, overwrite=True, resume=False):
        raise RuntimeError
    assert content(output)["mnist_model.pth"] == b"2"


OVERWRITE_AND_DIE = """
import os, pathlib, sys
from tests.trainer.test_run_dir import begin, finish, make, open_run, save

def die_after(left):
    def guard(original):
        def call(*arguments, **options):
            nonlocal left
            left -= 1
            if left < 0:
                os._exit(137)
            return original(*arguments, **options)
        return call
    for name in ("rename", "replace", "unlink", "rmdir", "mkdir"):
        setattr(os, name, guard(getattr(os, name)))

number, code = 0, 137
while code == 137:
    output = pathlib.Path(sys.argv[1], str(number), "run")
    make(output, 1)
    child = os.fork()
    if child == 0:
        die_after(number)
        with open_run(output, overwrite=True, resume=False):
            begin(output, {"seed": 2}, None)
            save(output, 1)
            finish(output, 2)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    number += 1
sys.exit(code)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("resume", [True, False])
def test_a_kill_at_any_rename_of_an_overwrite_loses_nothing(
    tmp_path: Path, output: Path, resume: bool
) -> None:
    """The process is gone after its n-th change; the next one finds the old run, the new one, or both."""
    make(output, 1)
    old = content(output)
    subprocess.run([sys.executable, "-c", OVERWRITE_AND_DIE, tmp_path / "kills"], check=True)
    found = []
    for folder in sorted((tmp_path / "kills").iterdir(), key=lambda path: int(path.name)):
        with suppress(InputError), open_run(folder / "run", overwrite=False, resume=resume):
            pass
        run, before = folder / "run", folder / ".run.replaced"
        if content(run) == old:
            found.append("old")
        elif run_dir.read_status(run) is RunStatus.FINISHED:
            assert content(run)["mnist_model.pth"] == b"2"
            found.append("new")
        else:
            assert content(before) == old
            found.append("both")
    assert [word for word, next_word in zip(found, [*found[1:], ""], strict=True) if word != next_word] == [
        "old",
        "both",
        "new",
    ]


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("name", ["thesis.txt", "checkpoints/thesis.txt", "checkpoints/step-00000001/x.txt"])
def test_files_of_other_programs_are_not_touched(output: Path, name: str, overwrite: bool) -> None:
    make(output, 1)
    (output / name).parent.mkdir(exist_ok=True)
    (output / name).write_text("ten years of work")
    before = content(output)
    with (
        pytest.raises(InputError, match=f"contains {name}, which this program did not create"),
        open_run(output, overwrite=overwrite, resume=False),
    ):
        pass
    assert content(output) == before


def test_other_files_do_not_stop_a_resume(output: Path) -> None:
    make(output, 1, finished=False)
    for name in ("checkpoints/notes", ".DS_Store", "nohup.tmp"):
        (output / name).write_text("mine")
    with open_run(output, overwrite=False, resume=True) as status:
        assert status is RunStatus.UNFINISHED
    assert content(output)["checkpoints/notes"] == b"mine"


@pytest.mark.parametrize("resume", [True, False])
def test_a_state_dict_alone_is_no_run(output: Path, resume: bool) -> None:
    """The tutorial saves it: nobody asked this program to train into its folder."""
    output.mkdir()
    (output / "mnist_model.pth").write_bytes(b"precious")
    with (
        pytest.raises(InputError, match="files of this program but no run"),
        open_run(output, overwrite=False, resume=resume),
    ):
        pass
    assert content(output) == {"mnist_model.pth": b"precious"}


def test_links_are_refused(output: Path, tmp_path: Path) -> None:
    make(tmp_path / "real", 1)
    before = content(tmp_path / "real")
    output.symlink_to(tmp_path / "real")
    with pytest.raises(InputError), open_run(output, overwrite=True, resume=False):
        pass
    output.unlink()
    make(output, 2)
    (output / "report.json").unlink()
    (output / "report.json").symlink_to(tmp_path / "real" / "report.json")
    with (
        pytest.raises(InputError, match=r"contains report\.json"),
        open_run(output, overwrite=True, resume=False),
    ):
        pass
    assert content(tmp_path / "real") == before


def test_a_path_that_cannot_be_a_run_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    for output in (tmp_path / "file", tmp_path / "file" / "run", tmp_path / ("x" * 300)):
        with pytest.raises(InputError), open_run(output, overwrite=True, resume=False):
            pass
    assert content(tmp_path) == {"file": b"precious"}


def test_what_kills_left_behind_is_removed_and_stops_no_overwrite(output: Path) -> None:
    """A half-written checkpoint and report, and the folder of an export."""
    make(output, 1)
    partial = output / ".artifact-x8f2.partial"
    (partial / "new").mkdir(parents=True)
    (partial / "new" / "model.onnx").write_text("half")
    (output / ".report.json.partial").write_text("half")
    name = checkpoint.find(output / "checkpoints")[0].name.replace("1-", "2-")
    (output / "checkpoints" / f".{name}.partial").write_text("half")
    with open_run(output, overwrite=False, resume=True):
        assert len(list((output / "checkpoints").iterdir())) == 1
        assert not (output / ".report.json.partial").exists()
    with open_run(output, overwrite=True, resume=False):
        begin(output, {"seed": 2}, None)
        save(output, 1)
        finish(output, 2)
    assert seed_of(output) == 2
    assert not partial.exists()


def test_the_folder_of_the_data_is_kept_beside_the_config(output: Path, tmp_path: Path) -> None:
    make(output, 1)
    assert run_dir.read_data_dir(output) is None
    begin(output, {"seed": 1}, Path("tests"))
    assert run_dir.read_data_dir(output) == Path("tests").absolute()
    for text in ("", "[]", '{"data_dir": 1}'):
        (output / "local.json").write_text(text)
        assert run_dir.read_data_dir(output) is None
    (output / "local.json").unlink()
    assert run_dir.read_data_dir(output) is None


@pytest.mark.parametrize("text", ["", "[]", '{"test": 1}', '{"test": {}, "dataset": {"labels": []}}'])
def test_a_report_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(InputError, match=r"report\.json is not the report of a run"):
        run_dir.read_report(tmp_path / "report.json")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe_as_config_is_not_waited_for(mnist: Mnist, output: Path) -> None:
    output.mkdir()
    os.mkfifo(output / "config.json")
    mnist("train", *QUICK, "--output", output, "--resume").assert_refused("config.json is not a regular file")
    mnist("train", *QUICK, "--output", output).assert_refused("an unfinished run")
    assert mnist("train", *QUICK, "--output", output, "--overwrite").code == 0
    assert (output / "config.json").is_file()
