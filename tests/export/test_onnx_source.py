"""ONNX files of other programs: whatever their input and output, the artifact answers as they do."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.onnx_source import OnnxSource
from serve_cli.runtime import Predictor
from tests.command import Mnist
from tests.conftest import CALIBRATION
from tests.export.foreign import linear_classifier, write_model, write_scikit_learn
from trainer.data import Dataset

FLAGS = ("--dataset", "mnist5k")


@pytest.fixture(scope="module")
def weights(mnist5k: Dataset) -> np.ndarray:
    return linear_classifier(mnist5k)


Build = Callable[..., Path]


@pytest.fixture
def build(weights: np.ndarray, tmp_path: Path) -> Build:
    return partial(write_model, tmp_path / "theirs.onnx", weights)


def logits_of(model: Path, images: np.ndarray) -> np.ndarray:
    return Predictor(model / "model.onnx").predict(images).logits


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"shape": ("N", 28, 28)},
        {"shape": (None, 1, 28, 28)},
        {"shape": (None, 28, 28, 1)},
        {"shape": ("N", 28, 28), "input_type": TensorProto.UINT8},
        {"input_type": TensorProto.INT64},
        {"input_type": TensorProto.DOUBLE},
        {"shape": (1, 784), "rows": 1},
        {"shape": (7, 28, 28), "rows": 7},
        {"end": "Softmax"},
        {"end": "LogSoftmax"},
        {"end": "Sigmoid"},
        {"shape": (3, 28, 28), "rows": 3, "columns": -1},
    ],
    ids=str,
)
def test_an_artifact_answers_as_the_original(
    build: Build,
    weights: np.ndarray,
    mnist5k: Dataset,
    tmp_path: Path,
    mnist: Mnist,
    changes: dict[str, Any],
) -> None:
    path = build(**changes)
    is_integer = changes.get("input_type") in (TensorProto.UINT8, TensorProto.INT64)
    flags = () if is_integer else ("--mean", 0, "--std", 1)
    result = mnist("export", path, *FLAGS, *flags, "--output", tmp_path / "out")
    assert result.code == 0, result.err
    assert "warning" in result.err or "fits" in result.err or is_integer
    assert mnist("verify", tmp_path / "out").code == 0
    images = mnist5k.test.images.numpy()[:300]
    expected = images.reshape(-1, 784) / np.float32(255) @ weights[:784] + weights[784]
    found = logits_of(tmp_path / "out", images)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    contract = json.loads(mnist("info", tmp_path / "out", "--json").out)
    assert contract["normalization"] == ({} if is_integer else {"mean": 0.0, "std": 1.0})
    assert contract["parity"]["engines"] == ["onnxruntime", "onnx.reference"]
    assert contract["calibration"].keys() == CALIBRATION.keys()
    assert contract["calibration"]["temperature"] >= 1
    assert contract["training"] == {}


def test_the_labels_and_dicts_of_scikit_learn_are_left_out(
    weights: np.ndarray, mnist5k: Dataset, tmp_path: Path, mnist: Mnist
) -> None:
    path = write_scikit_learn(tmp_path / "sklearn.onnx", weights)
    refused = mnist("export", path, *FLAGS, "--output", tmp_path / "out")
    assert "with --mean 0.0 --std 0.00392157 it reads " in refused.err
    flags = (*FLAGS, "--mean", 0, "--std", "0.00392157", "--output", tmp_path / "out", "--overwrite")
    assert mnist("export", path, *flags).code == 0
    images = mnist5k.test.images.numpy()[:300]
    expected, _ = onnxruntime.InferenceSession(path).run(
        None, {"float_input": images.reshape(-1, 784).astype(np.float32)}
    )
    np.testing.assert_array_equal(logits_of(tmp_path / "out", images).argmax(axis=1), expected)


def test_weights_in_a_second_file_are_read_and_hashed(build: Build, tmp_path: Path, mnist: Mnist) -> None:
    """As torch.onnx.export writes them."""
    model = onnx.load(build())
    path, data = tmp_path / "theirs.onnx", tmp_path / "theirs.onnx.data"
    onnx.save(model, path, save_as_external_data=True, location=data.name, size_threshold=0)
    flags = (*FLAGS, "--mean", 0, "--std", 1)
    hashes = []
    for number in range(2):
        assert mnist("export", path, *flags, "--output", tmp_path / f"out{number}").code == 0
        contract = json.loads(mnist("info", tmp_path / f"out{number}", "--json").out)
        hashes.append(contract["model"]["onnx_sha256"])
        values = bytearray(data.read_bytes())
        values[16_000:16_004] = bytes(4)
        data.write_bytes(values)
    assert hashes[0] != hashes[1]
    data.unlink()
    mnist("export", path, *flags, "--output", tmp_path / "out").assert_refused("theirs.onnx.data")


def test_a_model_that_differs_after_the_change_is_not_published(
    build: Build, tmp_path: Path, mnist: Mnist, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = build(end="Softmax")
    genuine = OnnxSource.composed

    def damaged(source: Any) -> bytes:
        model = onnx.load_model_from_string(genuine.func(source))
        item = next(item for item in model.graph.initializer if item.name == "model/weight")
        values = numpy_helper.to_array(item).copy()
        values[400, 3] += 1e-3
        item.CopyFrom(numpy_helper.from_array(values, item.name))
        return model.SerializeToString()

    monkeypatch.setattr(OnnxSource, "composed", property(damaged))
    result = mnist("export", path, *FLAGS, "--mean", 0, "--std", 1, "--output", tmp_path / "out")
    assert result.code == 1
    assert "differs from the net in the weights model/weight: nothing was published" in result.err
    assert not (tmp_path / "out").exists()


def test_a_wrong_normalisation_is_named(build: Build, tmp_path: Path, mnist: Mnist) -> None:
    result = mnist(
        "export", build(end="Softmax"), *FLAGS, "--output", tmp_path / "out", "--min-accuracy", 0.9
    )
    assert result.code == 1
    assert "with --mean 0.0 --std 1.0 it reads " in result.err


def edit(change: Callable[[onnx.ModelProto], object]) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        model = onnx.load(path)
        change(model)
        onnx.save(model, path)

    return write


def random_numbers(model: onnx.ModelProto) -> None:
    model.graph.node[2].output[0] = "quiet"
    model.graph.node.extend(
        [
            helper.make_node("RandomNormalLike", ["quiet"], ["noise"]),
            helper.make_node("Add", ["quiet", "noise"], ["logits"]),
        ]
    )


def second_output(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Identity", ["logits"], ["again"]))
    model.graph.output.append(helper.make_tensor_value_info("again", TensorProto.FLOAT, ["N", 10]))


def turned(model: onnx.ModelProto) -> None:
    model.graph.node[2].output[0] = "upright"
    model.graph.node.append(helper.make_node("Transpose", ["upright"], ["logits"]))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["a", "b"]))


def second_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1]))


@pytest.mark.parametrize(
    ("changes", "write", "flags", "message"),
    [
        (
            {"shape": ("N", 3, 28, 28)},
            None,
            (),
            "takes float [N, 3, 28, 28], expected float or uint8 [N, 784]",
        ),
        ({"shape": ("N", 1, 32, 32)}, None, (), "takes float [N, 1, 32, 32], expected"),
        ({"input_type": TensorProto.BOOL}, None, (), "takes bool"),
        ({}, edit(second_input), (), "has 2 inputs, expected one"),
        ({}, edit(random_numbers), (), "gives other numbers for an image each time"),
        ({}, edit(second_output), (), "has 2 outputs of ten floats an image, expected one"),
        ({}, edit(turned), (), "gives no ten finite numbers an image"),
        (
            {},
            edit(lambda model: model.graph.output[0].CopyFrom(model.graph.input[0])),
            (),
            "has 0 outputs of ten floats",
        ),
        ({}, lambda path: path.write_bytes(b"no model"), (), "damaged or no ONNX file"),
        ({}, lambda path: path.write_bytes(path.read_bytes()[:2000]), (), "damaged or no ONNX file"),
        ({}, None, ("--format", "pt2"), "becomes --format onnx: leave the other"),
        ({}, None, ("--opset", 20), "leave --opset out"),
        ({"input_type": TensorProto.UINT8}, None, ("--mean", 0.5), "leave out --mean and --std"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    build: Build,
    tmp_path: Path,
    mnist: Mnist,
    changes: dict[str, Any],
    write: Callable[[Path], object] | None,
    flags: tuple[object, ...],
    message: str,
) -> None:
    path = build(**changes)
    if write is not None:
        write(path)
    mnist("export", path, *FLAGS, *flags, "--output", tmp_path / "out").assert_refused(message)
    assert not (tmp_path / "out").exists()


def test_an_artifacts_own_file_is_not_exported_again(artifact: Path, tmp_path: Path, mnist: Mnist) -> None:
    mnist("export", artifact / "model.onnx", "--output", tmp_path / "out").assert_refused("is proven already")


@pytest.mark.parametrize("command", ["infer", "evaluate", "bench", "serve"])
def test_a_plain_file_names_the_command_that_makes_an_artifact(
    build: Build, digit_png: Path, tmp_path: Path, mnist: Mnist, command: str
) -> None:
    path = build()
    arguments = {
        "infer": [digit_png, "--model", path],
        "evaluate": [path, "--data", tmp_path],
        "bench": [path],
        "serve": ["--model", path],
    }[command]
    mnist(command, *arguments).assert_refused(f"mnist export {path} --output DIR")
