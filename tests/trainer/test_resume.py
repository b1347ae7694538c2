"""Going on from a checkpoint gives the bits of a run that never stopped."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from serve_cli import process
from tests.command import Mnist
from tests.trainer.runs import QUICK, assert_same_weights, checkpoint_steps, epochs, report
from trainer import checkpoint
from trainer import train as training
from trainer.config import TrainConfig
from trainer.main import app


class PowerCut(Exception):
    """The process is gone."""


def train_until(steps: int, flags: Sequence[object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Train, but lose the process after so many steps."""
    train_step, taken = training.train_step, 0

    def step_or_die(*arguments: Any) -> torch.Tensor:
        nonlocal taken
        taken += 1
        if taken > steps:
            raise PowerCut
        return train_step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(training, "train_step", step_or_die)
        with pytest.raises(PowerCut):
            process.run(app, "mnist train", [str(flag) for flag in flags])


@pytest.fixture
def cut_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was lost after step 13, with checkpoints at 12 and 10."""
    train_until(13, [*QUICK, "--checkpoint-every", "3", "--output", tmp_path / "run"], monkeypatch)
    assert checkpoint_steps(tmp_path / "run") == [10, 12]
    return tmp_path / "run"


def files(run: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.mark.parametrize(
    "recipe",
    [
        (),
        ("--schedule", "one-cycle", "--weight-decay", "0.1", "--lr", "0.01"),
        ("--optimizer", "muon", "--distortion", "1", "--strangers", "0.2", "--accumulate", "2"),
    ],
)
def test_the_bits_are_those_of_a_run_that_never_stopped(
    mnist: Mnist, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: tuple[str, ...]
) -> None:
    """Cut in the middle of an epoch, at its end, and in the next one."""
    flags = [*QUICK, *recipe, "--checkpoint-every", "3", "--output"]
    whole = tmp_path / "whole"
    assert mnist("train", *flags, whole).code == 0
    for cut, saved in ((4, 3), (10, 10), (14, 12)):
        run = tmp_path / str(cut)
        train_until(cut, [*flags, run], monkeypatch)
        result = mnist("train", *flags, run, "--resume")
        assert result.code == 0
        assert f"going on after step {saved}" in result.err
        assert_same_weights(whole, run)
        first, second = ([{**epoch, "seconds": 0} for epoch in epochs(each)] for each in (whole, run))
        assert first == second


def test_resume_needs_no_flags_and_after_the_end_changes_nothing(mnist: Mnist, cut_run: Path) -> None:
    assert mnist("train", "--resume", "--output", cut_run).code == 0
    assert report(cut_run)["train"]["samples"] == 640
    before = files(cut_run)
    result = mnist("train", "--resume", "--output", cut_run)
    assert (result.code, result.err) == (0, "")
    assert "finished already" in result.out
    assert files(cut_run) == before


def test_resume_without_a_run_starts_one(mnist: Mnist, tmp_path: Path) -> None:
    """So that a cluster may start the same command again and again."""
    assert mnist("train", *QUICK, "--resume", "--output", tmp_path / "run").code == 0
    assert (tmp_path / "run" / "report.json").exists()


def test_a_run_that_was_killed_before_its_first_checkpoint_keeps_its_settings(
    mnist: Mnist, tmp_path: Path
) -> None:
    config = TrainConfig.from_recipe("notebook", dataset="mnist5k", limit=640, epochs=1, seed=3)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps(config.to_dict()))
    assert mnist("train", "--resume", "--output", run).code == 0
    assert TrainConfig.read(run / "config.json") == config
    assert report(run)["train"]["samples"] == 640


@pytest.mark.parametrize("lost", ["report.json", "mnist_model.pth", "metrics.jsonl", "losses.png"])
def test_a_finished_run_that_lost_a_file_gets_it_back(mnist: Mnist, tmp_path: Path, lost: str) -> None:
    """It is tested again; the best weights of --patience are in the checkpoint."""
    flags = ("--recipe", "fast", "--dataset", "mnist5k", "--limit", "300", "--lr", "0.1", "--patience", "1")
    run, copy = tmp_path / "run", tmp_path / "copy"
    assert mnist("train", *flags, "--epochs", "4", "--output", run).code == 0
    shutil.copytree(run, copy)
    for name in {lost, "report.json"} if lost != "mnist_model.pth" else {lost}:
        (copy / name).unlink()
    assert mnist("train", "--resume", "--output", copy).code == 0
    assert_same_weights(run, copy)
    assert {path.name for path in copy.iterdir()} == {path.name for path in run.iterdir()}
    assert report(copy)["test"] == report(run)["test"]
    assert report(copy)["train"]["loss"] == report(run)["train"]["loss"]
    mnist("train", *flags, "--epochs", "4", "--output", copy).assert_refused("a finished run")


def test_a_damaged_checkpoint_is_named_skipped_and_kept(mnist: Mnist, cut_run: Path) -> None:
    newest = checkpoint.find(cut_run / "checkpoints")[0]
    newest.write_bytes(b"damaged")
    result = mnist("train", "--resume", "--output", cut_run)
    assert result.code == 0
    assert f"{newest} is damaged" in result.err
    assert "it is skipped" in result.err
    assert newest.with_name(f"damaged-{newest.name}").read_bytes() == b"damaged"
    assert "going on after step 10" in result.err
    assert mnist("train", *QUICK, "--output", cut_run, "--overwrite").code == 0  # it is one of our files


def test_nothing_changes_when_all_checkpoints_are_damaged(mnist: Mnist, cut_run: Path) -> None:
    for path in (cut_run / "checkpoints").iterdir():
        path.write_bytes(b"damaged")
    before = files(cut_run)
    mnist("train", "--resume", "--output", cut_run).assert_refused(
        "step-00000012", "is damaged", "no other checkpoint is whole", "--overwrite"
    )
    assert files(cut_run) == before


def test_a_checkpoint_that_cannot_be_read_is_not_damaged(
    mnist: Mnist, cut_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_regular = checkpoint.read_regular

    def fail(path: Path, *arguments: Any) -> bytes:
        try:
            raise OSError(5, "Input/output error")
        except OSError as error:
            raise checkpoint.InputError(f"cannot read {path}: {error.strerror}") from error

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "read_regular", fail)
        result = mnist("train", "--resume", "--output", cut_run)
    assert read_regular is checkpoint.read_regular
    assert result.code == 1
    assert "Input/output error" in result.err
    assert mnist("train", "--resume", "--output", cut_run).code == 0


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (("--lr", "0.5"), ("--lr 0.5 (the run has 0.001)",)),
        (("--seed", "1", "--hidden", "32"), ("--seed 1 (the run has 0)", "--hidden (32,)")),
        (("--recipe", "fast"), ("--recipe fast (the run has notebook)",)),
        (("--dataset", "mnist"), ("--dataset mnist (the run has mnist5k)",)),
    ],
)
def test_other_settings_are_refused(
    mnist: Mnist, cut_run: Path, flags: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    before = files(cut_run)
    mnist("train", "--resume", "--output", cut_run, *flags).assert_refused("other settings", *parts)
    assert files(cut_run) == before


def test_the_same_settings_from_a_file_are_no_other_settings(mnist: Mnist, cut_run: Path) -> None:
    config = cut_run / "config.json"
    assert mnist("train", "--resume", "--config", config, "--output", cut_run).code == 0


def test_a_config_that_was_edited_is_refused(mnist: Mnist, cut_run: Path) -> None:
    config = json.loads((cut_run / "config.json").read_text())
    (cut_run / "config.json").write_text(json.dumps({**config, "epochs": 3}))
    mnist("train", "--resume", "--output", cut_run).assert_refused("--epochs 3 (the run has 2)")


def write_idx(folder: Path, train: int, test: int) -> None:
    """A dataset of random digits; the numbers are seeds."""
    folder.mkdir(exist_ok=True)
    for name, seed, samples in (("train", train, 640), ("t10k", test, 100)):
        random = np.random.default_rng(seed)
        for kind, shape in (("images-idx3", (samples, 28, 28)), ("labels-idx1", (samples,))):
            values = random.integers(0, 10, shape, np.uint8)
            header = bytes([0, 0, 8, len(shape)]) + np.array(shape, ">u4").tobytes()
            (folder / f"{name}-{kind}-ubyte").write_bytes(header + values.tobytes())


@pytest.mark.parametrize(
    ("train", "test", "named"), [(1, 2, "train"), (2, 1, "test"), (2, 2, "train and test")]
)
def test_other_data_is_refused(
    mnist: Mnist, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: int, test: int, named: str
) -> None:
    """The folder that --data-dir named is found again without the flag."""
    data, run = tmp_path / "data", tmp_path / "run"
    write_idx(data, 2, 2) if (train, test) != (2, 2) else write_idx(data, 1, 1)
    flags = ("--recipe", "notebook", "--dataset", "idx", "--epochs", "2", "--data-dir", data, "--output", run)
    train_until(13, flags, monkeypatch)
    shutil.copytree(data, tmp_path / "moved")
    write_idx(data, train, test)
    refused = mnist("train", "--resume", "--output", run)
    refused.assert_refused("was started on other data", f"({named} images differ)", "--data-dir")
    data.rename(tmp_path / "gone")
    (tmp_path / "moved").rename(data)
    assert mnist("train", "--resume", "--output", run).code == 0


def test_other_processes_are_noted(mnist: Mnist, cut_run: Path) -> None:
    for path in checkpoint.find(cut_run / "checkpoints"):
        saved = checkpoint.load(path)
        path.unlink()
        environment = {**saved.state["environment"], "processes": 2}
        state = {**saved.state, "environment": environment}
        checkpoint.save(
            path.parent, checkpoint.Checkpoint(step=saved.step, tensors=saved.tensors, state=state)
        )
    result = mnist("train", "--resume", "--output", cut_run)
    assert result.code == 0
    assert "the run had processes 2, now 1: the weights will be equal up to rounding" in result.err
