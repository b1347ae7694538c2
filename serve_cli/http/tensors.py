"""Requests and responses of the Open Inference Protocol, version 2: JSON, and the binary tensors behind it.

Source: kserve/open-inference-protocol, specification/protocol/inference_rest.md. Binary tensors and
classification are extensions of Triton: docs/protocol/extension_binary_data.md, extension_classification.md.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NoReturn

import numpy as np

from serve_cli.http.refusal import Refusal
from serve_cli.runtime import CHUNK, OUTPUT_NAMES, Prediction
from serve_cli.spec import CLASSES, IMAGE_SIZE, INPUT, MODEL_NAME, MODEL_VERSION

MAX_BATCH = CHUNK
"""Images of a request, as many as Triton takes with the configuration that an export writes."""

MAX_JSON = 4 * 1024**2
"""Bytes of JSON: enough for such a batch, indented by two; it is parsed in a tenth of a second."""

DATATYPES = {"uint8": "UINT8", "float32": "FP32"}
"""Names of the protocol for dtypes of the contract."""

IMAGE_BYTES = IMAGE_SIZE * IMAGE_SIZE


@dataclass(frozen=True)
class Output:
    """An output that is asked for: as a binary tensor or in the JSON, all of it or its best `classes`."""

    name: str
    binary: bool
    classes: int = 0


@dataclass(frozen=True)
class InferRequest:
    """`images` uint8 [N, 28, 28], the outputs that are asked for, and the client's own id or None."""

    images: np.ndarray
    outputs: Sequence[Output]
    id: str | None


@dataclass(frozen=True)
class InferResponse:
    """The body, and how many of its bytes are JSON, where tensors follow; else None."""

    body: bytes
    header_length: int | None


def refuse(reason: str) -> NoReturn:
    """Raise what a request gets that is not as the protocol or the model has it."""
    raise Refusal(400, reason, "tensors")


# Requests


def parse_request(body: bytes, header_length: str | None) -> InferRequest:
    """Read a request; `header_length` is the value of its Inference-Header-Content-Length.

    Raises:
        Refusal: it is not as the protocol has it, or not for this model.
    """
    length = len(body) if header_length is None else _header_length(header_length, len(body))
    if length > MAX_JSON:
        raise Refusal(
            413, f"the JSON has more than {MAX_JSON // 1024**2} MiB: send tensors as binary data", "too large"
        )
    request = _object(_parse(body[:length]), "the request")
    parameters = _object(request.get("parameters", {}), "'parameters'")
    name = request.get("id")
    if name is not None and not isinstance(name, str):
        refuse("'id' must be a string")
    binary = _flag(parameters, "binary_data_output")
    return InferRequest(
        _images(request.get("inputs"), body[length:]), _outputs(request.get("outputs"), binary), name
    )


def _header_length(text: str, available: int) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 12 and int(text) <= available):
        refuse(f"Inference-Header-Content-Length is not a number from 0 to {available}, the body's length")
    return int(text)


def _parse(text: bytes) -> Any:
    def constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is not JSON")

    try:
        return json.loads(text, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        refuse(f"the request is not JSON ({error})")


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        refuse(f"{what} must be a JSON object")
    return value


def _flag(parameters: Mapping[str, Any], name: str) -> bool:
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        refuse(f"parameter '{name}' must be true or false")
    return value


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _images(inputs: Any, tensors: bytes) -> np.ndarray:
    """The images of the only input, uint8 [N, 28, 28]; `tensors` is what follows the JSON."""
    if not isinstance(inputs, list) or len(inputs) != 1:
        refuse(f"'inputs' must be a list with one input, '{INPUT['name']}'")
    given = _object(inputs[0], "an input")
    if given.get("name") != INPUT["name"]:
        refuse(f"the model has one input, '{INPUT['name']}'")
    if given.get("datatype") != DATATYPES[INPUT["dtype"]]:
        refuse(f"the datatype of '{INPUT['name']}' is {DATATYPES[INPUT['dtype']]}")
    number = _batch(given.get("shape"))
    size = _object(given.get("parameters", {}), "'parameters' of an input").get("binary_data_size")
    if size is None:
        if tensors:
            refuse("bytes follow the JSON, but no input has the parameter 'binary_data_size'")
        pixels = _from_json(given.get("data"), number)
    else:
        pixels = _from_binary(given, size, tensors, number)
    return pixels.reshape(number, IMAGE_SIZE, IMAGE_SIZE)


def _batch(shape: Any) -> int:
    if (
        not isinstance(shape, list)
        or len(shape) != 3
        or not all(_whole(side) for side in shape)
        or shape[1:] != [IMAGE_SIZE, IMAGE_SIZE]
        or not 1 <= shape[0] <= MAX_BATCH
    ):
        refuse(f"the shape of '{INPUT['name']}' is [N, 28, 28], with N from 1 to {MAX_BATCH}")
    return shape[0]


def _from_json(data: Any, number: int) -> np.ndarray:
    expected = f"'data' must be {number * IMAGE_BYTES} whole numbers from 0 to 255, a list or nested lists"
    while type(data) is list and data and type(data[0]) is list:
        if set(map(type, data)) != {list} or len(set(map(len, data))) != 1:
            refuse(expected)
        data = list(chain.from_iterable(data))
    # Looked at before numpy sees it, which would give each text the room of the longest.
    if type(data) is not list or len(data) != number * IMAGE_BYTES or set(map(type, data)) != {int}:
        refuse(expected)
    if min(data) < 0 or max(data) > 255:
        refuse(expected)
    return np.array(data, np.uint8)


def _from_binary(given: Mapping[str, Any], size: Any, tensors: bytes, number: int) -> np.ndarray:
    if "data" in given:
        refuse("an input has both 'data' and 'binary_data_size'")
    if not _whole(size) or size != number * IMAGE_BYTES or size != len(tensors):
        refuse(
            f"'binary_data_size' must be {number * IMAGE_BYTES}, the product of the shape, and as many bytes "
            f"must follow the JSON, not {len(tensors)}"
        )
    return np.frombuffer(tensors, np.uint8)


def _outputs(outputs: Any, binary: bool) -> Sequence[Output]:
    """What is asked for; everything, if nothing is named."""
    if outputs is None or outputs == []:
        return [Output(name, binary) for name in OUTPUT_NAMES]
    if not isinstance(outputs, list) or len(outputs) > len(OUTPUT_NAMES):
        refuse(f"'outputs' must be a list of {' and '.join(OUTPUT_NAMES)}")
    found = [_output(_object(output, "an output"), binary) for output in outputs]
    if len({output.name for output in found}) < len(found):
        refuse("an output is asked for twice")
    return found


def _output(output: Mapping[str, Any], binary: bool) -> Output:
    name = output.get("name")
    if name not in OUTPUT_NAMES:
        refuse(f"the model's outputs are {' and '.join(OUTPUT_NAMES)}")
    parameters = _object(output.get("parameters", {}), "'parameters' of an output")
    classes = parameters.get("classification", 0)
    if not _whole(classes) or not 0 <= classes <= CLASSES:
        refuse(f"parameter 'classification' must be a number from 0 to {CLASSES}")
    return Output(
        str(name), _flag(parameters, "binary_data") if "binary_data" in parameters else binary, classes
    )


# Responses


def write_response(
    request: InferRequest, prediction: Prediction, labels: Sequence[int | str]
) -> InferResponse:
    """Answer `request` with what the model says of its images."""
    described, tensors = [], []
    for output in request.outputs:
        values: np.ndarray = getattr(prediction, output.name)
        tensor = _classes(values, output.classes, labels) if output.classes else values
        text = tensor.dtype.kind == "U"
        about: dict[str, Any] = {
            "name": output.name,
            "datatype": "BYTES" if text else DATATYPES[str(tensor.dtype)],
            "shape": list(tensor.shape),
        }
        if output.binary:
            tensors.append(_bytes_tensor(tensor) if text else tensor.astype("<f4").tobytes())
            about["parameters"] = {"binary_data_size": len(tensors[-1])}
        else:
            about["data"] = tensor.ravel().tolist()
        described.append(about)
    answer: dict[str, Any] = {"model_name": MODEL_NAME, "model_version": MODEL_VERSION, "outputs": described}
    if request.id is not None:
        answer["id"] = request.id
    header = json.dumps(answer).encode()
    return InferResponse(b"".join([header, *tensors]), len(header) if tensors else None)


def _classes(values: np.ndarray, number: int, labels: Sequence[int | str]) -> np.ndarray:
    """The best classes of each row, best first, as text [N, number]: value:index:label."""
    best = np.argsort(-values, axis=1, kind="stable")[:, :number]
    return np.array(
        [[f"{row[i]:f}:{i}:{labels[i]}" for i in places] for row, places in zip(values, best, strict=True)]
    )


def _bytes_tensor(texts: np.ndarray) -> bytes:
    """A tensor of the datatype BYTES: before each element, its length as a little-endian uint32."""
    encoded = (text.encode() for text in texts.ravel().tolist())
    return b"".join(struct.pack("<I", len(text)) + text for text in encoded)
