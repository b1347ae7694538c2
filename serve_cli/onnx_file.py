"""What an ONNX file says and holds, found out before anything runs it; field numbers are those of onnx.proto.

A file that gets past `check_graph` is what an export of ours writes and nothing else: one chain from the
image over layers to the probabilities, every constant in the file and of the size that its place asks for. So
it runs no foreign code, reads no other file, and needs memory and time as its own size does. Whatever is not
known is refused, down to single fields: two readers of one format must not see two models.
"""

import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from serve_cli.protobuf import fields
from serve_cli.spec import CLASSES, IMAGE_SIZE, INPUT, OUTPUTS

FLOAT, UINT8, INT32, INT64 = 1, 2, 6, 7
ITEM_BYTES = {FLOAT: 4, UINT8: 1, INT32: 4, INT64: 8}
"""ONNX's numbers of the types that constants have, and the size of an element."""

OPERATORS: Mapping[str, Mapping[str, float]] = {
    "Cast": {"to": FLOAT},
    "Div": {},
    "Sub": {},
    "Reshape": {"allowzero": 1},
    "Gemm": {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 1},
    "Relu": {},
    "Softmax": {"axis": 1},
    "QuantizeLinear": {},
    "DequantizeLinear": {},
}
"""All that an export computes with, in any operator set that it writes, each with its attributes."""

BY_CHANNEL = {"axis": 0}
"""The attributes of the DequantizeLinear of a weight or a bias."""

CHAIN = re.compile("Cast Div (Sub )?(Div )?Reshape Gemm( Relu Gemm)* (Div )?Softmax")
"""Their order, those of QUANTIZATION apart.

A mean of 0 needs no Sub, a std of 1 no Div; the last Div is by the temperature of a calibrated model.
"""

QUANTIZATION = frozenset({"QuantizeLinear", "DequantizeLinear"})
"""Operators that change how a number is stored."""

PIXELS = IMAGE_SIZE**2
TO_PIXELS = struct.pack("<2q", -1, PIXELS)
"""The constant that Reshape reads: any number of images, in rows of pixels."""

MOST_NODES = 2000
WIDEST_LAYER = 16_384
LONGEST_VALUE = 200
"""Bytes of the description of an input or output."""

IR_VERSION, PRODUCER, PRODUCER_VERSION, GRAPH, OPSET, METADATA = 1, 2, 3, 7, 8, 14
NODE, GRAPH_NAME, INITIALIZER, GRAPH_INPUT, GRAPH_OUTPUT = 1, 2, 5, 11, 12
NODE_INPUT, NODE_OUTPUT, NODE_NAME, NODE_OPERATOR, NODE_ATTRIBUTE = 1, 2, 3, 4, 5
ATTRIBUTE_NAME, ATTRIBUTE_FLOAT, ATTRIBUTE_INT, ATTRIBUTE_TYPE = 1, 2, 3, 20
TENSOR_DIMS, TENSOR_TYPE, TENSOR_NAME, TENSOR_RAW = 1, 2, 8, 9

Value = int | bytes


class Unfit(Exception):
    """Why a file is not run; the reader knows which file it is."""


def read_metadata(model: bytes) -> dict[str, str]:
    """The key and value pairs of the file's metadata.

    Raises:
        Unfit: it is no ONNX file, or a damaged one.
    """
    try:
        pairs = (dict(fields(_bytes(value))) for number, value in fields(model) if number == METADATA)
        return {_text(pair[1]): _text(pair[2]) for pair in pairs}
    except (ValueError, KeyError, TypeError) as error:  # UnicodeDecodeError is a ValueError
        raise Unfit("it is damaged or no ONNX file") from error


def check_graph(model: bytes) -> None:
    """Check that the file is what an export of ours writes, as far as it is run.

    Raises:
        Unfit: it holds anything else; the message says what.
    """
    try:
        parts = _parts(model, "it", IR_VERSION, PRODUCER, PRODUCER_VERSION, GRAPH, OPSET, METADATA)
        _bytes(_only(parts[OPSET]))
        graph = _parts(
            _bytes(_only(parts[GRAPH])),
            "its graph",
            *(NODE, GRAPH_NAME, INITIALIZER, GRAPH_INPUT, GRAPH_OUTPUT),
        )
        values = [*graph[GRAPH_INPUT], *graph[GRAPH_OUTPUT]]
        if len(values) != 1 + len(OUTPUTS) or any(len(_bytes(value)) > LONGEST_VALUE for value in values):
            raise Unfit("it has other inputs and outputs than ours")
        if len(graph[NODE]) > MOST_NODES:
            raise Unfit(f"it has {len(graph[NODE]):,} operators, at most {MOST_NODES:,} are run")
        constants = [_read_constant(_bytes(value)) for value in graph[INITIALIZER]]
        if len({constant.name for constant in constants}) != len(constants):
            raise Unfit("it has two constants of one name")
        nodes = [_read_node(_bytes(value)) for value in graph[NODE]]
        _check_chain(nodes, {constant.name: constant for constant in constants})
    except (ValueError, TypeError, LookupError, struct.error) as error:
        raise Unfit(f"its graph is damaged ({error})") from error


def _parts(message: bytes, what: str, *known: int) -> dict[int, list[Value]]:
    """The values of each of the `known` fields of a message; there must be no others."""
    parts: dict[int, list[Value]] = {number: [] for number in known}
    for number, value in fields(message):
        if number not in parts:
            raise Unfit(f"{what} has a part that ours never have (field {number})")
        parts[number].append(value)
    return parts


@dataclass(frozen=True)
class Node:
    """One operator with the names of what it reads, and of what it makes."""

    operator: str
    inputs: list[str]
    output: str


@dataclass(frozen=True)
class Constant:
    """A tensor in the file; `raw` are its bytes, little-endian."""

    name: str
    dims: list[int]
    raw: bytes


def _read_node(message: bytes) -> Node:
    known = (NODE_INPUT, NODE_OUTPUT, NODE_NAME, NODE_OPERATOR, NODE_ATTRIBUTE)
    parts = _parts(message, "an operator", *known)
    operator = _text(_only(parts[NODE_OPERATOR]))
    if operator not in OPERATORS:
        raise Unfit(f"it holds the operator {operator}, which is not run")
    attributes = dict(_read_attribute(_bytes(value)) for value in parts[NODE_ATTRIBUTE])
    allowed = [OPERATORS[operator], *([BY_CHANNEL] if operator == "DequantizeLinear" else [])]
    if attributes not in allowed:
        raise Unfit(f"its operator {operator} has other attributes than ours")
    return Node(operator, [_text(name) for name in parts[NODE_INPUT]], _text(_only(parts[NODE_OUTPUT])))


def _read_attribute(message: bytes) -> tuple[str, float]:
    known = (ATTRIBUTE_NAME, ATTRIBUTE_FLOAT, ATTRIBUTE_INT, ATTRIBUTE_TYPE)
    parts = _parts(message, "an attribute", *known)
    name = _text(_only(parts[ATTRIBUTE_NAME]))
    value = _only([*parts[ATTRIBUTE_FLOAT], *parts[ATTRIBUTE_INT]])
    return name, value if isinstance(value, int) else struct.unpack("<f", value)[0]


def _read_constant(message: bytes) -> Constant:
    parts = _parts(message, "a constant", TENSOR_DIMS, TENSOR_TYPE, TENSOR_NAME, TENSOR_RAW)
    dims = [_number(value) for value in parts[TENSOR_DIMS]]
    raw = _bytes(_only(parts[TENSOR_RAW]))
    item_bytes = ITEM_BYTES[_number(_only(parts[TENSOR_TYPE]))]
    if len(dims) > 2 or len(raw) != math.prod(dims) * item_bytes:
        raise Unfit("a constant in it has not as many numbers as it claims")
    return Constant(_text(_only(parts[TENSOR_NAME])), dims, raw)


def _check_chain(nodes: list[Node], constants: Mapping[str, Constant]) -> None:
    """Check that each operator works on what the one before it made, and on constants that fit there."""
    stored: dict[str, str] = {}  # names after a change of storage, and what they stand for
    weights: set[str] = set()
    chain: list[Node] = []
    current, width = INPUT["name"], 0
    for node in nodes:
        source, *others = (stored.get(name, name) for name in node.inputs)
        operands = [constants[name] for name in others if name in constants]
        if len(operands) != len(others):
            raise Unfit(f"its operator {node.operator} reads more than one thing that is no constant")
        if node.operator in QUANTIZATION:
            if source not in constants and any(operand.dims for operand in operands):
                raise Unfit(f"its operator {node.operator} takes more than a single number")
            stored[node.output] = source
            continue
        if source != current:
            raise Unfit(f"its operator {node.operator} reads {source} where {current} belongs")
        if not weights.isdisjoint(others):
            raise Unfit("it uses a weight twice")
        weights.update(others[:1] if node.operator == "Gemm" else ())
        width = _width_after(node.operator, width, operands)
        chain.append(node)
        current = node.output
    if width != CLASSES:
        raise Unfit("its chain of operators does not end in a number for each class")
    _check_order(chain, constants)


def _check_order(chain: list[Node], constants: Mapping[str, Constant]) -> None:
    """Check that the operators come as in ours, and that logits and probabilities are what they make."""
    if not CHAIN.fullmatch(" ".join(node.operator for node in chain)):
        raise Unfit("its operators are not in the order of ours")
    *before, softmax = chain
    if before[-1].operator == "Div":
        (temperature,) = struct.unpack("<f", constants[before.pop().inputs[1]].raw)
        if not 0 < temperature < math.inf:
            raise Unfit(f"its temperature is {temperature:g}")
    if [before[-1].output, softmax.output] != [output["name"] for output in OUTPUTS]:
        raise Unfit("its operators do not make the logits and the probabilities")


def _width_after(operator: str, width: int, operands: list[Constant]) -> int:
    """How many numbers an image has after an operator; 0 as long as it is rows and columns."""
    dims = [operand.dims for operand in operands]
    if operator == "Reshape" and width == 0 and operands[0].raw == TO_PIXELS:
        return PIXELS
    if operator == "Gemm" and width:
        layer = dims[0][0]
        if dims == [[layer, width], [layer]] and 0 < layer <= WIDEST_LAYER:
            return layer
    elif dims == ([[]] if operator in ("Div", "Sub") else []) and operator != "Reshape":
        return width
    raise Unfit(f"its operator {operator} has constants that do not fit there")


def _only(values: list[Value]) -> Value:
    if len(values) != 1:
        raise ValueError(f"{len(values)} values where one belongs")
    return values[0]


def _bytes(value: Value) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError("a number where text belongs")
    return value


def _number(value: Value) -> int:
    if not isinstance(value, int):
        raise TypeError("bytes where a number belongs")
    return value


def _text(value: Value) -> str:
    return _bytes(value).decode()
