"""What several test modules share: data, a trained run, its artifact, and the command in this process."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.main import ALL
from serve_cli import process
from serve_cli.app import app
from tests.command import Mnist, Result
from trainer.data import MNIST_FILES, Dataset, load_dataset
from trainer.run import Order, run

MNIST_DATA_DIR = os.environ.get("MNIST_DATA_DIR", "")


@pytest.fixture
def mnist(capfd: pytest.CaptureFixture[str]) -> Mnist:
    """The `mnist` command, called in this process."""

    def call(*arguments: object) -> Result:
        capfd.readouterr()
        code = process.run(app, "mnist", [str(argument) for argument in arguments])
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
    """A run of the notebook recipe on mnist5k; read it, never change it."""
    output = tmp_path_factory.mktemp("runs") / "notebook"
    run("notebook", {"dataset": "mnist5k"}, Order(output=output))
    return output


@pytest.fixture(scope="session")
def artifact(run_directory: Path) -> Path:
    """All formats of that run, proven; read it, never change it."""
    output = run_directory.parent / "artifact"
    assert (
        process.run(app, "mnist", ["export", str(run_directory), "--format", ALL, "--output", str(output)])
        == 0
    )
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
