"""ONNX files are looked through before anything runs them; onnx itself is the oracle."""

import contextlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from serve_cli.onnx_file import Unfit, check_graph, read_metadata
from serve_cli.protobuf import fields
from tests.serve_cli.hostile_onnx import HOSTILE_GRAPHS, by


@pytest.fixture
def model(calibrated: Path) -> onnx.ModelProto:
    return onnx.load(calibrated / "model.onnx")


def test_metadata_is_what_onnx_reads(model: onnx.ModelProto) -> None:
    expected = {item.key: item.value for item in model.metadata_props}
    assert read_metadata(model.SerializeToString()) == expected
    assert len(expected) == 5


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


@pytest.mark.parametrize("name", HOSTILE_GRAPHS)
def test_a_hostile_graph_is_refused(model: onnx.ModelProto, name: str) -> None:
    check_graph(model.SerializeToString())
    change, message = HOSTILE_GRAPHS[name]
    change(model.graph)
    with pytest.raises(Unfit, match=message):
        check_graph(model.SerializeToString())


SCALINGS = [name for name in HOSTILE_GRAPHS if "temperature" in name or name.startswith("logits")]
SCALINGS.remove("a temperature for pixels")  # in 8 bits std is inside the first layer, so this is one


@pytest.mark.parametrize("name", SCALINGS)
def test_a_hostile_temperature_is_refused_in_8_bits_too(calibrated: Path, name: str) -> None:
    model = onnx.load(calibrated / "model.int8.onnx")
    check_graph(model.SerializeToString())
    change, _ = HOSTILE_GRAPHS[name]
    change(model.graph)
    with pytest.raises(Unfit):
        check_graph(model.SerializeToString())


def test_pixels_of_several_scales_are_refused(artifact: Path) -> None:
    """An image has one number for its scale; a list of them would change its shape."""
    model = onnx.load(artifact / "model.int8.onnx")
    node = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
    scale = next(item for item in model.graph.initializer if item.name == node.input[1])
    scale.CopyFrom(numpy_helper.from_array(np.full(28, 0.1, np.float32), scale.name))
    with pytest.raises(Unfit, match="QuantizeLinear takes more than a single number"):
        check_graph(model.SerializeToString())


def test_sizes_in_one_piece_are_refused(model: onnx.ModelProto) -> None:
    """Protobuf allows a list of numbers to come as bytes, which ours never do."""
    constant = min((item for item in model.graph.initializer if item.dims), key=lambda item: item.ByteSize())
    before = constant.SerializeToString()
    assert before[:2] == bytes([1 << 3, constant.dims[0]])
    packed = bytes([1 << 3 | 2, 1, constant.dims[0]]) + before[2:]
    graph = model.graph.SerializeToString()
    at = graph.index(before) - 2
    assert graph[at : at + 2] == bytes([5 << 3 | 2, len(before)])
    graph = graph[:at] + bytes([5 << 3 | 2, len(packed)]) + packed + graph[at + 2 + len(before) :]
    model.ClearField("graph")
    size = bytes([len(graph) & 0x7F | 0x80, len(graph) >> 7 & 0x7F | 0x80, len(graph) >> 14])
    with pytest.raises(Unfit, match="bytes where a number belongs"):
        check_graph(model.SerializeToString() + bytes([7 << 3 | 2]) + size + graph)


@pytest.mark.parametrize("value", [0.25, 0.927, 1.0, 4.0])
def test_any_temperature_is_accepted(model: onnx.ModelProto, value: float) -> None:
    by(value)(model.graph)
    check_graph(model.SerializeToString())


def test_functions_and_training_are_refused(model: onnx.ModelProto) -> None:
    other = onnx.ModelProto()
    other.CopyFrom(model)
    model.functions.add(name="Relu", domain="")
    other.training_info.add()
    for changed in (model, other):
        with pytest.raises(Unfit, match="it has a part that ours never have"):
            check_graph(changed.SerializeToString())


def test_a_graph_in_two_parts_is_read_as_one(model: onnx.ModelProto) -> None:
    """Protobuf merges a field that comes twice, so a second graph could add to the first."""
    addition = onnx.ModelProto()
    addition.graph.node.append(helper.make_node("Loop", ["probabilities"], ["more"]))
    with pytest.raises(Unfit, match="2 values where one belongs"):
        check_graph(model.SerializeToString() + addition.SerializeToString())


@pytest.mark.parametrize("tag", [b"\xba\x80\x80\x80\x10", b"\xba\x00", b"\xba\x80\x80\x80\x00"])
def test_a_graph_under_another_spelling_of_its_tag_is_refused(model: onnx.ModelProto, tag: bytes) -> None:
    """onnxruntime's protobuf takes 32 bits of a tag, and numbers with bytes too many."""
    addition = helper.make_graph([helper.make_node("Loop", [], [])], "more", [], []).SerializeToString()
    with pytest.raises(Unfit, match="damaged"):
        check_graph(model.SerializeToString() + tag + bytes([len(addition)]) + addition)


@pytest.mark.parametrize("data", [b"", b"\x00", b"<html>", b"PK\x03\x04", b"\x72\x05"])
def test_what_is_no_model_has_no_metadata(data: bytes) -> None:
    try:
        assert read_metadata(data) == {}
    except Unfit as error:
        assert "damaged or no ONNX file" in str(error)  # noqa: PT017
    with pytest.raises(Unfit):
        check_graph(data)
