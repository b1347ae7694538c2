"""The ONNX files: readable by engines that had no part in making them, in any operator set we offer."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from export.onnx_formats import FIRST_INT8_OPSET, FIRST_OPSET, convert_onnx
from export.torch_formats import ConversionOptions
from serve_cli.errors import InputError
from serve_cli.runtime import Predictor
from serve_cli.spec import BUNDLED_MODEL
from serve_cli.tolerance import TOLERANCES
from tests.command import Mnist
from tests.conftest import CALIBRATION
from trainer.data import Dataset
from trainer.model import MLP, DeployedModel, Normalize

FILES = ("model.onnx", "model.int8.onnx")


OPENVINO = """
import sys
import numpy, openvino
model, images, batch_size, logits = sys.argv[1:]
core = openvino.Core()
core.set_property("CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})
model = core.compile_model(core.read_model(model), "CPU")
images = numpy.load(images)
parts = range(0, len(images), int(batch_size))
parts = [model({"image": images[start : start + int(batch_size)]})["logits"].copy() for start in parts]
numpy.save(logits, numpy.concatenate(parts))
"""
"""OpenVINO, an engine that shares no code with onnxruntime, is a program of its own here: it gives the main
thread another stack for signals and frees it later, after which any signal ends the process."""


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed")
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("batch_size", [1, 7, 256])
def test_openvino_gives_the_same_answers(
    tmp_path: Path, mnist5k: Dataset, file: str, batch_size: int
) -> None:
    """Of the model in the package, whose bytes are the same on every machine."""
    model = BUNDLED_MODEL / file
    images = mnist5k.test.images.numpy()
    np.save(tmp_path / "images.npy", images)
    subprocess.run(
        [sys.executable, "-c", OPENVINO]
        + [str(part) for part in (model, tmp_path / "images.npy", batch_size, tmp_path / "logits")],
        env=os.environ | {"OPENVINO_TELEMETRY_OPT_OUT": "1"},
        check=True,
    )
    expected = Predictor(model).predict(images)
    logits = np.load(tmp_path / "logits.npy")
    tolerance = TOLERANCES["onnx" if file == "model.onnx" else "onnx-int8"]
    outputs = (expected.logits, expected.probabilities)
    assert tolerance.worst((logits, expected.probabilities), outputs).share <= 1
    assert (logits.argmax(axis=1) != expected.logits.argmax(axis=1)).sum() == 0


@pytest.mark.parametrize("opset", [FIRST_OPSET, FIRST_INT8_OPSET, 23, onnx.defs.onnx_opset_version()])
def test_every_opset_is_written_proven_and_run_or_refused(
    run_directory: Path, tmp_path: Path, mnist: Mnist, opset: int
) -> None:
    for name, file in zip(("onnx", "onnx-int8"), FILES, strict=True):
        output = tmp_path / name
        result = mnist("export", run_directory, "--format", name, "--opset", opset, "--output", output)
        if result.code == 0:
            model = onnx.load(output / file)
            assert [(item.domain, item.version) for item in model.opset_import] == [("", opset)]
        else:
            assert result.code == 2, result
            last = result.err.splitlines()[-1]
            assert last.startswith(
                (f"mnist: --opset {opset} cannot be", f"mnist: --opset is {opset}, {name} takes")
            )
            assert not output.exists()


def test_an_exporter_that_writes_another_opset_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's own does so, silently, where it cannot write the one asked for."""
    genuine = torch.onnx.export

    def other(*arguments: Any, opset_version: int, **keywords: Any) -> Any:
        return genuine(*arguments, opset_version=20, **keywords)

    monkeypatch.setattr(torch.onnx, "export", other)
    model = DeployedModel(MLP((4,)), Normalize(0.5, 0.5)).eval()
    with pytest.raises(InputError, match="--opset 21 cannot be written, the exporter made it 20"):
        convert_onnx(model, ConversionOptions(opset=21, calibration_images=np.zeros(0, np.uint8)))


@pytest.mark.parametrize("file", FILES)
def test_a_calibration_adds_one_division_and_nothing_else(
    artifact: Path, calibrated: Path, file: str
) -> None:
    plain, graph = (onnx.load(folder / file).graph for folder in (artifact, calibrated))
    *_, division, softmax = graph.node
    assert (division.op_type, list(division.input)) == ("Div", ["logits", "temperature"])
    temperature = next(item for item in graph.initializer if item.name == "temperature")
    assert numpy_helper.to_array(temperature) == np.float32(CALIBRATION["temperature"])
    assert list(softmax.input) == list(division.output)
    softmax.input[0] = "logits"
    graph.node.remove(division)
    graph.initializer.remove(temperature)
    assert graph.SerializeToString(deterministic=True) == plain.SerializeToString(deterministic=True)


def test_the_quantized_weights_are_bytes(artifact: Path) -> None:
    """Unsigned: with signed ones, sums saturate on processors without VNNI."""
    model = onnx.load(artifact / "model.int8.onnx")
    types = {item.name: item.data_type for item in model.graph.initializer if item.dims and item.dims[0] > 1}
    weights = {name: types[name] for name in types if name.endswith("weight_quantized")}
    assert len(weights) == 3
    assert set(weights.values()) == {onnx.TensorProto.UINT8}


@pytest.mark.parametrize("file", FILES)
def test_onnx_says_in_its_own_words_what_the_input_is(artifact: Path, file: str) -> None:
    model = onnx.load(artifact / file)
    metadata = {item.key: item.value for item in model.metadata_props}
    assert metadata["Image.BitmapPixelFormat"] == "Gray8"
    assert metadata["Image.NominalPixelRange"] == "NominalRange_0_255"
    assert metadata["Image.ColorSpaceGamma"] == "SRGB"
    assert metadata["model_license"] == "unspecified"
    image = model.graph.input[0].type
    assert image.denotation == "IMAGE"
    assert [dim.denotation for dim in image.tensor_type.shape.dim] == [
        "DATA_BATCH",
        "DATA_FEATURE",
        "DATA_FEATURE",
    ]
    onnx.checker.check_model(model, full_check=True)


def test_the_test_vectors_are_real_digits_with_pytorchs_answers(artifact: Path, mnist5k: Dataset) -> None:
    """Read as the ONNX project's own test runner reads them: a file an input, a file an output, in order."""
    folder = artifact / "test_data_set_0"
    tensors = {path.name: onnx.load_tensor(path) for path in folder.iterdir()}
    graph = onnx.load(artifact / "model.onnx").graph
    names = [value.name for value in (*graph.input, *graph.output)]
    files = ["input_0.pb", "output_0.pb", "output_1.pb"]
    assert [tensors.pop(file).name for file in files] == names
    assert not tensors
    images, logits, probabilities = (numpy_helper.to_array(onnx.load_tensor(folder / file)) for file in files)
    assert images.shape == (20, 28, 28)
    known = {
        image.tobytes(): int(label)
        for image, label in zip(mnist5k.test.images.numpy(), mnist5k.test.labels.numpy(), strict=True)
    }
    assert [known[image.tobytes()] for image in images] == [label for label in range(10) for _ in range(2)]
    assert (logits.argmax(axis=1) == [known[image.tobytes()] for image in images]).mean() > 0.8
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)


def test_the_licence_is_what_was_said(run_directory: Path, tmp_path: Path, mnist: Mnist) -> None:
    assert mnist("export", run_directory, "--license", "CC-BY-4.0", "--output", tmp_path / "out").code == 0
    assert Predictor(tmp_path / "out" / "model.onnx").contract.license == "CC-BY-4.0"
    assert "license: CC-BY-4.0\n" in (tmp_path / "out" / "MODEL_CARD.md").read_text()
