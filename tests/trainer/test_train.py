"""A whole run as users start it: what it prints, what it leaves, and what it refuses."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from serve_cli import process
from serve_cli.metrics import calibration_error
from tests.command import Mnist
from tests.trainer.launch import ENVIRONMENT, command, launch
from trainer import checkpoint, loop
from trainer.calibrate import calibrate
from trainer.data import Dataset, hold_out
from trainer.learner import Learner
from trainer.main import app
from trainer.model import MLP, Normalize
from trainer.run import describe_calibration

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
        "confusion.png",
        "mistakes.png",
        "checkpoints",
        ".lock",
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
    test = json.loads((run_directory / "report.json").read_text())["test"]
    # The tutorial validates on the test set.
    validation = {name: test[name] for name in ("accuracy", "loss", "samples")}
    assert epochs[-1]["validation"] == pytest.approx(validation, rel=1e-12)


def test_the_weights_are_a_plain_state_dict(run_directory: Path) -> None:
    state = torch.load(run_directory / "mnist_model.pth", weights_only=True)
    assert list(state) == list(MLP().state_dict())
    assert all(tensor.device.type == "cpu" for tensor in state.values())


@pytest.mark.parametrize("name", ["samples.png", "losses.png", "confusion.png", "mistakes.png"])
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
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == [
        "step-00000010",
        "step-00000020",
    ]
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


def test_a_run_calibrates_on_what_it_held_out(mnist: Mnist, tmp_path: Path, mnist5k: Dataset) -> None:
    flags = ("--recipe", "fast", "--dataset", "mnist5k", "--epochs", "2")
    result = mnist("train", *flags, "--output", tmp_path / "run")
    assert result.code == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())

    net, normalize = MLP(), Normalize(0.1307, 0.3081)
    net.load_state_dict(torch.load(tmp_path / "run" / "mnist_model.pth"))
    _, held_out = hold_out(mnist5k.train, 0.1)
    with torch.inference_mode():
        held_out_logits, logits = (net(normalize(split.images)).numpy() for split in (held_out, mnist5k.test))
    calibration = calibrate(held_out_logits, held_out.labels.numpy())
    assert report["calibration"] == calibration
    assert calibration["temperature"] != 1

    # The loss is the net's own, the calibration error that of what users see.
    temperature, labels = calibration["temperature"], mnist5k.test.labels.numpy()
    loss = torch.nn.functional.cross_entropy(torch.tensor(logits), mnist5k.test.labels)
    assert report["test"]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert report["test"]["calibration_error"] == pytest.approx(
        calibration_error(logits / temperature, labels), abs=1e-5
    )
    assert describe_calibration(calibration) in result.out.splitlines()


def test_the_test_set_calibrates_nothing(run_directory: Path) -> None:
    assert json.loads((run_directory / "report.json").read_text())["calibration"] is None


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
    assert "training diverged: the loss of step 2 (epoch 1) is " in result.err
    assert "lower --lr; there is no checkpoint yet, so nothing is kept" in result.err
    assert list(tmp_path.iterdir()) == []


def test_a_training_that_diverges_late_keeps_its_last_good_checkpoint(
    mnist: Mnist, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn = loop.learn

    def poisoned(learner: Learner, *arguments: Any) -> Tensor:
        if learner.step == 13:
            with torch.no_grad():
                learner.net.fc1.weight[0, 0] = torch.nan
        return learn(learner, *arguments)

    monkeypatch.setattr(loop, "learn", poisoned)
    result = mnist("train", *QUICK, "--checkpoint-every", "2", "--output", tmp_path / "run")
    assert result.code == 1
    assert "the loss of step 14 (epoch 2) is nan, at learning rate 0.001" in result.err
    assert f"the last checkpoint is {tmp_path / 'run' / 'checkpoints' / 'step-00000012'}" in result.err


def test_weights_that_are_no_numbers_are_not_saved(
    mnist: Mnist, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last step before a checkpoint breaks them, so no loss has shown it yet."""
    update = Learner.update

    def poisoned(learner: Learner) -> None:
        update(learner)
        if learner.step == 4:
            learner.net.fc1.bias.data[0] = torch.inf

    monkeypatch.setattr(Learner, "update", poisoned)
    result = mnist("train", *QUICK, "--checkpoint-every", "2", "--output", tmp_path / "run")
    assert result.code == 1
    assert "after step 4 some weights are not finite" in result.err
    assert "step-00000002, --resume goes on there" in result.err


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
    result = launch(2, "trainer.main", *QUICK, "--output", run_directory)
    assert result.returncode != 0
    assert result.stderr.count("holds a finished run") == 1
    assert "Connection closed" not in result.stderr
    assert "exitcode  : 2" in result.stderr


def test_processes_that_mnist_starts_train_together(mnist: Mnist, tmp_path: Path) -> None:
    """On a machine without a GPU too, where a plain launch would train twice alone."""
    flags = [*QUICK, "--batch-size", "70"]  # odd shares, and a ragged last batch
    command = [sys.executable, "-m", "serve_cli.app", "train", *flags, "--num-processes"]
    two = subprocess.run(
        [*command, "2", "--output", tmp_path / "two"], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert two.returncode == 0, two.stderr
    assert two.stderr == ""
    assert two.stdout.count("Epoch 1/2") == 1  # one process speaks
    assert mnist("train", *flags, "--output", tmp_path / "one").code == 0
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("one", "two")]
    assert [report["train"]["processes"] for report in reports] == [1, 2]
    assert reports[0]["test"]["samples"] == reports[1]["test"]["samples"] == 1000
    for part, name in (("test", "accuracy"), ("test", "loss"), ("train", "loss")):
        assert reports[0][part][name] == pytest.approx(reports[1][part][name], rel=1e-4)
    states = [torch.load(tmp_path / name / "mnist_model.pth") for name in ("one", "two")]
    for key in states[0]:
        torch.testing.assert_close(states[0][key], states[1][key], rtol=1e-4, atol=1e-5)

    again = subprocess.run(
        [*command, "2", "--output", tmp_path / "two"], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert again.returncode == 2  # the exit code of the processes, and their line alone
    assert again.stderr.startswith("trainer.main: ")
    assert len(again.stderr.splitlines()) == 1


LONG = (*QUICK[:-2], "--epochs", "100000", "--checkpoint-every", "50")


@contextlib.contextmanager
def started(command: Sequence[str | Path]) -> Iterator["subprocess.Popen[str]"]:
    """Start a training whose first epoch is over when the block begins, and see that no process is left."""
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline().startswith("Epoch 1/")
        yield child
        child.kill()


def ranks(output: Path) -> list[int]:
    """The processes that train into `output`, launchers not among them."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_text().split("\0")
                if str(output) in line and line[1:4] == ["-u", "-m", "trainer.main"]:
                    found.append(int(entry.name))
    return found


def wait_for_none(output: Path, seconds: float) -> list[int]:
    """Give the processes of a run some time to end; return those that are left."""
    end = time.monotonic() + seconds
    while ranks(output) and time.monotonic() < end:
        time.sleep(0.05)
    return ranks(output)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_stops(mnist: Mnist, tmp_path: Path, number: signal.Signals, code: int) -> None:
    output = tmp_path / "run"
    with started([sys.executable, "-m", "serve_cli.app", "train", *LONG, "--output", output]) as child:
        child.send_signal(number)
        assert child.wait(timeout=30) == code
        assert child.stderr is not None
        (line,) = child.stderr.read().splitlines()
    found, _ = checkpoint.newest(output / "checkpoints")
    assert found is not None
    assert f"stopped by {number.name} after step {found.step}" in line
    assert f"{checkpoint.folder_name(found.step)}, --resume goes on there" in line
    mnist("train", *LONG, "--output", output).assert_refused("an unfinished run")


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_signal_reaches_the_processes_that_mnist_starts(tmp_path: Path, processes: str) -> None:
    output = tmp_path / "run"
    command = [sys.executable, "-m", "serve_cli.app", "train", *LONG, "--num-processes", processes]
    with started([*command, "--output", output]) as child:
        child.send_signal(signal.SIGTERM)
        assert child.wait(timeout=60) == 143
        assert child.stderr is not None
        assert "stopped by SIGTERM after step" in child.stderr.read()
    assert wait_for_none(output, 0) == []


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("victim", ["rank", "launcher"])
def test_no_process_outlives_its_group(tmp_path: Path, victim: str) -> None:
    """One of two processes is killed: the job ends. The launcher is killed: they end."""
    output = tmp_path / "run"
    with started(command(2, "trainer.main", *LONG, "--output", output)) as launcher:
        assert len(ranks(output)) == 2
        while not list((output / "checkpoints").glob("step-*")):
            time.sleep(0.01)  # it is written while training goes on
        os.kill(ranks(output)[-1] if victim == "rank" else launcher.pid, signal.SIGKILL)
        assert wait_for_none(output, 10) == []
        assert launcher.wait(timeout=10) != 0
    assert checkpoint.newest(output / "checkpoints")[0] is not None


def test_two_runs_into_one_folder(mnist: Mnist, tmp_path: Path) -> None:
    output = tmp_path / "run"
    with started([sys.executable, "-m", "serve_cli.app", "train", *LONG, "--output", output]) as child:
        for flag in ("--resume", "--overwrite"):
            mnist("train", *LONG, "--output", output, flag).assert_refused(f"process {child.pid} trains into")


def test_curves_for_tensorboard(mnist: Mnist, tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    flags = ("train", *QUICK, "--tracker", "tensorboard", "--output", tmp_path / "run")
    assert mnist(*flags).code == 0
    curves = event_accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    curves.Reload()
    epochs = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = curves.Scalars("train/loss")
    assert [event.step for event in losses] == [10, 20]
    assert [event.value for event in losses] == pytest.approx([epoch["train_loss"] for epoch in epochs])
    steps = curves.Scalars("train/step_loss")
    assert [event.step for event in steps] == list(range(1, 21))
    assert sum(event.value for event in steps[:10]) / 10 == pytest.approx(epochs[0]["train_loss"], rel=1e-5)
    mnist(*flags[:-2], "--output", tmp_path / "run").assert_refused("a finished run")
    assert mnist(*flags, "--overwrite").code == 0


def test_bfloat16(mnist: Mnist, tmp_path: Path) -> None:
    """The net learns, with other bits, and what is saved is float32 all the same."""
    assert mnist("train", *QUICK, "--output", tmp_path / "no").code == 0
    command = [sys.executable, "-m", "serve_cli.app", "train", *QUICK, "--mixed-precision", "bf16"]
    subprocess.run([*command, "--output", tmp_path / "bf16"], check=True, capture_output=True)
    states = [torch.load(tmp_path / precision / "mnist_model.pth") for precision in ("no", "bf16")]
    assert states[1]["fc1.weight"].dtype == torch.float32
    assert not torch.equal(states[0]["fc1.weight"], states[1]["fc1.weight"])
    torch.testing.assert_close(states[0]["fc1.weight"], states[1]["fc1.weight"], rtol=0, atol=0.02)


# Bad input.


def test_an_output_that_exists(mnist: Mnist, run_directory: Path, tmp_path: Path) -> None:
    before = (run_directory / "mnist_model.pth").read_bytes()
    mnist("train", *QUICK, "--output", run_directory).assert_refused(
        str(run_directory), "holds a finished run", "--overwrite"
    )
    assert (run_directory / "mnist_model.pth").read_bytes() == before
    (tmp_path / "thesis.txt").write_text("precious")
    mnist("train", *QUICK, "--output", tmp_path, "--overwrite").assert_refused("not ours to write into")
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_overwrite_replaces_a_run(mnist: Mnist, tmp_path: Path) -> None:
    for seed in ("1", "2"):
        assert mnist("train", *QUICK, "--seed", seed, "--output", tmp_path / "run", "--overwrite").code == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["seed"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_an_output_that_cannot_be_written(mnist: Mnist, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    mnist("train", *QUICK, "--output", tmp_path / "file" / "run").assert_refused("cannot write to")
    mnist("train", *QUICK, "--output", tmp_path / "file").assert_refused("is no folder")


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (("--dataset", "cifar"), ("--dataset is cifar", "mnist5k")),
        (("--recipe", "slow"), ("--recipe is slow", "notebook")),
        (("--colour",), ("--colour", "--help")),
        (("--resume", "--overwrite"), ("give one of them",)),
        (("--tracker", "wandb"), ("--tracker is wandb", "tensorboard")),
        (("--checkpoint-every", "0"), ("--checkpoint-every",)),
        (("--mixed-precision", "fp16"), ("--mixed-precision is fp16", "bf16")),
        (("--recipe", "notebook", "--patience", "3"), ("the test set chooses nothing",)),
        (("--epochs", "0"), ("--epochs is 0",)),
        (("--epochs", "many"), ("--epochs", "--help")),
        (("--hidden", "a,b"), ("--hidden is 'a,b'",)),
        (
            ("--recipe", "fast", "--dataset", "mnist5k", "--limit", "2"),
            ("--validation-fraction 0.1", "--limit"),
        ),
        (("--accumulate", "1000"), ("--accumulate is 1000", "--batch-size")),
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
    command = [
        sys.executable,
        "-m",
        "serve_cli.app",
        "train",
        *QUICK,
        "--batch-size",
        "1",
        "--output",
        tmp_path / "run",
    ]
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
