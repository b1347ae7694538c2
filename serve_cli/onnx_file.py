"""What an ONNX file says and holds, found out before anything runs it; field numbers are those of onnx.proto.

A file that gets past `check_graph` can neither run foreign code, nor read another file, nor use much more
memory than its own size: it is one chain from the image to the probabilities.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from serve_cli.protobuf import fields
from serve_cli.spec import INPUT, METADATA_KEY

DIGEST_KEY = f"{METADATA_KEY}.sha256"
"""Metadata key of the SHA-256 of the whole file, taken with these 64 digits as zeros."""

NO_DIGEST = "0" * 64

OPERATORS = frozenset({"Cast", "Div", "Sub", "Reshape", "Gemm", "Relu", "Softmax"})
"""All that an export of ours computes with, in any of the operator sets that it writes."""

BY_NUMBER = frozenset({"Div", "Sub"})
"""Operators whose second operand is a single number: a larger one would blow the result up."""

QUANTIZATION = frozenset({"QuantizeLinear", "DequantizeLinear"})
"""Operators that change how a number is stored."""

MOST_NODES = 2000

GRAPH, METADATA, TRAINING, FUNCTIONS = 7, 14, 20, 25
NODE, INITIALIZER, SPARSE_INITIALIZER = 1, 5, 15
NODE_INPUT, NODE_OUTPUT, NODE_OPERATOR, NODE_DOMAIN = 1, 2, 4, 7
TENSOR_DIMS, TENSOR_NAME, TENSOR_EXTERNAL, TENSOR_LOCATION = 1, 8, 13, 14


class Unfit(Exception):
    """Why a file is not run; the reader knows which file it is."""


@dataclass(frozen=True)
class Node:
    """One operator with the names of what it reads and writes."""

    operator: str
    inputs: list[str]
    outputs: list[str]


def read_metadata(model: bytes) -> dict[str, str]:
    """The key and value pairs of the file's metadata.

    Raises:
        Unfit: it is no ONNX file, or a damaged one.
    """
    try:
        pairs = (dict(fields(_bytes(value))) for number, value in fields(model) if number == METADATA)
        return {_text(pair[1]): _text(pair[2]) for pair in pairs}
    except (ValueError, KeyError, TypeError) as error:  # UnicodeDecodeError is a ValueError
        raise Unfit(f"it is damaged or no ONNX file ({error})") from error


def digest(model: bytes, found: str = NO_DIGEST) -> str:
    """SHA-256 of the file, as hex digits, with the digest `found` in it replaced by zeros."""
    return hashlib.sha256(model.replace(found.encode(), NO_DIGEST.encode())).hexdigest()


def check_digest(model: bytes, metadata: Mapping[str, str]) -> None:
    """Compare the file with the digest that it carries.

    Raises:
        Unfit: a bit has changed since the export.
    """
    found = metadata.get(DIGEST_KEY, "")
    if len(found) != len(NO_DIGEST) or digest(model, found) != found:
        raise Unfit("it is damaged: its bytes are not those that were exported")


def check_graph(model: bytes) -> None:
    """Check that the file is one chain of known operators with all its numbers inside.

    Raises:
        Unfit: it holds anything else; the message says what.
    """
    try:
        graph = b""
        for number, value in fields(model):
            if number in (TRAINING, FUNCTIONS):
                raise Unfit("it holds functions of its own, which are not run")
            if number == GRAPH:  # a second one would be merged with the first
                graph += _bytes(value)
        _check_chain(*_read_graph(graph))
    except (ValueError, TypeError, IndexError) as error:
        raise Unfit(f"its graph is damaged ({error})") from error


def _read_graph(graph: bytes) -> tuple[list[Node], dict[str, int]]:
    """The nodes in order, and of each constant how many numbers it has."""
    nodes: list[Node] = []
    constants: dict[str, int] = {}
    for number, value in fields(graph):
        if number == NODE:
            nodes.append(_read_node(_bytes(value)))
        elif number == INITIALIZER:
            name, size = _read_constant(_bytes(value))
            constants[name] = size
        elif number == SPARSE_INITIALIZER:
            raise Unfit("it holds sparse numbers, which are not read")
    if len(nodes) > MOST_NODES:
        raise Unfit(f"it has {len(nodes):,} operators, at most {MOST_NODES:,} are run")
    return nodes, constants


def _read_node(message: bytes) -> Node:
    operator, domain = "", ""
    inputs, outputs = [], []
    for number, value in fields(message):
        if number == NODE_INPUT:
            inputs.append(_text(value))
        elif number == NODE_OUTPUT:
            outputs.append(_text(value))
        elif number == NODE_OPERATOR:
            operator = _text(value)
        elif number == NODE_DOMAIN:
            domain = _text(value)
    if domain or operator not in OPERATORS | QUANTIZATION:
        raise Unfit(f"it holds the operator {f'{domain}.' * bool(domain)}{operator}, which is not run")
    return Node(operator, inputs, outputs)


def _read_constant(message: bytes) -> tuple[str, int]:
    """Name and number of elements of a tensor that lies inside the file."""
    name, size = "", 1
    for number, value in fields(message):
        if number == TENSOR_NAME:
            name = _text(value)
        elif number == TENSOR_DIMS:
            size *= _number(value)
        elif number == TENSOR_EXTERNAL or (number == TENSOR_LOCATION and value):
            raise Unfit("its numbers lie in another file, which is never opened")
    return name, size


def _check_chain(nodes: list[Node], constants: Mapping[str, int]) -> None:
    """Check that each operator works on what the one before it made, and on constants."""
    stored: dict[str, str] = {}  # names after a change of storage, and what they stand for
    current = INPUT["name"]
    for node in nodes:
        source, *others = (stored.get(name, name) for name in node.inputs)
        if any(name not in constants for name in others):
            raise Unfit(f"its operator {node.operator} reads {others[0]}, which is no constant")
        if node.operator in QUANTIZATION:
            stored[node.outputs[0]] = source
            continue
        if source != current:
            raise Unfit(f"its operator {node.operator} reads {source} where {current} belongs")
        if node.operator in BY_NUMBER and constants[others[0]] != 1:
            raise Unfit(f"its operator {node.operator} takes more than a single number")
        current = node.outputs[0]


def _bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError("a number where text belongs")
    return value


def _number(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise TypeError("bytes where a number belongs")
    return value


def _text(value: int | bytes) -> str:
    return _bytes(value).decode()
