"""Requests and responses of the Open Inference Protocol, without HTTP: what is read, refused and written."""

import json
import tracemalloc
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from serve_cli.http.refusal import Refusal
from serve_cli.http.tensors import (
    MAX_BATCH,
    MAX_JSON,
    InferRequest,
    Output,
    parse_request,
    write_response,
)
from serve_cli.runtime import Prediction
from trainer.data import SOURCES

PIXELS = 28 * 28
FASHION = SOURCES["fashion-mnist"].labels
LABELS = {
    "digits": tuple(range(10)),
    "fashion": FASHION,
    "umlauts": tuple(f"Ärmel {i}: ✓" for i in range(10)),
}

seeded = settings(max_examples=60, derandomize=True, deadline=None)
much = settings(max_examples=300, derandomize=True, deadline=None)


# What requests are made of


def image(number: int = 1, **changes: Any) -> dict[str, Any]:
    """The input of a good request for `number` black images; a change to None takes a field away."""
    given = {"name": "image", "shape": [number, 28, 28], "datatype": "UINT8", "data": [0] * PIXELS * number}
    return {name: value for name, value in {**given, **changes}.items() if value is not None}


def request(**changes: Any) -> dict[str, Any]:
    return {"inputs": [image()], **changes}


def parse(value: Any) -> InferRequest:
    return parse_request(json.dumps(value).encode(), None)


def binary(tensor: bytes, number: int = 1, size: Any = None, **changes: Any) -> tuple[bytes, str]:
    """A request whose image follows the JSON, and the value of its header."""
    parameters = {"binary_data_size": len(tensor) if size is None else size}
    given = image(number, **{"data": None, "parameters": parameters, **changes})
    header = json.dumps({"inputs": [given]}).encode()
    return header + tensor, str(len(header))


def refusal(body: bytes, header_length: str | None = None) -> Refusal:
    with pytest.raises(Refusal) as caught:
        parse_request(body, header_length)
    return caught.value


def whole(body: bytes, header_length: str | None) -> InferRequest | None:
    """The request, or None where it is refused in one short line; anything else that happens is an error."""
    try:
        return parse_request(body, header_length)
    except Refusal as refused:
        check(refused)
    return None


def check(refused: Refusal) -> None:
    assert refused.status_code in (400, 413)
    assert refused.detail.isprintable()
    assert 0 < len(refused.detail) < 400


# Images

IMAGES = st.integers(1, 3).flatmap(lambda number: arrays(np.uint8, (number, 28, 28)))

FORMS: Mapping[str, Callable[[np.ndarray], tuple[bytes, str | None]]] = {
    "flat": lambda images: (json.dumps(request(inputs=[given_as(images, images.ravel())])).encode(), None),
    "rows": lambda images: (
        json.dumps(request(inputs=[given_as(images, images.reshape(-1, 28))])).encode(),
        None,
    ),
    "nested": lambda images: (json.dumps(request(inputs=[given_as(images, images)])).encode(), None),
    "indented": lambda images: (
        json.dumps(request(inputs=[given_as(images, images)]), indent=2).encode(),
        None,
    ),
    "binary": lambda images: binary(images.tobytes(), len(images)),
}


def given_as(images: np.ndarray, data: np.ndarray) -> dict[str, Any]:
    return image(len(images), data=data.tolist())


@pytest.mark.parametrize("form", FORMS)
@seeded
@given(images=IMAGES)
def test_every_form_brings_the_same_images(form: str, images: np.ndarray) -> None:
    found = parse_request(*FORMS[form](images)).images
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, images)


@pytest.mark.parametrize("number", [1, MAX_BATCH])
def test_a_batch_may_be_as_large_as_triton_takes(number: int) -> None:
    images = np.arange(number * PIXELS).astype(np.uint8).reshape(number, 28, 28)
    for form in FORMS.values():
        np.testing.assert_array_equal(parse_request(*form(images)).images, images)


def test_json_of_all_bytes_needs_no_header_and_may_have_one() -> None:
    body = json.dumps(request()).encode()
    assert parse_request(body, str(len(body))).images.shape == (1, 28, 28)
    assert parse_request(body, None).images.shape == (1, 28, 28)


# Outputs

BOTH = ["logits", "probabilities"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [("logits", False, 0), ("probabilities", False, 0)]),
        ({"outputs": []}, [("logits", False, 0), ("probabilities", False, 0)]),
        (
            {"parameters": {"binary_data_output": True}},
            [("logits", True, 0), ("probabilities", True, 0)],
        ),
        ({"outputs": [{"name": "probabilities"}]}, [("probabilities", False, 0)]),
        (
            {"outputs": [{"name": "probabilities"}, {"name": "logits"}]},
            [("probabilities", False, 0), ("logits", False, 0)],
        ),
        (
            {"parameters": {"binary_data_output": True}, "outputs": [{"name": "logits"}]},
            [("logits", True, 0)],
        ),
        (
            {
                "parameters": {"binary_data_output": True},
                "outputs": [{"name": "logits", "parameters": {"binary_data": False}}],
            },
            [("logits", False, 0)],
        ),
        (
            {
                "outputs": [
                    {"name": "logits", "parameters": {"binary_data": True}},
                    {"name": "probabilities", "parameters": {"classification": 3}},
                ]
            },
            [("logits", True, 0), ("probabilities", False, 3)],
        ),
    ],
    ids=str,
)
def test_what_is_asked_for_is_found(changes: dict[str, Any], expected: list[tuple[str, bool, int]]) -> None:
    outputs = parse(request(**changes)).outputs
    assert [(output.name, output.binary, output.classes) for output in outputs] == expected


def test_parameters_that_nobody_knows_change_nothing() -> None:
    """Triton's clients send priority, timeout and sequence_id so."""
    known = parse(request(parameters={"priority": 1, "timeout": 5, "sequence_id": "a", "mine": [1]}))
    assert known.outputs == parse(request()).outputs


@pytest.mark.parametrize("given", [None, "", "42", "ä\n\0✓", "x" * 5000], ids=repr)
def test_the_id_comes_back_as_it_was_sent(given: str | None) -> None:
    found = parse(request(id=given))
    assert found.id == given
    answer = json.loads(write_response(found, prediction(1), LABELS["digits"]).body)
    assert answer.get("id") == given
    assert ("id" in answer) == (given is not None)


def test_an_id_of_half_a_character_breaks_nothing() -> None:
    found = parse_request(json.dumps(request()).encode()[:-1] + b', "id": "\\ud800"}', None)
    assert b'"id": "\\ud800"' in write_response(found, prediction(1), LABELS["digits"]).body


# Refusals

REFUSED: dict[str, tuple[Any, str]] = {
    "no object": ([], "the request must be a JSON object"),
    "parameters no object": (request(parameters=[]), "'parameters' must be a JSON object"),
    "parameters null": (request(parameters=None), "'parameters' must be a JSON object"),
    "binary_data_output a number": (request(parameters={"binary_data_output": 1}), "'binary_data_output'"),
    "id a number": (request(id=1), "'id' must be a string"),
    "no inputs": ({}, "'inputs' must be a list with one input, 'image'"),
    "inputs empty": (request(inputs=[]), "'inputs' must be a list with one input"),
    "inputs an object": (request(inputs=image()), "'inputs' must be a list with one input"),
    "two inputs": (request(inputs=[image()] * 2), "'inputs' must be a list with one input"),
    "input no object": (request(inputs=["image"]), "an input must be a JSON object"),
    "input without name": (request(inputs=[image(name=None)]), "the model has one input, 'image'"),
    "other name": (request(inputs=[image(name="picture")]), "the model has one input, 'image'"),
    "name a list": (request(inputs=[image(name=["image"])]), "the model has one input, 'image'"),
    "no datatype": (request(inputs=[image(datatype=None)]), "the datatype of 'image' is UINT8"),
    "datatype in small letters": (
        request(inputs=[image(datatype="uint8")]),
        "the datatype of 'image' is UINT8",
    ),
    "input parameters no object": (
        request(inputs=[image(parameters=1)]),
        "'parameters' of an input must be a JSON object",
    ),
    "binary_data_size without bytes": (
        request(inputs=[image(data=None, parameters={"binary_data_size": PIXELS})]),
        "as many bytes must follow the JSON, not 0",
    ),
    "both": (
        request(inputs=[image(parameters={"binary_data_size": PIXELS})]),
        "both 'data' and 'binary_data_size'",
    ),
    "outputs an object": (request(outputs={"name": "logits"}), "'outputs' must be a list"),
    "three outputs": (request(outputs=[{"name": "logits"}] * 3), "'outputs' must be a list"),
    "output no object": (request(outputs=["logits"]), "an output must be a JSON object"),
    "output unknown": (
        request(outputs=[{"name": "label"}]),
        "the model's outputs are logits and probabilities",
    ),
    "output name a list": (
        request(outputs=[{"name": []}]),
        "the model's outputs are logits and probabilities",
    ),
    "output twice": (request(outputs=[{"name": "logits"}] * 2), "an output is asked for twice"),
    "output parameters no object": (
        request(outputs=[{"name": "logits", "parameters": []}]),
        "'parameters' of an output must be a JSON object",
    ),
    "binary_data a text": (
        request(outputs=[{"name": "logits", "parameters": {"binary_data": "true"}}]),
        "parameter 'binary_data' must be true or false",
    ),
    **{
        f"classification {value}": (
            request(outputs=[{"name": "logits", "parameters": {"classification": value}}]),
            "parameter 'classification' must be a number from 0 to 10",
        )
        for value in (-1, 11, 1.0, True, "3", None)
    },
    **{
        f"shape {shape}": (
            request(inputs=[{**image(), "shape": shape}]),
            "the shape of 'image' is [N, 28, 28], with N from 1 to 256",
        )
        for shape in (
            *(None, [], 784, "1,28,28", [784], [28, 28], [1, 784], [1, 28, 29], [1, 1, 28, 28], [0, 28, 28]),
            *([-1, 28, 28], [257, 28, 28], [1.0, 28, 28], [True, 28, 28], ["1", 28, 28], [10**30, 28, 28]),
        )
    },
}
"""Requests, each wrong in one way, and what the client hears of it."""


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_request_is_refused_by_its_reason(case: str) -> None:
    wrong, reason = REFUSED[case]
    error = refusal(json.dumps(wrong).encode())
    assert (error.status_code, error.kind) == (400, "tensors")
    assert reason in error.detail


WRONG_DATA: dict[str, Any] = {
    "none": None,
    "a text": "0" * PIXELS,
    "a number": 0,
    "an object": {"0": 0},
    "empty": [],
    "one short": [0] * (PIXELS - 1),
    "one long": [0] * (PIXELS + 1),
    "two images": [0] * PIXELS * 2,
    **{
        name: [value] * PIXELS
        for name, value in {"fractions": 0.5, "floats": 1.0, "-1": -1, "256": 256}.items()
    },
    **{name: [value] * PIXELS for name, value in {"2**63": 2**63, "2**64": 2**64, "huge": 10**4000}.items()},
    **{
        name: [value] * PIXELS
        for name, value in {"nulls": None, "texts": "0", "truths": True, "dicts": {}}.items()
    },
    **{f"a last {value}": [0] * (PIXELS - 1) + [value] for value in (-1, 256, 0.0, None, "0", 2**64, [0])},
    "a first true": [True] + [0] * (PIXELS - 1),
    "2**63 and -1": [2**63, -1] * (PIXELS // 2),
    "rows of several lengths": [[0] * 27, [0] * 29] * 14,
    "a row in place of a number": [[0] * 28] * 27 + [0] * 28,
}


@pytest.mark.parametrize("case", WRONG_DATA)
def test_data_is_whole_numbers_of_a_byte(case: str) -> None:
    error = refusal(json.dumps(request(inputs=[{**image(), "data": WRONG_DATA[case]}])).encode())
    assert error.status_code == 400
    assert error.detail == "'data' must be 784 whole numbers from 0 to 255, a list or nested lists"


def test_a_long_text_among_many_short_ones_takes_no_memory() -> None:
    """NumPy gives each the place of the longest, so that 4 MiB of JSON would take terabytes."""
    body = json.dumps(request(inputs=[image(data=["x" * 2000] + [""] * 5000)])).encode()
    tracemalloc.start()
    try:
        refusal(body)
        assert tracemalloc.get_traced_memory()[1] < 10 * len(body)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b" ", b"{", b"\xff", b"\0", b"{} {}", b"nan", b"Infinity", b"{'inputs': []}"),
        *(b'{"inputs": NaN}', b'{"id": 1e400, "inputs": -Infinity}', b'{"id": "\xc3"}', b"1" * 5000),
        *(b"[" * 100_000, b'{"a":' * 100_000, b"\xef\xbb\xbf[", b"\xfe\xff\x00"),
    ],
    ids=lambda body: repr(body[:20]),
)
def test_what_is_not_json_is_refused(body: bytes) -> None:
    error = refusal(body)
    assert error.status_code == 400
    assert error.detail.startswith("the request is not JSON (")


def test_data_may_not_nest_without_end() -> None:
    nested = b"[" * 500 + b"0" + b"]" * 500
    body = json.dumps(request()).encode().replace(json.dumps([0] * PIXELS).encode(), nested)
    assert "'data' must be 784 whole numbers" in refusal(body).detail


# Binary


@pytest.mark.parametrize(
    "length",
    ["", " ", "-1", "+1", "1.0", "0x10", "1e3", "10 ", "१", "²", "9" * 11, "9" * 12, "9" * 5000, "a", "1_0"],
)
def test_a_wrong_header_length_is_refused(length: str) -> None:
    body, _ = binary(bytes(PIXELS))
    error = refusal(body, length)
    assert error.status_code == 400
    assert f"Inference-Header-Content-Length is not a number from 0 to {len(body)}" in error.detail


def test_a_header_may_not_be_longer_than_the_body() -> None:
    body, _ = binary(bytes(PIXELS))
    assert "Inference-Header-Content-Length" in refusal(body, str(len(body) + 1)).detail


@pytest.mark.parametrize("off", [-1, 1])
def test_a_header_length_that_cuts_elsewhere_is_refused(off: int) -> None:
    body, length = binary(b"\xff" * PIXELS)
    assert "the request is not JSON" in refusal(body, str(int(length) + off)).detail


@pytest.mark.parametrize(
    ("tensor", "size"),
    [
        *(
            (b"", PIXELS),
            (bytes(PIXELS - 1), PIXELS),
            (bytes(PIXELS + 1), PIXELS),
            (bytes(PIXELS), PIXELS - 1),
        ),
        *((bytes(PIXELS - 1), PIXELS - 1), (bytes(PIXELS + 1), PIXELS + 1), (bytes(2 * PIXELS), 2 * PIXELS)),
        *((bytes(PIXELS), float(PIXELS)), (bytes(PIXELS), str(PIXELS)), (bytes(PIXELS), -1), (b"\0", True)),
    ],
    ids=lambda value: len(value) if isinstance(value, bytes) else repr(value),
)
def test_as_many_bytes_follow_as_the_shape_has(tensor: bytes, size: Any) -> None:
    detail = refusal(*binary(tensor, size=size)).detail
    assert "'binary_data_size' must be 784, the product of the shape" in detail
    assert detail.endswith(f"not {len(tensor)}")


def test_bytes_that_no_input_has_are_refused() -> None:
    body = json.dumps(request()).encode()
    assert "no input has the parameter 'binary_data_size'" in refusal(body + b"\0", str(len(body))).detail


# Size


def padded(size: int) -> bytes:
    body = json.dumps(request()).encode()
    return body + b" " * (size - len(body))


def test_json_has_a_limit_and_tensors_have_another() -> None:
    assert parse_request(padded(MAX_JSON), None).images.shape == (1, 28, 28)
    error = refusal(padded(MAX_JSON + 1))
    assert (error.status_code, error.kind) == (413, "too large")
    assert "the JSON has more than 4 MiB: send tensors as binary data" in error.detail
    assert refusal(padded(MAX_JSON + 1), str(MAX_JSON + 1)).status_code == 413
    assert "bytes follow the JSON" in refusal(padded(MAX_JSON + 1), str(MAX_JSON)).detail


def test_a_whole_batch_fits_with_a_line_a_pixel() -> None:
    body = json.dumps({"inputs": [image(MAX_BATCH, data=[255] * PIXELS * MAX_BATCH)]}, indent=2).encode()
    assert parse_request(body, None).images.shape == (MAX_BATCH, 28, 28)


# Whatever is sent

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["image", "UINT8", "logits", "binary_data_size", PIXELS, 28, [1, 28, 28]])
)
KEYS = st.text(max_size=5) | st.sampled_from(
    [
        *("id", "inputs", "outputs", "parameters", "name", "shape", "datatype", "data"),
        *("binary_data_size", "binary_data_output", "binary_data", "classification"),
    ]
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=20,
)


def or_anything(*good: Any) -> st.SearchStrategy[Any]:
    """What is right, most often, so that what lies behind it is looked at, too."""
    return st.one_of(*(st.sampled_from(good) for _ in range(4)), ANYTHING)


NEARLY = st.fixed_dictionaries(
    {
        "inputs": st.one_of(
            ANYTHING,
            *[
                st.lists(
                    st.fixed_dictionaries(
                        {
                            "name": or_anything("image"),
                            "datatype": or_anything("UINT8"),
                            "shape": or_anything([1, 28, 28], [2, 28, 28]),
                        },
                        optional={
                            "data": or_anything([0] * PIXELS, [[0] * 28] * 56),
                            "parameters": or_anything({}, {"binary_data_size": PIXELS}),
                        },
                    ),
                    min_size=1,
                    max_size=1,
                )
            ]
            * 4,
        )
    },
    optional={
        "id": or_anything("a"),
        "parameters": or_anything({"binary_data_output": True}),
        "outputs": or_anything([])
        | st.lists(
            st.fixed_dictionaries(
                {"name": or_anything(*BOTH)},
                optional={"parameters": or_anything({"classification": 3}, {"binary_data": True})},
            ),
            max_size=3,
        ),
    },
)


@much
@given(value=ANYTHING)
def test_any_json_is_read_or_refused(value: Any) -> None:
    whole(json.dumps(value).encode(), None)


@much
@given(value=NEARLY, tensors=st.sampled_from([b"", bytes(PIXELS)]) | st.binary(max_size=9))
def test_what_is_nearly_a_request_is_read_or_refused_and_answered(value: Any, tensors: bytes) -> None:
    header = json.dumps(value).encode()
    found = whole(header + tensors, str(len(header)))
    if found is not None:
        number = len(found.images)
        assert found.images.shape == (number, 28, 28)
        assert found.images.dtype == np.uint8
        assert write_response(found, prediction(number), LABELS["digits"]).body


@much
@given(
    body=st.binary(max_size=200), header_length=st.none() | st.text(max_size=8) | st.integers(0, 200).map(str)
)
@example(body=b"{}", header_length="1")
@example(body=b"", header_length="0")
def test_any_bytes_with_any_header_are_refused(body: bytes, header_length: str | None) -> None:
    assert whole(body, header_length) is None


@much
@given(
    where=st.integers(0, 3000),
    what=st.binary(min_size=1, max_size=4),
    header_length=st.none() | st.integers(0, 3000).map(str),
)
def test_a_request_with_flipped_bytes_is_read_or_refused(
    where: int, what: bytes, header_length: str | None
) -> None:
    body, length = binary(bytes(PIXELS))
    where %= len(body)
    whole(body[:where] + what + body[where + len(what) :], header_length or length)


# Responses


def prediction(number: int) -> Prediction:
    """Some answers, each row another."""
    logits = np.random.default_rng(number).normal(size=(number, 10)).astype(np.float32)
    shares = np.exp(logits)
    return Prediction(logits, (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32))


def asked(*outputs: Output, number: int = 1, id: str | None = None) -> InferRequest:  # noqa: A002
    return InferRequest(np.zeros((number, 28, 28), np.uint8), outputs, id)


def split(body: bytes, header_length: int | None) -> tuple[dict[str, Any], list[bytes]]:
    """The JSON of a response, and the bytes of each binary output; all bytes must belong to one."""
    answer = json.loads(body[:header_length])
    rest = b"" if header_length is None else body[header_length:]
    tensors = []
    for output in answer["outputs"]:
        if "parameters" in output:
            size = output["parameters"]["binary_data_size"]
            tensors.append(rest[:size])
            rest = rest[size:]
    assert not rest
    return answer, tensors


@pytest.mark.parametrize("number", [1, 3, MAX_BATCH])
def test_json_has_the_very_floats(number: int) -> None:
    said = prediction(number)
    response = write_response(asked(*(Output(name, False) for name in BOTH)), said, LABELS["digits"])
    assert response.header_length is None
    answer, _ = split(response.body, None)
    assert set(answer) == {"model_name", "model_version", "outputs"}
    assert (answer["model_name"], answer["model_version"]) == ("mnist", "1")
    for output, name in zip(answer["outputs"], BOTH, strict=True):
        assert (output["name"], output["datatype"], output["shape"]) == (name, "FP32", [number, 10])
        found = np.array(output["data"], np.float32).reshape(output["shape"])
        np.testing.assert_array_equal(found, getattr(said, name))


def test_binary_tensors_follow_in_the_order_of_the_outputs() -> None:
    said = prediction(3)
    outputs = [Output("probabilities", True), Output("logits", True)]
    response = write_response(asked(*outputs), said, LABELS["digits"])
    answer, tensors = split(response.body, response.header_length)
    assert [output["name"] for output in answer["outputs"]] == ["probabilities", "logits"]
    assert all("data" not in output for output in answer["outputs"])
    assert tensors == [said.probabilities.astype("<f4").tobytes(), said.logits.astype("<f4").tobytes()]


@pytest.mark.parametrize("binary_first", [True, False])
def test_one_output_may_be_binary_and_the_other_not(binary_first: bool) -> None:
    said = prediction(2)
    outputs = [Output("logits", binary_first), Output("probabilities", not binary_first)]
    response = write_response(asked(*outputs), said, LABELS["digits"])
    answer, tensors = split(response.body, response.header_length)
    assert len(tensors) == 1
    assert ["data" in output for output in answer["outputs"]] == [not binary_first, binary_first]


# Classification


def best(row: np.ndarray, number: int, labels: tuple[int | str, ...]) -> list[str]:
    places = sorted(range(10), key=lambda place: (-row[place], place))[:number]
    return [f"{row[place]:.6f}:{place}:{labels[place]}" for place in places]


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("classes", [1, 3, 10])
@pytest.mark.parametrize("name", BOTH)
def test_the_best_classes_are_text_in_json_and_in_bytes(
    labels: tuple[int | str, ...], classes: int, name: str
) -> None:
    deserialize = pytest.importorskip("tritonclient.utils").deserialize_bytes_tensor
    said = prediction(4)
    expected = [text for row in getattr(said, name) for text in best(row, classes, labels)]
    for is_binary in (False, True):
        response = write_response(asked(Output(name, is_binary, classes)), said, labels)
        answer, tensors = split(response.body, response.header_length)
        output = answer["outputs"][0]
        assert (output["datatype"], output["shape"]) == ("BYTES", [4, classes])
        found = [text.decode() for text in deserialize(tensors[0])] if is_binary else output["data"]
        assert found == expected


def test_of_equal_classes_the_first_is_named_first() -> None:
    tied = np.full((1, 10), 0.1, np.float32)
    response = write_response(asked(Output("probabilities", False, 3)), Prediction(tied, tied), FASHION)
    assert json.loads(response.body)["outputs"][0]["data"] == [
        "0.100000:0:T-shirt/top",
        "0.100000:1:Trouser",
        "0.100000:2:Pullover",
    ]


def test_classes_and_numbers_may_be_asked_for_together() -> None:
    said = prediction(2)
    outputs = [Output("logits", True), Output("probabilities", True, 2)]
    response = write_response(asked(*outputs, id="both"), said, FASHION)
    answer, tensors = split(response.body, response.header_length)
    assert answer["id"] == "both"
    assert [output["datatype"] for output in answer["outputs"]] == ["FP32", "BYTES"]
    assert tensors[0] == said.logits.tobytes()
