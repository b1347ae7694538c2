"""Every format predicts the same; a program without a hash in an artifact.json is not opened."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from serve_cli.engine import open_engine
from serve_cli.errors import InputError
from serve_cli.runtime import Predictor
from serve_cli.spec import MODEL_FILES
from tests.command import Mnist
from tests.export.test_export import write_idx
from trainer.data import Dataset

PROGRAMS = ("model.torchscript.pt", "model.pt2")


@pytest.fixture(scope="module")
def digits(mnist5k: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_idx(tmp_path_factory.mktemp("idx") / "data", mnist5k, 500)


@pytest.mark.parametrize("name", [*(file.name for file in MODEL_FILES.values()), "mnist_model.pth"])
def test_every_engine_gives_the_same_report(
    name: str, artifact: Path, run_directory: Path, digits: Path, mnist: Mnist
) -> None:
    model = run_directory / name if name == "mnist_model.pth" else artifact / name
    found, expected = (
        json.loads(mnist("evaluate", path, "--data", digits, "--json").out)
        for path in (model, artifact / "model.onnx")
    )
    assert found["model"] == str(model)
    assert found["samples"] == expected["samples"] == 500
    if name == "model.int8.onnx":
        assert found["accuracy"] == pytest.approx(expected["accuracy"], abs=0.005)
    else:
        for figure in ("accuracy", "confusion", "classes", "accuracy_interval"):
            assert found[figure] == expected[figure]
        for figure in ("loss", "calibration_error"):
            assert found[figure] == pytest.approx(expected[figure], abs=1e-5)


def test_a_run_stands_for_its_artifact_and_without_one_for_its_weights(
    artifact: Path, run_directory: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(run_directory, tmp_path / "run"))
    assert open_engine(run).path == run / "mnist_model.pth"
    shutil.copytree(artifact, run / "artifact")
    assert open_engine(run).path == run / "artifact" / "model.onnx"


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_that_nobody_vouches_for_is_not_opened(name: str, artifact: Path, tmp_path: Path) -> None:
    assert open_engine(artifact / name).predict(np.zeros((0, 28, 28), np.uint8)).logits.shape == (0, 10)
    shutil.copy(artifact / name, tmp_path)
    with pytest.raises(InputError, match=r"no artifact\.json beside it vouches for it"):
        open_engine(tmp_path / name)


@pytest.mark.parametrize("name", [*PROGRAMS, "model.onnx", "model.int8.onnx"])
def test_a_file_with_another_hash_is_not_opened(name: str, artifact: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(artifact, tmp_path / "copy"))
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(InputError, match=r"is not the file that artifact\.json speaks of"):
        open_engine(copy / name)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")
@pytest.mark.parametrize("name", PROGRAMS)
def test_the_contract_lies_where_pytorch_looks_for_it(name: str, artifact: Path) -> None:
    found = {"mnist_toolkit.json": ""}
    if name == "model.pt2":
        torch.export.load(artifact / name, extra_files=found)
    else:
        torch.jit.load(artifact / name, _extra_files=found)
    assert json.loads(found["mnist_toolkit.json"])["labels"] == list(range(10))


def test_a_safetensors_file_is_exported_as_a_state_dict_is(
    artifact: Path, run_directory: Path, digits: Path, tmp_path: Path, mnist: Mnist
) -> None:
    state = torch.load(run_directory / "mnist_model.pth", weights_only=True)
    safetensors.torch.save_file(state, tmp_path / "net.safetensors")
    flags = ("--dataset", "mnist5k", "--output", tmp_path / "out")
    assert mnist("export", tmp_path / "net.safetensors", *flags).code == 0
    images = np.random.default_rng(0).integers(0, 256, (9, 28, 28), np.uint8)
    ours, theirs = (
        Predictor(folder / "model.onnx").predict(images) for folder in (tmp_path / "out", artifact)
    )
    np.testing.assert_array_equal(ours.logits, theirs.logits)
    report = json.loads(mnist("evaluate", tmp_path / "net.safetensors", "--data", digits, "--json").out)
    assert report["accuracy"] > 0.8
