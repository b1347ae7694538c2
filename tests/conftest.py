"""What several test modules share: data, a trained run, its artifact, and the command in this process."""

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.main import ALL
from serve_cli import app
from tests.command import Mnist, Result
from trainer.data import MNIST_FILES, Dataset, load_dataset
from trainer.train import Options, train

MNIST_DATA_DIR = os.environ.get("MNIST_DATA_DIR", "")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # so shells start what runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def mnist(capfd: pytest.CaptureFixture[str]) -> Mnist:
    """The `mnist` command, called in this process."""

    def call(*arguments: object) -> Result:
        capfd.readouterr()
        code = app.find([str(argument) for argument in arguments])()
        return Result(code, *capfd.readouterr())

    return call


@pytest.fixture(scope="session")
def mnist5k() -> Dataset:
    return load_dataset("mnist5k", None)


@pytest.fixture(scope="session")
def full_mnist() -> Dataset:
    """The whole of MNIST; tests that need it are skipped where it is not at hand."""
    raw = Path(MNIST_DATA_DIR, "MNIST", "raw")
    if not MNIST_DATA_DIR or any(not (raw / name).is_file() for name in MNIST_FILES):
        pytest.skip("needs the full MNIST: MNIST_DATA_DIR does not name a folder that holds it")
    return load_dataset("mnist", Path(MNIST_DATA_DIR))


@pytest.fixture(scope="session")
def run_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the notebook recipe on mnist5k, exported to all formats; read both, never change them."""
    output = tmp_path_factory.mktemp("runs") / "notebook"
    train({"recipe": "notebook", "dataset": "mnist5k"}, Options(output=output))
    command = ["export", str(output), "--format", ALL, "--output", str(output.parent / "artifact")]
    assert app.find(command)() == 0
    return output


@pytest.fixture(scope="session")
def artifact(run_directory: Path) -> Path:
    """All formats of that run, proven; read it, never change it."""
    return run_directory.parent / "artifact"


CALIBRATION = {
    "temperature": 1.5,
    "min_confidence": 0.8,
    "error_rate": 0.01,
    "validation": {
        "samples": 400,
        "refused": 0.125,
        "errors": 3,
        "calibration_error_before": 0.03,
        "calibration_error_after": 0.01,
    },
}


@pytest.fixture(scope="session")
def calibrated_run(run_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, as if it had found CALIBRATION; read it, never change it."""
    run = Path(shutil.copytree(run_directory, tmp_path_factory.mktemp("runs") / "calibrated"))
    report = json.loads((run / "report.json").read_text())
    (run / "report.json").write_text(json.dumps({**report, "calibration": CALIBRATION}))
    return run


@pytest.fixture(scope="session")
def calibrated(calibrated_run: Path) -> Path:
    """All formats of the calibrated run, proven; read it, never change it."""
    output = calibrated_run.parent / "artifact"
    command = ["export", str(calibrated_run), "--format", ALL, "--output", str(output)]
    assert app.find(command)() == 0
    return output


@pytest.fixture(scope="session")
def digit(mnist5k: Dataset) -> np.ndarray:
    """A genuine 7 that every sensible model reads, uint8 [28, 28]."""
    sevens = mnist5k.train.images[mnist5k.train.labels == 7]
    return sevens[1].numpy()


@pytest.fixture
def digit_png(digit: np.ndarray, tmp_path: Path) -> Path:
    path = tmp_path / "digit.png"
    Image.fromarray(digit).save(path)
    return path
