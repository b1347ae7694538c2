"""The Predictor: batches of any size give the same answers; files that do not fit are refused."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from export.onnx_formats import run_onnxruntime
from serve_cli.errors import InputError
from serve_cli.runtime import Predictor
from serve_cli.spec import METADATA_KEY
from tests.conftest import CALIBRATION
from trainer.data import Dataset


@pytest.fixture(scope="module")
def predictor(artifact: Path) -> Predictor:
    return Predictor(artifact / "model.onnx")


def test_batch_size_does_not_change_the_answer(predictor: Predictor, mnist5k: Dataset) -> None:
    images = mnist5k.test.images.numpy()[:100]
    reference = predictor.predict(images)
    for batch_size in (1, 3, 100, 1000):
        found = predictor.predict(images, batch_size=batch_size)
        np.testing.assert_allclose(found.logits, reference.logits, atol=1e-5)


def test_probabilities_are_the_softmax_of_the_logits(predictor: Predictor, mnist5k: Dataset) -> None:
    found = predictor.predict(mnist5k.test.images.numpy()[:50])
    exponentials = np.exp(found.logits - found.logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(
        found.probabilities, exponentials / exponentials.sum(axis=1, keepdims=True), atol=1e-6
    )


@pytest.mark.parametrize("file", ["model.onnx", "model.int8.onnx"])
def test_calibrated_probabilities_are_those_of_cooler_logits(
    calibrated: Path, artifact: Path, mnist5k: Dataset, file: str
) -> None:
    images = mnist5k.test.images.numpy()[:50]
    found, plain = Predictor(calibrated / file).predict(images), Predictor(artifact / file).predict(images)
    np.testing.assert_array_equal(found.logits, plain.logits)
    exponentials = np.exp(found.logits.astype(np.float64) / CALIBRATION["temperature"])
    np.testing.assert_allclose(
        found.probabilities, exponentials / exponentials.sum(axis=1, keepdims=True), atol=1e-6
    )
    assert np.abs(found.probabilities - plain.probabilities).max() > 0.05
    assert Predictor(calibrated / file).calibration == CALIBRATION
    assert Predictor(artifact / file).calibration == {}


def test_an_engine_that_fails_is_told_with_the_file_and_without_its_source(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor(artifact / "model.onnx")

    class Failing:
        def run(self, *_: object) -> None:
            raise RuntimeError(
                "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : /src/bfc_arena.cc:376 (a) out of it"
            )

    monkeypatch.setattr(predictor, "_session", Failing())
    with pytest.raises(InputError) as caught:
        predictor.predict(np.zeros((3, 28, 28), np.uint8))
    assert str(caught.value) == f"{predictor.path} fails on a batch of 3 (out of it): export the model again"


def test_no_images_give_no_answers(predictor: Predictor) -> None:
    found = predictor.predict(np.zeros((0, 28, 28), np.uint8))
    assert found.logits.shape == found.probabilities.shape == (0, 10)


@pytest.mark.parametrize(
    "images", [np.zeros((1, 28, 28), np.float32), np.zeros((1, 27, 28), np.uint8), np.zeros(784, np.uint8)]
)
def test_images_of_another_kind_are_refused(predictor: Predictor, images: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8"):
        predictor.predict(images)


@pytest.mark.parametrize("data", [b"", b"junk", b"\x00" * 1000])
def test_what_is_not_onnx_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"model\.onnx is no model that onnxruntime .* can run"):
        Predictor(path)


def test_a_truncated_model_is_refused(artifact: Path, tmp_path: Path) -> None:
    data = (artifact / "model.onnx").read_bytes()
    path = tmp_path / "model.onnx"
    for length in (10, 1000, len(data) // 2, len(data) - 5000):
        path.write_bytes(data[:length])
        with pytest.raises(InputError):
            Predictor(path)


def keep(model: onnx.ModelProto, contract: str | None, path: Path) -> Path:
    """Write a model with `contract` in its metadata."""
    onnx.helper.set_model_props(model, {} if contract is None else {METADATA_KEY: contract})
    onnx.save(model, path)
    return path


def test_a_model_without_a_contract_is_refused(predictor: Predictor, tmp_path: Path) -> None:
    path = keep(onnx.load(predictor.path), None, tmp_path / "foreign.onnx")
    with pytest.raises(InputError, match="carries no mnist_toolkit contract"):
        Predictor(path)


def test_metadata_that_is_no_text_is_refused(predictor: Predictor, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(predictor.path.read_bytes().replace(b"white ink", b"white \xb1nk"))
    with pytest.raises(InputError, match="its metadata is no text"):
        Predictor(path)


def test_a_graph_that_breaks_its_contract_is_refused(predictor: Predictor, tmp_path: Path) -> None:
    model = onnx.load(predictor.path)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 29
    path = keep(model, predictor.contract.to_json(), tmp_path / "liar.onnx")
    with pytest.raises(InputError, match="its contract says"):
        Predictor(path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_answers_that_are_no_numbers_are_refused(predictor: Predictor, tmp_path: Path, value: float) -> None:
    model = onnx.load(predictor.path)
    bias = next(item for item in model.graph.initializer if item.name == "net.fc3.bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(10, value, np.float32), bias.name))
    path = keep(model, predictor.contract.to_json(), tmp_path / "spoilt.onnx")
    with pytest.raises(InputError, match="not finite"):
        Predictor(path)


def test_probabilities_that_are_no_numbers_are_refused(calibrated: Path, tmp_path: Path) -> None:
    """The smallest number above 0 makes infinite logits of large ones."""
    model = onnx.load(calibrated / "model.onnx")
    temperature = next(item for item in model.graph.initializer if item.name == "temperature")
    temperature.CopyFrom(onnx.numpy_helper.from_array(np.array(1e-45, np.float32), "temperature"))
    contract = Predictor(calibrated / "model.onnx").contract.to_json()
    path = keep(model, contract, tmp_path / "spoilt.onnx")
    with pytest.raises(InputError, match="not finite"):
        Predictor(path)


def test_a_fixed_batch_is_refused(predictor: Predictor, tmp_path: Path) -> None:
    model = onnx.load(predictor.path)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    path = keep(model, predictor.contract.to_json(), tmp_path / "fixed.onnx")
    with pytest.raises(InputError, match="batch of any size"):
        Predictor(path)


def test_a_bad_graph_prints_nothing(
    predictor: Predictor, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """What our own checks let through is onnxruntime's to refuse: a weight too small for its layer."""
    model = onnx.load(predictor.path)
    weight = next(item for item in model.graph.initializer if "fc3.weight" in item.name)
    weight.CopyFrom(onnx.numpy_helper.from_array(np.zeros((10, 5), np.float32), weight.name))
    path = keep(model, predictor.contract.to_json(), tmp_path / "broken.onnx")
    capfd.readouterr()
    with pytest.raises(InputError):
        Predictor(path).predict(np.zeros((1, 28, 28), np.uint8))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("batch_size", [1, 2, 7, 64, 256])
def test_batches_arrive_in_the_size_asked_for(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> None:
    """The proof of an export relies on it, at each of its batch sizes."""
    sizes = []
    run = Predictor._run
    monkeypatch.setattr(
        Predictor, "_run", lambda self, images: sizes.append(len(images)) or run(self, images)
    )
    run_onnxruntime(artifact / "model.onnx")(np.zeros((600, 28, 28), np.uint8), batch_size)
    assert sizes[0] == 1  # the look at the temperature
    assert set(sizes[1:-1]) == {batch_size}
    assert sum(sizes[1:]) == 600


def test_external_data_is_never_followed(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime would look for it in the current folder."""
    monkeypatch.chdir(tmp_path)
    model = onnx.load(predictor.path)
    path = tmp_path / "external.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (tmp_path / "weights.bin").exists()
    keep(onnx.load(path, load_external_data=False), predictor.contract.to_json(), path)
    with pytest.raises(InputError, match="external"):
        Predictor(path)


def test_a_contract_with_another_temperature_is_refused(calibrated: Path, tmp_path: Path) -> None:
    model = onnx.load(calibrated / "model.onnx")
    contract = json.loads({entry.key: entry.value for entry in model.metadata_props}[METADATA_KEY])
    contract["calibration"]["temperature"] *= 1.5
    path = keep(model, json.dumps(contract), tmp_path / "model.onnx")
    with pytest.raises(InputError, match="another temperature than its contract"):
        Predictor(path)
