"""Triton's own HTTP client against the real server."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from serve_cli.runtime import Prediction, Predictor
from serve_cli.spec import BUNDLED_MODEL, MODEL_FILES
from tests.serve_cli.http.serving import Served, serving
from trainer.data import Dataset

pytest.importorskip("geventhttpclient")  # without it tritonclient.http raises another error than ImportError
triton = pytest.importorskip("tritonclient.http")
InferenceServerException = pytest.importorskip("tritonclient.utils").InferenceServerException

KEY = "a-key-of-these-tests"
OUTPUTS = ("logits", "probabilities")
TRITON_PAGE = Path(__file__).parents[3] / "docs" / "triton.md"


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[Any]:
    with connect(served) as client:
        yield client


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(BUNDLED_MODEL / MODEL_FILES["onnx"].name)


@pytest.fixture(scope="module")
def digits(mnist5k: Dataset) -> np.ndarray:
    """256 genuine digits, uint8 [256, 28, 28]."""
    return mnist5k.train.images[:256].numpy()


def connect(served: Served, **options: Any) -> Any:
    return triton.InferenceServerClient(address(served), **options)


def address(served: Served) -> str:
    return served.url.removeprefix("http://")


def image(pixels: np.ndarray, *, binary: bool = True, name: str = "image", datatype: str = "UINT8") -> Any:
    given = triton.InferInput(name, pixels.shape, datatype)
    return given.set_data_from_numpy(pixels, binary_data=binary)


def asked(*names: str, binary: bool = True, classes: int = 0) -> list[Any]:
    return [triton.InferRequestedOutput(name, binary_data=binary, class_count=classes) for name in names]


def refusal(client: Any, *inputs: Any, model: str = "mnist", **options: Any) -> tuple[str, str]:
    """The status and the reason of a request that is refused."""
    with pytest.raises(InferenceServerException) as caught:
        client.infer(model, list(inputs), **options)
    return caught.value.status(), caught.value.message()


def check(answer: Any, expected: Prediction, *names: str) -> None:
    """The answer must have these outputs, and the very numbers of the Predictor."""
    response = answer.get_response()
    assert [output["name"] for output in response["outputs"]] == list(names)
    assert (response["model_name"], response["model_version"]) == ("mnist", "1")
    for name in names:
        found = answer.as_numpy(name)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, getattr(expected, name))


# What there is


def test_the_server_and_its_model_are_live_and_ready(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("mnist")
    assert client.is_model_ready("mnist", "1")


@pytest.mark.parametrize(("model", "version"), [("other", ""), ("mnist", "2"), ("mnist", "0"), ("", "")])
def test_other_models_and_versions_are_not_ready(client: Any, model: str, version: str) -> None:
    assert not client.is_model_ready(model, version)


def test_the_server_says_what_it_is(client: Any) -> None:
    about = client.get_server_metadata()
    assert set(about) == {"name", "version", "extensions"}
    assert about["name"] == "mnist-toolkit"
    assert about["extensions"] == ["binary_tensor_data", "classification"]


@pytest.mark.parametrize("version", ["", "1"])
def test_the_model_says_what_goes_in_and_comes_out(client: Any, version: str) -> None:
    assert client.get_model_metadata("mnist", version) == {
        "name": "mnist",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, 28, 28]}],
        "outputs": [{"name": name, "datatype": "FP32", "shape": [-1, 10]} for name in OUTPUTS],
    }


@pytest.mark.parametrize(
    "call",
    ["get_model_config", "get_inference_statistics", "get_model_repository_index", "get_log_settings"],
)
def test_extensions_that_are_not_named_are_not_found(client: Any, call: str) -> None:
    arguments = ["mnist"] if call == "get_model_config" else []
    with pytest.raises(InferenceServerException) as caught:
        getattr(client, call)(*arguments)
    assert caught.value.status() in ("404", "405")


# Inference


@pytest.mark.parametrize("number", [1, 64, 256])
@pytest.mark.parametrize("binary_in", [True, False], ids=["binary in", "JSON in"])
@pytest.mark.parametrize("binary_out", [True, False], ids=["binary out", "JSON out"])
def test_every_form_and_batch_has_the_answers_of_the_predictor(
    client: Any, predictor: Predictor, digits: np.ndarray, number: int, binary_in: bool, binary_out: bool
) -> None:
    pixels = digits[:number]
    outputs = asked(*OUTPUTS, binary=binary_out)
    answer = client.infer("mnist", [image(pixels, binary=binary_in)], outputs=outputs)
    check(answer, predictor.predict(pixels), *OUTPUTS)


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "JSON"])
def test_without_outputs_all_come_back(
    client: Any, predictor: Predictor, digits: np.ndarray, binary: bool
) -> None:
    answer = client.infer("mnist", [image(digits[:3], binary=binary)])
    check(answer, predictor.predict(digits[:3]), *OUTPUTS)


@pytest.mark.parametrize("names", [("logits",), ("probabilities",), ("probabilities", "logits")])
def test_the_outputs_that_are_asked_for_come_back_in_their_order(
    client: Any, predictor: Predictor, digits: np.ndarray, names: tuple[str, ...]
) -> None:
    answer = client.infer("mnist", [image(digits[:3])], outputs=asked(*names))
    check(answer, predictor.predict(digits[:3]), *names)


@pytest.mark.parametrize("binary_first", [True, False])
def test_one_output_may_be_binary_and_the_other_json(
    client: Any, predictor: Predictor, digits: np.ndarray, binary_first: bool
) -> None:
    outputs = [*asked("logits", binary=binary_first), *asked("probabilities", binary=not binary_first)]
    answer = client.infer("mnist", [image(digits[:3])], outputs=outputs)
    check(answer, predictor.predict(digits[:3]), *OUTPUTS)


def test_the_version_may_be_named(client: Any, predictor: Predictor, digits: np.ndarray) -> None:
    answer = client.infer("mnist", [image(digits[:1])], model_version="1")
    check(answer, predictor.predict(digits[:1]), *OUTPUTS)


def test_the_id_of_a_request_comes_back(client: Any, digits: np.ndarray) -> None:
    assert client.infer("mnist", [image(digits[:1])], request_id="ä 1").get_response()["id"] == "ä 1"
    assert "id" not in client.infer("mnist", [image(digits[:1])]).get_response()


def test_parameters_that_only_triton_knows_change_nothing(
    client: Any, predictor: Predictor, digits: np.ndarray
) -> None:
    answer = client.infer(
        *("mnist", [image(digits[:1])]), priority=1, timeout=10**6, sequence_id=3, parameters={"mine": "x"}
    )
    check(answer, predictor.predict(digits[:1]), *OUTPUTS)


def test_a_client_may_have_several_requests_under_way(
    served: Served, predictor: Predictor, digits: np.ndarray
) -> None:
    expected = predictor.predict(digits[:64])
    with connect(served, concurrency=4) as client:
        sent = [client.async_infer("mnist", [image(digits[:64])], request_id=str(i)) for i in range(20)]
        for i, request in enumerate(sent):
            answer = request.get_result()
            assert answer.get_response()["id"] == str(i)
            check(answer, expected, *OUTPUTS)


# Classification


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "JSON"])
@pytest.mark.parametrize("classes", [1, 3, 10])
def test_the_best_classes_are_named_best_first(
    client: Any, predictor: Predictor, digits: np.ndarray, binary: bool, classes: int
) -> None:
    outputs = asked(*OUTPUTS, binary=binary, classes=classes)
    answer = client.infer("mnist", [image(digits[:5])], outputs=outputs)
    expected = predictor.predict(digits[:5])
    for name in OUTPUTS:
        found = answer.as_numpy(name)
        assert found.shape == (5, classes)
        for row, values in zip(found, getattr(expected, name), strict=True):
            assert [as_text(text) for text in row] == best(values, classes)


def as_text(value: bytes | str) -> str:
    """The client leaves the text of JSON as it is."""
    return value.decode() if isinstance(value, bytes) else str(value)


def best(values: np.ndarray, number: int) -> list[str]:
    order = sorted(range(10), key=lambda label: (-values[label], label))
    return [f"{values[label]:f}:{label}:{label}" for label in order[:number]]


@pytest.mark.parametrize("classes", [11, -1])
def test_more_classes_than_there_are_cannot_be_asked_for(
    client: Any, digits: np.ndarray, classes: int
) -> None:
    status, reason = refusal(client, image(digits[:1]), outputs=asked("logits", classes=classes))
    assert status == "400"
    assert reason == "parameter 'classification' must be a number from 0 to 10"


# Refusals

SHAPE = "the shape of 'image' is [N, 28, 28], with N from 1 to 256"


@pytest.mark.parametrize(
    "shape", [(257, 28, 28), (0, 28, 28), (1, 784), (28, 28), (1, 28, 29), (1, 1, 28, 28), (784,)], ids=str
)
@pytest.mark.parametrize("binary", [True, False], ids=["binary", "JSON"])
def test_other_shapes_are_refused(client: Any, shape: tuple[int, ...], binary: bool) -> None:
    assert refusal(client, image(np.zeros(shape, np.uint8), binary=binary)) == ("400", SHAPE)


@pytest.mark.parametrize(
    ("datatype", "dtype"),
    [("FP32", np.float32), ("INT64", np.int64), ("INT8", np.int8), ("BYTES", np.object_)],
)
@pytest.mark.parametrize("binary", [True, False], ids=["binary", "JSON"])
def test_other_datatypes_are_refused(client: Any, datatype: str, dtype: Any, binary: bool) -> None:
    pixels = np.full((1, 28, 28), b"0" if datatype == "BYTES" else 0, dtype)
    given = image(pixels, binary=binary, datatype=datatype)
    assert refusal(client, given) == ("400", "the datatype of 'image' is UINT8")


def test_other_inputs_and_outputs_are_refused(client: Any, digits: np.ndarray) -> None:
    good = image(digits[:1])
    assert refusal(client, image(digits[:1], name="pixels")) == ("400", "the model has one input, 'image'")
    assert refusal(client, good, good) == ("400", "'inputs' must be a list with one input, 'image'")
    assert refusal(client) == ("400", "'inputs' must be a list with one input, 'image'")
    unknown = refusal(client, good, outputs=asked("label"))
    assert unknown == ("400", "the model's outputs are logits and probabilities")
    assert refusal(client, good, outputs=asked("logits", "logits")) == (
        *("400", "an output is asked for twice"),
    )


@pytest.mark.parametrize(("model", "version"), [("other", ""), ("mnist", "2")])
def test_other_models_are_not_found(client: Any, digits: np.ndarray, model: str, version: str) -> None:
    status, reason = refusal(client, image(digits[:1]), model=model, model_version=version)
    assert status == "404"
    assert reason
    with pytest.raises(InferenceServerException):
        client.get_model_metadata(model, version)


def test_a_refusal_leaves_the_connection_as_it_was(
    client: Any, predictor: Predictor, digits: np.ndarray
) -> None:
    for _ in range(3):
        refusal(client, image(np.zeros((257, 28, 28), np.uint8)))
        check(client.infer("mnist", [image(digits[:1])]), predictor.predict(digits[:1]), *OUTPUTS)


# Compression


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests_are_refused(client: Any, digits: np.ndarray, algorithm: str) -> None:
    status, reason = refusal(client, image(digits[:1]), request_compression_algorithm=algorithm)
    assert status == "415"
    assert reason == "compressed bodies are not read: send it as it is"


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_who_could_read_compressed_answers_gets_others(
    client: Any, predictor: Predictor, digits: np.ndarray, algorithm: str
) -> None:
    answer = client.infer("mnist", [image(digits[:3])], response_compression_algorithm=algorithm)
    check(answer, predictor.predict(digits[:3]), *OUTPUTS)


# The key


@pytest.fixture(scope="module")
def locked() -> Iterator[Served]:
    with serving("--api-key", KEY) as server:
        yield server


@pytest.fixture(scope="module")
def locked_client(locked: Served) -> Iterator[Any]:
    with connect(locked) as client:
        yield client


@pytest.mark.parametrize("headers", [{"Authorization": f"Bearer {KEY}"}, {"X-API-Key": KEY}], ids=str)
def test_who_has_the_key_is_answered(
    locked_client: Any, predictor: Predictor, digits: np.ndarray, headers: dict[str, str]
) -> None:
    answer = locked_client.infer("mnist", [image(digits[:3])], headers=headers)
    check(answer, predictor.predict(digits[:3]), *OUTPUTS)
    assert locked_client.get_model_metadata("mnist", headers=headers)["name"] == "mnist"


@pytest.mark.parametrize(
    "headers",
    [None, {"Authorization": "Bearer other"}, {"Authorization": f"Basic {KEY}"}, {"X-API-Key": ""}],
    ids=str,
)
def test_who_has_no_key_hears_of_it(locked_client: Any, digits: np.ndarray, headers: Any) -> None:
    status, reason = refusal(locked_client, image(digits[:1]), headers=headers)
    assert status == "401"
    assert reason.startswith("needs the API key: send it as Authorization: Bearer KEY")
    with pytest.raises(InferenceServerException, match="needs the API key"):
        locked_client.get_model_metadata("mnist", headers=headers)


def test_health_needs_no_key(locked_client: Any) -> None:
    assert locked_client.is_server_live()
    assert locked_client.is_server_ready()
    assert locked_client.is_model_ready("mnist")


def test_health_of_the_version_needs_no_key_either(locked_client: Any) -> None:
    assert locked_client.is_model_ready("mnist", "1")


# The page about Triton


@pytest.fixture
def demo(tmp_path: Path, digit: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like the one that the page is read in: it has the picture of its examples."""
    picture = tmp_path / "demo" / "digits" / "1917_5.png"
    picture.parent.mkdir(parents=True)
    Image.fromarray(digit).save(picture)
    monkeypatch.chdir(tmp_path)
    return picture


def test_the_python_example_of_the_page_works(
    served: Served, demo: Path, predictor: Predictor, digit: np.ndarray
) -> None:
    example = re.findall(r"^```python\n(.*?)^```", TRITON_PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(example) == 1
    assert "localhost:8000" in example[0]
    code = example[0].replace("localhost:8000", f"localhost:{served.port}")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=demo.parents[2])
    assert (run.returncode, run.stderr) == (0, "")
    found = [text.encode() for text in best(predictor.predict(digit[None]).probabilities[0], 3)]
    assert run.stdout == f"{np.array([found], np.object_)}\n"
    assert found[0].endswith(b":7:7")


def test_the_curl_example_of_the_page_works(
    served: Served, demo: Path, predictor: Predictor, digit: np.ndarray
) -> None:
    script = re.search(
        r"^python - (\S+) > request\.json <<'EOF'\n(.*?)^EOF\n(curl .*?)$",
        TRITON_PAGE.read_text(),
        re.MULTILINE | re.DOTALL,
    )
    assert script
    name, code, curl = script.groups()
    assert "localhost:8000/v2/models/mnist/infer" in curl
    assert "-H 'Content-Type: application/json' -d @request.json" in curl
    run = subprocess.run([sys.executable, "-", name], input=code, capture_output=True, text=True, check=True)
    reply = served.ask("/v2/models/mnist/infer", run.stdout.encode(), content_type="application/json")
    assert reply.status == 200
    assert reply.headers["content-type"] == "application/json"
    expected = predictor.predict(digit[None])
    outputs = {output["name"]: output["data"] for output in json.loads(reply.body)["outputs"]}
    assert outputs == {name: getattr(expected, name)[0].tolist() for name in OUTPUTS}
