"""The model in the package: whole, small, and as good as README says."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serve_cli.model_file import read_contract
from serve_cli.spec import BUNDLED_MODEL, MODEL_FILES, ONNX_FORMATS, floor_of
from serve_cli.verify import verify_artifact
from tests.command import Mnist
from trainer.config import TrainConfig
from trainer.data import Dataset

FILES = tuple(BUNDLED_MODEL / MODEL_FILES[name].name for name in ONNX_FORMATS)
LEAST_ACCURACY = 0.992


def test_hashes_contracts_and_test_vectors_hold() -> None:
    verify_artifact(BUNDLED_MODEL)


def test_it_is_small() -> None:
    assert sum(path.stat().st_size for path in BUNDLED_MODEL.rglob("*")) < 750_000


@pytest.mark.parametrize("path", FILES, ids=ONNX_FORMATS)
def test_it_says_how_it_was_made(path: Path) -> None:
    contract = read_contract(path)
    config = TrainConfig(**{**contract.training["config"], "hidden": (128, 64)})
    assert config == TrainConfig.from_recipe("best", seed=config.seed)
    assert contract.training["dataset"] == "mnist"
    assert contract.license == "MIT"
    assert 0 < floor_of(contract.calibration) < 1
    assert contract.evaluation["accuracy"] >= LEAST_ACCURACY


def test_it_is_what_infer_takes_without_being_told(mnist: Mnist, digit_png: Path) -> None:
    assert mnist("infer", digit_png).out == mnist("infer", digit_png, "--model", BUNDLED_MODEL).out


def test_pngs_go_in_and_right_labels_come_out(mnist: Mnist, full_mnist: Dataset, tmp_path: Path) -> None:
    for number, image in enumerate(full_mnist.test.images.numpy()):
        Image.fromarray(image).save(tmp_path / f"{number:05}.png")
    truth = full_mnist.test.labels.numpy()
    accuracy = {}
    for path in FILES:
        lines = mnist("infer", tmp_path, "--model", path, "--json").out.splitlines()
        answers = [json.loads(line) for line in lines]
        assert len(answers) == len(truth)
        assert np.mean([answer["label"] is None for answer in answers]) < 0.01
        accuracy[path] = np.mean([answer["best_guess"] for answer in answers] == truth)
    float32, int8 = accuracy.values()
    assert float32 >= LEAST_ACCURACY
    assert abs(float32 - int8) <= 0.001
