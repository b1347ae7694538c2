"""ONNX files are looked through before anything runs them; onnx itself is the oracle."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from serve_cli.onnx_file import Unfit, check_digest, check_graph, digest, read_metadata
from serve_cli.protobuf import fields


@pytest.fixture
def model(artifact: Path) -> onnx.ModelProto:
    return onnx.load(artifact / "model.onnx")


def test_metadata_is_what_onnx_reads(model: onnx.ModelProto) -> None:
    expected = {item.key: item.value for item in model.metadata_props}
    assert read_metadata(model.SerializeToString()) == expected
    assert len(expected) == 6


def test_fields_are_what_onnx_reads(model: onnx.ModelProto) -> None:
    found: dict[int, list[int | bytes]] = {}
    for number, value in fields(model.SerializeToString()):
        found.setdefault(number, []).append(value)
    assert found[1] == [model.ir_version]
    assert found[2] == [model.producer_name.encode()]
    assert found[7] == [model.graph.SerializeToString()]
    tensor = numpy_helper.from_array(np.arange(300, dtype=np.float32), "x")
    assert dict(fields(tensor.SerializeToString())) == {1: 300, 2: 1, 8: b"x", 9: tensor.raw_data}


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_fields_or_refused(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        for number, value in fields(data):
            assert number >= 0
            assert isinstance(value, int) or len(value) <= len(data)


@pytest.mark.parametrize(
    "data", [b"\x08", b"\x08" + b"\xff" * 11, b"\x0a\x05ab", b"\x0b", b"\x0d\x00\x00", b"\x3e"]
)
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"(field|number|wire type)"):
        list(fields(data))


def test_too_many_fields_are_refused() -> None:
    with pytest.raises(ValueError, match="more than 100,000 fields"):
        list(fields(b"\x08\x00" * 100_001))


def test_every_changed_byte_is_noticed(artifact: Path) -> None:
    data = (artifact / "model.int8.onnx").read_bytes()
    metadata = read_metadata(data)
    check_digest(data, metadata)
    for place in range(0, len(data), 997):
        changed = bytearray(data)
        changed[place] ^= 0x10
        with pytest.raises(Unfit):
            check_digest(bytes(changed), read_metadata(bytes(changed)))


@pytest.mark.parametrize("found", ["", "0" * 63, "0" * 64, "x" * 64])
def test_a_digest_that_is_none_is_refused(found: str) -> None:
    with pytest.raises(Unfit, match="not those that were exported"):
        check_digest(b"model" + found.encode(), {"mnist_toolkit.sha256": found})


def test_the_digest_does_not_depend_on_itself() -> None:
    empty = digest(b"abc" + b"0" * 64)
    assert digest(b"abc" + empty.encode(), empty) == empty


Change = Callable[[onnx.GraphProto], object]


def insert(operator: str, domain: str = "", **attributes: object) -> Change:
    """Put an operator between image and the first of ours."""

    def change(graph: onnx.GraphProto) -> None:
        graph.node[0].input[0] = "new"
        graph.node.insert(0, helper.make_node(operator, ["image"], ["new"], domain=domain, **attributes))

    return change


def constant(name: str, values: np.ndarray) -> Change:
    def change(graph: onnx.GraphProto) -> None:
        graph.initializer.append(numpy_helper.from_array(values, name))

    return change


def all_of(*changes: Change) -> Change:
    return lambda graph: [change(graph) for change in changes]


def external(graph: onnx.GraphProto) -> None:
    weight = graph.initializer[0]
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="/etc/passwd")
    weight.ClearField("raw_data")


def wider(graph: onnx.GraphProto) -> None:
    division = next(node for node in graph.node if node.op_type == "Div")
    division.input[1] = "wide"
    graph.initializer.append(numpy_helper.from_array(np.ones((100, 1, 1), np.float32), "wide"))


def side_by_side(graph: onnx.GraphProto) -> None:
    """Multiply two constants: an outer product of any size, out of a small file."""
    graph.initializer.append(numpy_helper.from_array(np.ones((1000, 1), np.float32), "tall"))
    graph.initializer.append(numpy_helper.from_array(np.ones((1, 1000), np.float32), "flat"))
    graph.node.append(helper.make_node("Gemm", ["tall", "flat"], ["huge"]))


def of_its_own_output(graph: onnx.GraphProto) -> None:
    gemm = next(node for node in graph.node if node.op_type == "Gemm")
    gemm.input[1] = gemm.input[0]


HOSTILE = {
    "a loop": (insert("Loop"), "operator Loop"),
    "a branch": (insert("If"), "operator If"),
    "a giant": (insert("Expand"), "operator Expand"),
    "a repetition": (insert("Tile"), "operator Tile"),
    "a custom domain": (insert("Relu", domain="com.evil"), r"operator com\.evil\.Relu"),
    "onnxruntime's own": (insert("QGemm", domain="com.microsoft"), r"operator com\.microsoft\.QGemm"),
    "external data": (external, "lie in another file"),
    "a large divisor": (wider, "more than a single number"),
    "constants multiplied": (side_by_side, "reads tall where probabilities belongs"),
    "a product with itself": (of_its_own_output, "is no constant"),
    "no input": (lambda graph: graph.node[0].ClearField("input"), "graph is damaged"),
    "no output": (lambda graph: graph.node[0].ClearField("output"), "graph is damaged"),
    "sparse numbers": (lambda graph: graph.sparse_initializer.add(), "sparse"),
    "too many operators": (
        lambda graph: [graph.node.append(helper.make_node("Relu", ["x"], ["x"])) for _ in range(2000)],
        "at most 2,000",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_graph_is_refused(model: onnx.ModelProto, name: str) -> None:
    check_graph(model.SerializeToString())
    change, message = HOSTILE[name]
    change(model.graph)
    with pytest.raises(Unfit, match=message):
        check_graph(model.SerializeToString())


def test_functions_and_training_are_refused(model: onnx.ModelProto) -> None:
    other = onnx.ModelProto()
    other.CopyFrom(model)
    model.functions.add(name="Relu", domain="")
    other.training_info.add()
    for changed in (model, other):
        with pytest.raises(Unfit, match="functions of its own"):
            check_graph(changed.SerializeToString())


def test_a_graph_in_two_parts_is_read_as_one(model: onnx.ModelProto) -> None:
    """Protobuf merges a field that comes twice, so a second graph could add to the first."""
    addition = onnx.ModelProto()
    addition.graph.node.append(helper.make_node("Loop", ["probabilities"], ["more"]))
    with pytest.raises(Unfit, match="operator Loop"):
        check_graph(model.SerializeToString() + addition.SerializeToString())


@pytest.mark.parametrize("data", [b"", b"\x00", b"<html>", b"PK\x03\x04", b"\x72\x05"])
def test_what_is_no_model_has_no_metadata(data: bytes) -> None:
    try:
        assert read_metadata(data) == {}
    except Unfit as error:
        assert "damaged or no ONNX file" in str(error)  # noqa: PT017
