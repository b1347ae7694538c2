"""A whole run as users start it: what it prints, what it leaves, and what it refuses."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from serve_cli import process
from tests.command import Mnist
from trainer.data import Dataset
from trainer.main import app
from trainer.model import MLP

QUICK = ("--recipe", "notebook", "--dataset", "mnist5k", "--limit", "640", "--epochs", "2")


def test_the_run_directory_is_whole(run_directory: Path, mnist5k: Dataset) -> None:
    names = {path.name for path in run_directory.iterdir()}
    assert names == {
        "config.json",
        "metrics.jsonl",
        "mnist_model.pth",
        "report.json",
        "samples.png",
        "losses.png",
    }
    config = json.loads((run_directory / "config.json").read_text())
    assert (config["recipe"], config["dataset"], config["epochs"]) == ("notebook", "mnist5k", 5)
    assert not any(str(run_directory.parent) in path.read_text() for path in run_directory.glob("*.json*"))

    report = json.loads((run_directory / "report.json").read_text())
    assert 0.85 < report["test"]["accuracy"] < 0.98  # 4,000 digits teach no more
    assert report["test"]["samples"] == 1000
    assert report["train"]["samples"] == 4000
    assert report["train"]["images_per_second"] == pytest.approx(20000 / report["train"]["seconds"])
    assert report["parameters"] == 109_386
    assert report["dataset"]["train_sha256"] == mnist5k.train.sha256()


def test_metrics_are_a_line_an_epoch(run_directory: Path) -> None:
    epochs = [json.loads(line) for line in (run_directory / "metrics.jsonl").read_text().splitlines()]
    assert [epoch["number"] for epoch in epochs] == [1, 2, 3, 4, 5]
    assert epochs[-1]["train_loss"] < epochs[0]["train_loss"]
    report = json.loads((run_directory / "report.json").read_text())
    assert epochs[-1]["validation"] == report["test"]  # the tutorial validates on the test set


def test_the_weights_are_a_plain_state_dict(run_directory: Path) -> None:
    state = torch.load(run_directory / "mnist_model.pth", weights_only=True)
    assert list(state) == list(MLP().state_dict())
    assert all(tensor.device.type == "cpu" for tensor in state.values())


@pytest.mark.parametrize("name", ["samples.png", "losses.png"])
def test_the_pictures_are_pictures(run_directory: Path, name: str) -> None:
    with Image.open(run_directory / name) as image:
        assert min(image.size) > 100
        assert len(image.convert("L").getcolors(256) or []) > 10


def test_what_a_run_prints(mnist: Mnist, tmp_path: Path) -> None:
    result = mnist("train", *QUICK, "--output", tmp_path / "run")
    assert result.code == 0
    first, second, test, speed, place = result.out.splitlines()
    assert first.startswith("Epoch 1/2, Train Loss: ")
    assert ", Val Loss: " in second
    assert test.startswith("Test Accuracy: ")
    assert speed.endswith(" in 1 process on cpu")
    assert place == f"Run directory: {tmp_path / 'run'}"
    assert result.err == ""  # no terminal, so no progress bar


def test_the_module_and_the_command_are_the_same_program(tmp_path: Path) -> None:
    flags = [*QUICK, "--output", str(tmp_path / "module")]
    assert process.run(app, "trainer.main", flags) == 0
    subprocess.run(
        [sys.executable, "-m", "serve_cli.app", "train", *QUICK, "--output", tmp_path / "command"], check=True
    )
    first, second = (torch.load(tmp_path / name / "mnist_model.pth") for name in ("module", "command"))
    for key in first:
        torch.testing.assert_close(first[key], second[key])


def test_a_recipe_that_validates_leaves_the_test_set_alone(mnist: Mnist, tmp_path: Path) -> None:
    flags = ("--recipe", "fast", "--dataset", "mnist5k", "--epochs", "1", "--hidden", "32")
    assert mnist("train", *flags, "--output", tmp_path / "run").code == 0
    epoch = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert epoch["validation"]["samples"] == 400
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["train"]["samples"] == 3600
    assert report["test"]["samples"] == 1000
    assert report["parameters"] == 784 * 32 + 32 + 32 * 10 + 10


def test_the_notebook_recipe_reaches_96_per_cent(full_mnist: Dataset, mnist: Mnist, tmp_path: Path) -> None:
    assert mnist("train", "--recipe", "notebook", "--output", tmp_path / "run").code == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["test"]["samples"] == len(full_mnist.test)
    assert report["train"]["samples"] == 60000
    assert 0.96 <= report["test"]["accuracy"] < 0.98  # above that something has leaked


def test_a_training_that_diverges_stops(mnist: Mnist, tmp_path: Path) -> None:
    result = mnist("train", *QUICK, "--lr", "1e30", "--output", tmp_path / "run")
    assert result.code == 1
    assert len(result.err.splitlines()) == 1
    assert "training diverged" in result.err
    assert "--lr" in result.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("output", ["| head -n 1", "> /dev/full", ">&-"])
def test_a_run_survives_its_output(tmp_path: Path, output: str) -> None:
    command = (
        f"{sys.executable} -m serve_cli.app train {' '.join(QUICK)} --output {tmp_path / 'run'} {output}"
    )
    result = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert "Traceback" not in result.stderr
    assert (tmp_path / "run" / "report.json").exists()


def test_two_processes_refuse_together(run_directory: Path) -> None:
    """The others learn why, instead of losing the connection to the first."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "trainer.main"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(
        [*launcher, *QUICK, "--output", run_directory], capture_output=True, text=True, env=environment
    )
    assert result.returncode != 0
    assert result.stderr.count("exists already") == 1
    assert "Connection closed" not in result.stderr
    assert "exitcode  : 2" in result.stderr


def test_two_processes_train_together(tmp_path: Path) -> None:
    """On a machine without a GPU too, where a plain launch would train twice alone."""
    flags = [*QUICK, "--batch-size", "70"]  # odd shares, and a ragged last batch
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "trainer.main"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    two = subprocess.run(
        [*launcher, *flags, "--output", tmp_path / "two"], capture_output=True, text=True, env=environment
    )
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("Epoch 1/2") == 1  # one process speaks
    one = subprocess.run(
        [sys.executable, "-m", "trainer.main", *flags, "--output", tmp_path / "one"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert one.returncode == 0, one.stderr
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("one", "two")]
    assert [report["train"]["processes"] for report in reports] == [1, 2]
    assert reports[0]["test"]["samples"] == reports[1]["test"]["samples"] == 1000
    for part, name in (("test", "accuracy"), ("test", "loss"), ("train", "loss")):
        assert reports[0][part][name] == pytest.approx(reports[1][part][name], rel=1e-4)
    states = [torch.load(tmp_path / name / "mnist_model.pth") for name in ("one", "two")]
    for key in states[0]:
        torch.testing.assert_close(states[0][key], states[1][key], rtol=1e-4, atol=1e-5)


def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "serve_cli.app", "train", "--recipe", "notebook", "--dataset", "mnist5k"]
    with subprocess.Popen(
        [*command, "--epochs", "100000", "--output", tmp_path / "run"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.readline().startswith("Epoch 1/")
        child.send_signal(signal.SIGINT)
        assert child.stderr.read() == "mnist: interrupted\n"
    assert child.returncode == 130
    assert list(tmp_path.iterdir()) == []


# Bad input.


def test_an_output_that_exists(mnist: Mnist, run_directory: Path, tmp_path: Path) -> None:
    before = (run_directory / "mnist_model.pth").read_bytes()
    mnist("train", *QUICK, "--output", run_directory).assert_refused(
        str(run_directory), "exists already", "--overwrite"
    )
    assert (run_directory / "mnist_model.pth").read_bytes() == before
    (tmp_path / "thesis.txt").write_text("precious")
    mnist("train", *QUICK, "--output", tmp_path, "--overwrite").assert_refused("not ours to replace")
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_overwrite_replaces_a_run(mnist: Mnist, tmp_path: Path) -> None:
    for seed in ("1", "2"):
        assert mnist("train", *QUICK, "--seed", seed, "--output", tmp_path / "run", "--overwrite").code == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["seed"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_an_output_that_cannot_be_written(mnist: Mnist, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    mnist("train", *QUICK, "--output", tmp_path / "file" / "run").assert_refused("cannot write to")


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (("--dataset", "cifar"), ("--dataset is cifar", "mnist5k")),
        (("--recipe", "slow"), ("--recipe is slow", "notebook")),
        (("--colour",), ("--colour", "--help")),
        (("--epochs", "0"), ("--epochs is 0",)),
        (("--epochs", "many"), ("--epochs", "--help")),
        (("--hidden", "a,b"), ("--hidden is 'a,b'",)),
        (("--recipe", "fast", "--dataset", "mnist5k", "--limit", "2"), ("--limit 2", "validate")),
    ],
)
def test_bad_flags(mnist: Mnist, tmp_path: Path, flags: tuple[str, ...], parts: tuple[str, ...]) -> None:
    mnist("train", *flags, "--output", tmp_path / "run").assert_refused(*parts)
    assert list(tmp_path.iterdir()) == []


def test_data_that_is_not_there(mnist: Mnist, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.datasets.mnist.MNIST.mirrors", [(tmp_path / "mirror").as_uri() + "/"])
    result = mnist("train", "--data-dir", tmp_path / "data", "--output", tmp_path / "run")
    assert result.code == 2
    assert result.err.splitlines()[0] == f"downloading MNIST to {tmp_path / 'data'}"
    assert "--dataset mnist5k" in result.err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_the_bar_goes_to_the_terminal_and_the_lines_to_the_file(tmp_path: Path) -> None:
    terminal, stderr = os.openpty()
    command = [sys.executable, "-m", "serve_cli.app", "train", *QUICK, "--output", tmp_path / "run"]
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
    assert b"/640" in drawn
    assert b"Train Loss" not in drawn
