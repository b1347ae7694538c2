"""A whole run as users start it: what it prints, what it leaves, and how it ends when something fails."""

import contextlib
import json
import os
import subprocess
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from serve_cli import process
from serve_cli.metrics import calibration_error
from tests.command import Mnist
from tests.trainer.runs import (
    MNIST_TRAIN,
    QUICK,
    assert_same_weights,
    checkpoint_steps,
    epochs,
    finish,
    report,
    weights,
)
from trainer import checkpoint, plots
from trainer import train as training
from trainer.calibrate import calibrate
from trainer.data import Dataset, train_val_split
from trainer.main import app
from trainer.model import MLP, Normalize
from trainer.train import Run, TrainState

PICTURES = {"samples.png", "losses.png", "confusion.png", "mistakes.png"}
FAST = ("train", "--recipe", "fast", "--dataset", "mnist5k")


def predict(run: Path, images: Tensor) -> np.ndarray:
    """Logits of uint8 `images` by the weights of `run`."""
    config = json.loads((run / "config.json").read_text())
    net = MLP(tuple(config["hidden"]))
    net.load_state_dict(weights(run))
    with torch.inference_mode():
        return net(Normalize(config["mean"], config["std"])(images)).numpy()


def test_what_a_run_prints_and_leaves(mnist: Mnist, mnist5k: Dataset, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = mnist("train", "--recipe", "notebook", "--dataset", "mnist5k", "--output", run)
    assert result.code == 0
    *lines, test, speed, place = result.out.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"Epoch {number}/5" for number in range(1, 6)]
    assert test.startswith("Test Accuracy: ")
    assert speed.endswith(" in 1 process on cpu")
    assert place == f"Run directory: {run}"
    start = "recipe notebook, mnist5k (4,000 images), 1 process on cpu, float32, 1 thread"
    assert result.err == f"mnist train: {start}; run directory {run}\n"

    files = {"config.json", "local.json", "metrics.jsonl", "report.json", "mnist_model.pth"}
    assert {path.name for path in run.iterdir()} == {*files, *PICTURES, "checkpoints", ".lock"}
    assert checkpoint_steps(run) == [252, 315]
    config = json.loads((run / "config.json").read_text())
    assert (config["recipe"], config["dataset"], config["epochs"]) == ("notebook", "mnist5k", 5)
    for name in ("config.json", "metrics.jsonl", "report.json"):  # what is exported names no folder
        assert str(tmp_path) not in (run / name).read_text()

    found = report(run)
    assert 0.85 < found["test"]["accuracy"] < 0.98  # 4,000 digits teach no more
    assert found["test"]["samples"] == 1000
    assert found["calibration"] is None  # the test set chooses nothing
    assert found["dataset"] == {
        "name": "mnist5k",
        "labels": list(range(10)),
        "train_sha256": mnist5k.train.sha256,
    }
    assert found["parameters"] == 109_386
    for name in ("accelerate", "numpy", "torch"):
        assert found["versions"][name].split("+")[0] == version(name).split("+")[0]
    train = found["train"]
    assert (train["samples"], train["processes"], train["device"]) == (4000, 1, "cpu")
    assert train["images_per_second"] == pytest.approx(20000 / train["seconds"])

    metrics = epochs(run)
    assert [epoch["number"] for epoch in metrics] == [1, 2, 3, 4, 5]
    assert metrics[0]["train_loss"] > metrics[-1]["train_loss"] == train["loss"]
    validation = {name: found["test"][name] for name in ("accuracy", "loss", "samples")}
    assert metrics[-1]["validation"] == pytest.approx(validation, rel=1e-12)  # as in the tutorial

    state = weights(run)
    assert list(state) == list(MLP().state_dict())
    right = predict(run, mnist5k.test.images).argmax(axis=1) == mnist5k.test.labels.numpy()
    assert found["test"]["accuracy"] == right.mean()
    for name in PICTURES:
        with Image.open(run / name) as image:
            assert min(image.size) > 100


def test_a_recipe_that_validates_leaves_the_test_set_alone_and_calibrates(
    mnist: Mnist, mnist5k: Dataset, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    result = mnist(*FAST, "--epochs", "2", "--hidden", "32", "--output", run)
    assert result.code == 0
    found = report(run)
    assert (found["train"]["samples"], found["test"]["samples"]) == (3600, 1000)
    assert found["parameters"] == 784 * 32 + 32 + 32 * 10 + 10

    _, validation = train_val_split(mnist5k.train, 0.1)
    assert epochs(run)[-1]["validation"]["samples"] == len(validation) == 400
    calibration = calibrate(predict(run, validation.images), validation.labels.numpy())
    assert found["calibration"] == calibration
    assert calibration["temperature"] != 1

    # The loss is the net's own, the calibration error that of what users see.
    logits, labels = predict(run, mnist5k.test.images), mnist5k.test.labels
    loss = torch.nn.functional.cross_entropy(torch.tensor(logits), labels)
    assert found["test"]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    error = calibration_error(logits / calibration["temperature"], labels.numpy())
    assert found["test"]["calibration_error"] == pytest.approx(error, abs=1e-5)
    (line,) = [line for line in result.out.splitlines() if "confidence" in line]
    refused, wrong = calibration["validation"]["refused"], calibration["validation"]["errors"]
    answered = 400 - round(400 * refused)
    assert line == (
        f'Predictions below {calibration["min_confidence"]:.1%} confidence are "not sure": {refused:.1%} of '
        f"the 400 validation images. Of the other {answered}, {wrong} are wrong."
    )


def test_the_module_and_the_command_are_the_same_program(tmp_path: Path) -> None:
    """Accelerate starts the module. Nothing of a notebook's matplotlib matters to the command."""
    assert process.run(app, "mnist train", [*QUICK, "--output", str(tmp_path / "module")]) == 0
    command = (*MNIST_TRAIN, *QUICK, "--output", tmp_path / "command")
    result = finish(command, MPLBACKEND="module://matplotlib_inline.backend_inline")
    assert (result.returncode, len(result.stderr.splitlines())) == (0, 1)
    assert_same_weights(tmp_path / "module", tmp_path / "command")
    assert {path.name for path in (tmp_path / "command").iterdir()} >= PICTURES


def test_the_notebook_recipe_reaches_96_per_cent(full_mnist: Dataset, mnist: Mnist, tmp_path: Path) -> None:
    assert mnist("train", "--recipe", "notebook", "--output", tmp_path / "run").code == 0
    found = report(tmp_path / "run")
    assert (found["train"]["samples"], found["test"]["samples"]) == (60000, len(full_mnist.test))
    assert 0.96 <= found["test"]["accuracy"] < 0.98  # above that something has leaked


def test_bfloat16_trains_and_the_report_is_that_of_the_float32_net(mnist5k: Dataset, tmp_path: Path) -> None:
    """In processes of their own: Accelerate has one precision a process."""
    for precision in ("no", "bf16"):
        command = (*MNIST_TRAIN, *QUICK, "--mixed-precision", precision, "--output", tmp_path / precision)
        result = finish(command)
        assert result.returncode == 0, result.stderr
        assert ("bfloat16" if precision == "bf16" else "float32") in result.stderr
    plain, mixed = (weights(tmp_path / precision)["fc1.weight"] for precision in ("no", "bf16"))
    assert mixed.dtype == torch.float32
    assert not torch.equal(plain, mixed)
    torch.testing.assert_close(plain, mixed, rtol=0, atol=0.02)
    logits, labels = predict(tmp_path / "bf16", mnist5k.test.images), mnist5k.test.labels
    found = report(tmp_path / "bf16")["test"]
    assert found["accuracy"] == (logits.argmax(axis=1) == labels.numpy()).mean()
    loss = torch.nn.functional.cross_entropy(torch.tensor(logits), labels).item()
    assert found["loss"] == pytest.approx(loss, rel=1e-6)


def test_patience_keeps_the_best_weights_and_their_losses(
    mnist: Mnist, mnist5k: Dataset, tmp_path: Path
) -> None:
    """A learning rate far too high: the validation loss soon gets no lower."""
    flags = ("--limit", "600", "--schedule", "constant", "--lr", "0.02", "--epochs", "60", "--patience", "3")
    run = tmp_path / "run"
    assert mnist(*FAST, *flags, "--weight-decay", "0", "--output", run).code == 0
    best = min(epochs(run), key=lambda epoch: epoch["validation"]["loss"])
    assert best["number"] + 3 == len(epochs(run)) < 60
    assert report(run)["train"]["loss"] == best["train_loss"]
    _, validation = train_val_split(mnist5k.train.take(torch.arange(600)), 0.1)
    logits = torch.tensor(predict(run, validation.images)).double()
    loss = torch.nn.functional.cross_entropy(logits, validation.labels).item()
    assert loss == pytest.approx(best["validation"]["loss"], rel=1e-6)


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_the_progress_bar_goes_to_the_terminal_and_the_lines_to_the_file(tmp_path: Path) -> None:
    import termios

    terminal, stderr = os.openpty()
    termios.tcsetwinsize(terminal, (24, 110))
    command = [*MNIST_TRAIN, *QUICK, "--batch-size", "1", "--output", tmp_path / "run"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as child:
        os.close(stderr)
        drawn = b""
        with contextlib.suppress(OSError):  # the terminal's end of file
            while piece := os.read(terminal, 1000):
                drawn += piece
        assert child.stdout is not None
        lines = child.stdout.read().splitlines()
    os.close(terminal)
    assert child.returncode == 0
    assert lines[0].startswith("Epoch 1/2, Train Loss: ")
    assert b"images/s" in drawn
    assert b"loss " in drawn
    assert b"Train Loss" not in drawn


# What fails.


@pytest.mark.parametrize("redirection", ["| head -n 1", "> /dev/full", ">&-"])
def test_a_run_survives_its_output(tmp_path: Path, redirection: str) -> None:
    command = f"{' '.join(MNIST_TRAIN)} {' '.join(QUICK)} --output {tmp_path / 'run'} {redirection}"
    result = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert "Traceback" not in result.stderr
    assert (tmp_path / "run" / "report.json").exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("a bug in a font")])
def test_a_picture_that_fails_is_one_warning_and_the_run_is_complete(
    mnist: Mnist, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*arguments: object) -> None:
        assert report(tmp_path / "run")["test"]["samples"] == 1000
        raise error

    monkeypatch.setattr(plots, "draw_samples", fail)
    result = mnist("train", *QUICK, "--output", tmp_path / "run")
    assert result.code == 0
    _, warning = result.err.splitlines()
    assert "a picture could not be drawn" in warning
    assert str(error) in warning
    assert weights(tmp_path / "run")


def test_a_training_that_does_not_learn_is_warned_about(mnist: Mnist, tmp_path: Path) -> None:
    result = mnist("train", *QUICK, "--lr", "100", "--output", tmp_path / "run")
    assert result.code == 0
    assert result.err.count("the net does not learn") == 2
    assert "lower --lr" in result.err


def test_a_training_that_diverges_stops(mnist: Mnist, tmp_path: Path) -> None:
    result = mnist("train", *QUICK, "--lr", "1e30", "--output", tmp_path / "run")
    assert result.code == 1
    _, error = result.err.splitlines()
    assert "training diverged: the loss of step 2 (epoch 1) is " in error
    assert "at learning rate 1e+30; lower --lr; there is no checkpoint yet, so nothing is kept" in error
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def before_step(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Call a function with the training state before the step of that number, from 1."""
    train_step = training.train_step

    def set_hook(number: int, action: Callable[[TrainState], object]) -> None:
        def step(run: Run, state: TrainState, *rest: Any) -> Tensor:
            if state.step == number - 1:
                action(state)
            return train_step(run, state, *rest)

        monkeypatch.setattr(training, "train_step", step)

    return set_hook


def poison(state: TrainState) -> None:
    state.net.fc1.weight[0, 0] = torch.nan


def test_a_training_that_diverges_late_keeps_its_last_good_checkpoint(
    mnist: Mnist, tmp_path: Path, before_step: Callable[..., None]
) -> None:
    before_step(14, poison)
    result = mnist("train", *QUICK, "--checkpoint-every", "2", "--output", tmp_path / "run")
    assert result.code == 1
    assert "the loss of step 14 (epoch 2) is nan, at learning rate 0.001; lower --lr" in result.err
    assert f"the last checkpoint is {tmp_path / 'run' / 'checkpoints' / 'step-00000012'}" in result.err
    assert checkpoint_steps(tmp_path / "run") == [10, 12]


def test_weights_that_are_not_finite_are_not_saved(
    mnist: Mnist, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last step before a checkpoint breaks them, so no loss has shown it yet."""
    step = training.Optimizer.step

    def poisoned(optimizer: training.Optimizer) -> None:
        step(optimizer)
        if optimizer.step_count == 4:
            optimizer.weights[0] = torch.inf

    monkeypatch.setattr(training.Optimizer, "step", poisoned)
    result = mnist("train", *QUICK, "--checkpoint-every", "2", "--output", tmp_path / "run")
    assert result.code == 1
    assert "after step 4 some weights are not finite" in result.err
    assert checkpoint_steps(tmp_path / "run") == [2]


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes\nmore")],
)
def test_out_of_memory_is_one_line_and_leaves_the_last_checkpoint(
    mnist: Mnist, tmp_path: Path, before_step: Callable[..., None], error: Exception
) -> None:
    def fail(state: TrainState) -> None:
        raise error

    before_step(8, fail)
    result = mnist("train", *QUICK, "--checkpoint-every", "3", "--output", tmp_path / "run")
    assert result.code == 1
    _, line = result.err.splitlines()
    assert "out of memory" in line
    assert line.endswith("lower --hidden or --batch-size")
    assert checkpoint_steps(tmp_path / "run") == [3, 6]


def test_a_full_disk_stops_with_a_line_and_the_run_can_go_on(
    mnist: Mnist, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = checkpoint.save

    def full(folder: Path, saved: checkpoint.Checkpoint) -> Path:
        if saved.step == 9:
            raise OSError(28, "No space left on device", str(folder))
        return save(folder, saved)

    flags = ("train", *QUICK, "--checkpoint-every", "3", "--output", tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", full)
        result = mnist(*flags)
    assert result.code == 1
    _, line = result.err.splitlines()
    assert "No space left on device" in line
    assert mnist(*flags, "--resume").code == 0
    assert mnist("train", *QUICK, "--output", tmp_path / "whole").code == 0
    assert_same_weights(tmp_path / "run", tmp_path / "whole")


def test_an_output_that_is_not_free_is_refused(mnist: Mnist, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    refused = mnist("train", *QUICK, "--output", tmp_path, "--overwrite")
    refused.assert_refused("thesis.txt, which this program did not create")
    mnist("train", *QUICK, "--output", tmp_path / "thesis.txt" / "run").assert_refused(
        "name another --output"
    )
    mnist("train", *QUICK, "--output", tmp_path / "thesis.txt").assert_refused("is not a folder")
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_overwrite_replaces_a_run(mnist: Mnist, tmp_path: Path) -> None:
    for seed in ("1", "2"):
        assert mnist("train", *QUICK, "--seed", seed, "--output", tmp_path / "run", "--overwrite").code == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["seed"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    mnist("train", *QUICK, "--output", tmp_path / "run").assert_refused("a finished run", "--overwrite")


def test_a_training_leaves_the_arithmetic_of_its_thread_as_it_was(mnist: Mnist, tmp_path: Path) -> None:
    assert mnist("train", *QUICK, "--output", tmp_path / "run").code == 0
    assert (torch.tensor(1e-40) * 1).item() > 0, "denormal numbers are flushed to zero"
