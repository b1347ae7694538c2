"""Going on from a checkpoint gives the bits of a run that never stopped."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from serve_cli import process
from tests.command import Mnist
from trainer import checkpoint, loop
from trainer.config import TrainConfig
from trainer.main import app

QUICK = ("--recipe", "notebook", "--dataset", "mnist5k", "--limit", "640", "--epochs", "2")
PATIENT = ("--recipe", "fast", "--dataset", "mnist5k", "--limit", "600", "--schedule", "constant")
PATIENT += ("--lr", "0.02", "--epochs", "60", "--patience", "3", "--weight-decay", "0")


class Cut(Exception):
    """The power went."""


def train_until(steps: int, flags: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Train, but lose the process after so many steps."""
    learn, done = loop.learn, 0

    def learn_or_die(*arguments, **options):  # type: ignore[no-untyped-def]
        nonlocal done
        done += 1
        if done > steps:
            raise Cut
        return learn(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "learn", learn_or_die)
        with pytest.raises(Cut):
            process.run(app, "trainer.main", flags)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return dict(torch.load(run / "mnist_model.pth", weights_only=True))


@pytest.mark.parametrize(
    "recipe",
    [
        (),
        ("--schedule", "one-cycle", "--weight-decay", "0.1", "--lr", "0.01"),
        ("--optimizer", "muon", "--distortion", "1", "--strangers", "0.2", "--accumulate", "2"),
    ],
)
@pytest.mark.parametrize(("steps", "saved"), [(4, 3), (10, 10), (14, 12)])
def test_the_bits_are_those_of_a_run_that_never_stopped(
    mnist: Mnist,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    recipe: tuple[str, ...],
    steps: int,
    saved: int,
) -> None:
    """Cut in the middle of an epoch, at its end, and in the next one."""
    flags = ["train", *QUICK, *recipe, "--checkpoint-every", "3"]
    assert mnist(*flags, "--output", tmp_path / "whole").code == 0
    cut = [*flags[1:], "--output", str(tmp_path / "cut")]
    train_until(steps, cut, monkeypatch)
    result = mnist(*flags, "--output", tmp_path / "cut", "--resume")
    assert result.code == 0
    assert f"going on after step {saved}" in result.err
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "cut")]
    epochs = [[{**json.loads(line), "seconds": 0} for line in run] for run in lines]
    assert epochs[0] == epochs[1]


@pytest.fixture
def cut_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was lost after step 13, with checkpoints at 12 and 10."""
    train_until(13, [*QUICK, "--checkpoint-every", "3", "--output", str(tmp_path / "run")], monkeypatch)
    steps = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert steps == ["step-00000010", "step-00000012"]
    return tmp_path / "run"


def test_resume_needs_no_flags(mnist: Mnist, cut_run: Path) -> None:
    assert mnist("train", "--resume", "--output", cut_run).code == 0
    assert json.loads((cut_run / "report.json").read_text())["train"]["samples"] == 640


def test_resume_after_the_end_changes_nothing(mnist: Mnist, cut_run: Path) -> None:
    assert mnist("train", "--resume", "--output", cut_run).code == 0
    before = {path: path.read_bytes() for path in cut_run.rglob("*.*") if path.is_file()}
    result = mnist("train", "--resume", "--output", cut_run)
    assert (result.code, result.err) == (0, "")
    assert "finished already" in result.out
    assert all(path.read_bytes() == data for path, data in before.items() if path.name != ".lock")


def test_resume_without_a_run_starts_one(mnist: Mnist, tmp_path: Path) -> None:
    """So that a cluster may start the same command again and again."""
    assert mnist("train", *QUICK, "--resume", "--output", tmp_path / "run").code == 0
    assert (tmp_path / "run" / "report.json").exists()


def test_a_damaged_checkpoint_is_named_and_skipped(mnist: Mnist, cut_run: Path) -> None:
    newest = cut_run / "checkpoints" / "step-00000012"
    (newest / "model.safetensors").write_bytes(b"damaged")
    result = mnist("train", "--resume", "--output", cut_run)
    assert result.code == 0
    assert f"{newest} is damaged" in result.err
    assert "it is skipped" in result.err
    assert (newest.parent / "damaged-step-00000012" / "model.safetensors").read_bytes() == b"damaged"
    assert "going on after step 10" in result.err


def test_when_all_are_damaged_nothing_is_touched(mnist: Mnist, cut_run: Path) -> None:
    for path in (cut_run / "checkpoints").glob("*/manifest.json"):
        path.write_text("{}")
    before = {path: path.read_bytes() for path in cut_run.rglob("*.*") if path.is_file()}
    mnist("train", "--resume", "--output", cut_run).assert_refused(
        "step-00000012 is damaged", "no other checkpoint is whole", "--overwrite"
    )
    assert {path: path.read_bytes() for path in before} == before


def test_what_cannot_be_read_is_not_taken_for_damaged(
    mnist: Mnist, cut_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_bytes = Path.read_bytes

    def fail(path: Path) -> bytes:
        if path.name == "model.safetensors":
            raise OSError(5, "Input/output error", str(path))
        return read_bytes(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        result = mnist("train", "--resume", "--output", cut_run)
    assert result.code == 1
    assert "Input/output error" in result.err
    assert mnist("train", "--resume", "--output", cut_run).code == 0


def test_a_run_that_was_killed_before_its_first_checkpoint_keeps_its_settings(
    mnist: Mnist, tmp_path: Path
) -> None:
    config = TrainConfig.from_recipe("notebook", dataset="mnist5k", limit=640, epochs=1, seed=3)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps(config.to_dict()))
    mnist("train", *QUICK, "--output", tmp_path / "run").assert_refused("an unfinished run", "--resume")
    assert mnist("train", "--resume", "--output", tmp_path / "run").code == 0
    assert TrainConfig.read(tmp_path / "run" / "config.json") == config
    assert json.loads((tmp_path / "run" / "report.json").read_text())["train"]["samples"] == 640


def test_a_config_that_was_edited_stops_it(mnist: Mnist, cut_run: Path) -> None:
    config = json.loads((cut_run / "config.json").read_text())
    (cut_run / "config.json").write_text(json.dumps({**config, "epochs": 3}))
    mnist("train", "--resume", "--output", cut_run).assert_refused("--epochs 3 (the run has 2)")


def test_other_files_do_not_stop_it(mnist: Mnist, cut_run: Path) -> None:
    for name in ("checkpoints/notes", ".DS_Store", "nohup.tmp"):
        (cut_run / name).write_text("mine")
    assert mnist("train", "--resume", "--output", cut_run).code == 0
    assert (cut_run / "checkpoints" / "notes").read_text() == "mine"


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (("--lr", "0.5"), ("--lr 0.5 (the run has 0.001)",)),
        (("--seed", "1", "--hidden", "32"), ("--seed 1 (the run has 0)", "--hidden (32,)")),
        (("--recipe", "fast"), ("--recipe fast (the run has notebook)",)),
        (("--dataset", "mnist"), ("--dataset mnist (the run has mnist5k)",)),
    ],
)
def test_other_settings_stop_it(
    mnist: Mnist, cut_run: Path, flags: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    mnist("train", "--resume", "--output", cut_run, *flags).assert_refused("other settings", *parts)
    assert checkpoint.newest(cut_run / "checkpoints")[0] is not None


def change(run: Path, **state: object) -> None:
    """Write other things into the state of each checkpoint of a run."""
    for folder in (run / "checkpoints").iterdir():
        saved = checkpoint.read(folder)
        shutil.rmtree(folder)
        changed = {**saved.state, **state}
        checkpoint.write(
            folder.parent,
            checkpoint.Checkpoint(step=saved.step, model=saved.model, training=saved.training, state=changed),
        )


def test_other_data_stops_it(mnist: Mnist, cut_run: Path) -> None:
    change(cut_run, data_sha256="0" * 64)
    mnist("train", "--resume", "--output", cut_run).assert_refused("other data", "000000000000")


def test_another_number_of_processes_is_said(mnist: Mnist, cut_run: Path) -> None:
    change(cut_run, environment={"processes": 2, "device": "cpu", "torch": torch.__version__})
    result = mnist("train", "--resume", "--output", cut_run)
    assert result.code == 0
    assert "the run had processes 2, now 1: the weights will be equal up to rounding" in result.err


def test_without_resume_the_run_is_left_alone(mnist: Mnist, cut_run: Path) -> None:
    mnist("train", *QUICK, "--output", cut_run).assert_refused("an unfinished run", "--resume", "--overwrite")
    assert mnist("train", *QUICK, "--output", cut_run, "--overwrite").code == 0


def test_early_stopping_leaves_the_best_weights(mnist: Mnist, tmp_path: Path) -> None:
    """A learning rate far too high: the validation loss soon gets no lower."""
    assert mnist("train", *PATIENT, "--output", tmp_path / "run").code == 0
    epochs = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    best = min(epochs, key=lambda epoch: epoch["validation"]["loss"])
    assert best["number"] + 3 == len(epochs) < 60
    saved = checkpoint.read(tmp_path / "run" / "checkpoints" / checkpoint.folder_name(best["step"]))
    found = weights(tmp_path / "run")
    assert all((found[name].numpy() == array).all() for name, array in saved.model.items())


def test_a_damaged_best_checkpoint_is_named(mnist: Mnist, tmp_path: Path) -> None:
    assert mnist("train", *PATIENT, "--output", tmp_path / "run").code == 0
    epochs = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    best = min(epochs, key=lambda epoch: epoch["validation"]["loss"])
    assert best["number"] < len(epochs) - 1  # neither of the two newest
    folder = tmp_path / "run" / "checkpoints" / checkpoint.folder_name(best["step"])
    (folder / "model.safetensors").write_bytes(b"damaged")
    (tmp_path / "run" / "report.json").unlink()
    result = mnist("train", "--resume", "--output", tmp_path / "run")
    assert result.code == 1
    assert f"{folder} is damaged" in result.err
    assert "train again with --overwrite" in result.err


def test_a_full_disk_stops_with_a_line_and_the_run_can_go_on(
    mnist: Mnist, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, saves = checkpoint.write, 0

    def full(root: Path, moment: checkpoint.Checkpoint) -> Path:
        nonlocal saves
        saves += 1
        if saves == 3:
            raise OSError(28, "No space left on device", str(root))
        return write(root, moment)

    flags = ("train", *QUICK, "--checkpoint-every", "3", "--output", tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write", full)
        result = mnist(*flags)
    assert result.code == 1
    assert len(result.err.splitlines()) == 1
    assert "No space left on device" in result.err
    assert mnist(*flags, "--resume").code == 0
    assert mnist("train", *QUICK, "--output", tmp_path / "whole").code == 0
    assert torch.equal(weights(tmp_path / "run")["fc1.weight"], weights(tmp_path / "whole")["fc1.weight"])


def test_the_pictures_and_the_rest_of_a_lost_run_are_made_again(mnist: Mnist, cut_run: Path) -> None:
    assert mnist("train", "--resume", "--output", cut_run).code == 0
    copy = cut_run.with_name("copy")
    shutil.copytree(cut_run, copy)
    for name in ("report.json", "losses.png", "mnist_model.pth", "metrics.jsonl"):
        (copy / name).unlink()
    assert mnist("train", "--resume", "--output", copy).code == 0
    assert torch.equal(weights(copy)["fc1.weight"], weights(cut_run)["fc1.weight"])
    assert {path.name for path in copy.iterdir()} == {path.name for path in cut_run.iterdir()}


def test_memory_that_is_used_up_leaves_the_last_checkpoint(
    mnist: Mnist, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn, left = loop.learn, iter(range(7))

    def learn_or_fail(*arguments, **options):  # type: ignore[no-untyped-def]
        if next(left, None) is None:
            raise MemoryError
        return learn(*arguments, **options)

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "learn", learn_or_fail)
        result = mnist("train", *QUICK, "--checkpoint-every", "3", "--output", run)
    assert result.code == 1
    assert result.err == "mnist: the memory is used up (MemoryError): lower --hidden or --batch-size\n"
    saved, skipped = checkpoint.newest(run / "checkpoints")
    assert (saved.step if saved else None, skipped) == (6, [])
