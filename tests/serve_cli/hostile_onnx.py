"""Hostile changes to the graph of a genuine, calibrated ONNX file."""

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Change = Callable[[onnx.GraphProto], object]


def insert(operator: str, domain: str = "", **attributes: object) -> Change:
    """Put an operator between image and the first of ours."""

    def change(graph: onnx.GraphProto) -> None:
        graph.node[0].input[0] = "new"
        graph.node.insert(
            0, helper.make_node(operator, ["image"], ["new"], domain=domain or None, **attributes)
        )

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


def node_of(graph: onnx.GraphProto, operator: str) -> onnx.NodeProto:
    return next(node for node in graph.node if node.op_type == operator)


def of_two_values(graph: onnx.GraphProto) -> None:
    """One reader takes the float, the other the integer."""
    attribute = node_of(graph, "Cast").attribute[0]
    attribute.f, attribute.i = 1.0, TensorProto.INT64


def to_integers(graph: onnx.GraphProto) -> None:
    """Then a division by -1 may end the process."""
    node_of(graph, "Cast").attribute[0].i = TensorProto.INT64


def in_columns(graph: onnx.GraphProto) -> None:
    """A column for each pixel: what follows is 784 times as large."""
    name = node_of(graph, "Reshape").input[1]
    constant = next(item for item in graph.initializer if item.name == name)
    constant.CopyFrom(numpy_helper.from_array(np.array([-1, 1], np.int64), name))


def with_a_body(graph: onnx.GraphProto) -> None:
    relu = node_of(graph, "Relu")
    relu.attribute.append(helper.make_attribute("body", helper.make_graph([], "body", [], [])))


def turned(graph: onnx.GraphProto) -> None:
    next(item for item in node_of(graph, "Gemm").attribute if item.name == "transA").i = 1


def one_weight_for_all(graph: onnx.GraphProto) -> None:
    gemms = [node for node in graph.node if node.op_type == "Gemm"]
    gemms[1].input[1] = gemms[0].input[1]


def wide_layer(graph: onnx.GraphProto) -> None:
    """Narrow and then very wide: small as a file, large when it runs."""
    first, second = [node for node in graph.node if node.op_type == "Gemm"][:2]
    shapes = {
        first.input[1]: (1, 784),
        first.input[2]: (1,),
        second.input[1]: (20_000, 1),
        second.input[2]: (20_000,),
    }
    for constant in graph.initializer:
        if constant.name in shapes:
            zeros = np.zeros(shapes[constant.name], np.float32)
            constant.CopyFrom(numpy_helper.from_array(zeros, constant.name))


def by(*values: float, dims: tuple[int, ...] = (), dtype: type = np.float32) -> Change:
    """Give the file another temperature."""

    def change(graph: onnx.GraphProto) -> None:
        temperature = next(item for item in graph.initializer if item.name == "temperature")
        numbers = np.array(values, dtype).reshape(dims)
        temperature.CopyFrom(numpy_helper.from_array(numbers, temperature.name))

    return change


def scaled_at(position: int) -> Change:
    """Divide what the operator at `position` makes by the temperature instead; -1 is the last one's."""

    def change(graph: onnx.GraphProto) -> None:
        division = next(node for node in graph.node if "temperature" in node.input)
        softmax = node_of(graph, "Softmax")
        graph.node.remove(division)
        softmax.input[0] = "logits"
        before = graph.node[position]
        division.input[0], before.output[0] = f"{before.output[0]} before", f"{before.output[0]} before"
        division.output[0] = division.input[0].removesuffix(" before")
        graph.node.insert(list(graph.node).index(before) + 1, division)

    return change


def scaled_twice(graph: onnx.GraphProto) -> None:
    softmax = node_of(graph, "Softmax")
    second = helper.make_node("Div", [softmax.input[0], "temperature"], ["again"])
    softmax.input[0] = "again"
    graph.node.insert(len(graph.node) - 1, second)


def scaled_by_itself(graph: onnx.GraphProto) -> None:
    division = next(node for node in graph.node if "temperature" in node.input)
    division.input[1] = division.input[0]


def scaled_logits(graph: onnx.GraphProto) -> None:
    """What is called logits has the temperature in it already."""
    gemm = [node for node in graph.node if node.op_type == "Gemm"][-1]
    division = next(node for node in graph.node if "temperature" in node.input)
    gemm.output[0] = division.input[0] = "raw"
    division.output[0] = node_of(graph, "Softmax").input[0] = "logits"


def shifted(graph: onnx.GraphProto) -> None:
    next(node for node in graph.node if "temperature" in node.input).op_type = "Sub"


def of_one_name(graph: onnx.GraphProto) -> None:
    graph.initializer.append(graph.initializer[0])


def without_relu(graph: onnx.GraphProto) -> None:
    relu = [node for node in graph.node if node.op_type == "Relu"][-1]
    reader = next(node for node in graph.node if relu.output[0] in node.input)
    reader.input[0] = relu.input[0]
    graph.node.remove(relu)


def of_the_image_again(graph: onnx.GraphProto) -> None:
    node_of(graph, "Relu").input[0] = "image"


def relu_of_logits(graph: onnx.GraphProto) -> None:
    division = next(node for node in graph.node if "temperature" in node.input)
    graph.node.insert(list(graph.node).index(division), helper.make_node("Relu", ["logits"], ["positive"]))
    division.input[0] = "positive"


HOSTILE_GRAPHS: dict[str, tuple[Change, str]] = {
    "a loop": (insert("Loop"), "operator Loop"),
    "a branch": (insert("If"), "operator If"),
    "a giant": (insert("Expand"), "operator Expand"),
    "a repetition": (insert("Tile"), "operator Tile"),
    "a custom domain": (insert("Relu", domain="com.evil"), "an operator has a part that ours never have"),
    "onnxruntime's own": (
        insert("QGemm", domain="com.microsoft"),
        "an operator has a part that ours never have",
    ),
    "external data": (external, "a constant has a part that ours never have"),
    "a large divisor": (wider, "as many numbers as it claims"),
    "constants multiplied": (side_by_side, "Gemm has other attributes than ours"),
    "a product with itself": (of_its_own_output, "that is no constant"),
    "a layer that is passed over": (of_the_image_again, "reads image where"),
    "an attribute of two values": (of_two_values, "2 values where one belongs"),
    "integers": (to_integers, "Cast has other attributes"),
    "columns": (in_columns, "constants that do not fit"),
    "a graph in an attribute": (with_a_body, "an attribute has a part"),
    "turned images": (turned, "Gemm has other attributes"),
    "one weight for all": (one_weight_for_all, "a weight twice"),
    "a very wide layer": (wide_layer, "constants that do not fit"),
    "a temperature a class": (by(*[1.0] * 10, dims=(10,)), "constants that do not fit"),
    "a temperature in a list": (by(1.0, dims=(1,)), "constants that do not fit"),
    "a temperature of 0": (by(0.0), "its temperature is 0"),
    "a temperature of -0": (by(-0.0), "its temperature is -0"),
    "a negative temperature": (by(-1.5), "its temperature is -1.5"),
    "an infinite temperature": (by(np.inf), "its temperature is inf"),
    "a temperature that is no number": (by(np.nan), "its temperature is nan"),
    "a temperature of 8 bytes": (by(2, dtype=np.int64), "graph is damaged"),
    "a temperature for the weights": (scaled_at(-2), "do not make the logits"),
    "a temperature before the last layer": (scaled_at(-3), "not in the order of ours"),
    "a temperature for pixels": (scaled_at(0), "not in the order of ours"),
    "a temperature for probabilities": (scaled_at(-1), "not in the order of ours"),
    "two temperatures": (scaled_twice, "not in the order of ours"),
    "logits divided by themselves": (scaled_by_itself, "that is no constant"),
    "logits that are scaled": (scaled_logits, "do not make the logits"),
    "logits that are shifted": (shifted, "not in the order of ours"),
    "no last Relu": (without_relu, "not in the order of ours"),
    "a Relu too many": (relu_of_logits, "not in the order of ours"),
    "constants of one name": (of_one_name, "two constants of one name"),
    "notes on shapes": (lambda graph: graph.value_info.add(), "its graph has a part"),
    "no input": (lambda graph: graph.node[0].ClearField("input"), "graph is damaged"),
    "no output": (lambda graph: graph.node[0].ClearField("output"), "graph is damaged"),
    "sparse numbers": (lambda graph: graph.sparse_initializer.add(), "its graph has a part"),
    "too many operators": (
        lambda graph: [graph.node.append(helper.make_node("Relu", ["x"], ["x"])) for _ in range(2000)],
        "at most 2,000",
    ),
}
"""What somebody may do to a graph of ours, and what is then said of it."""
