"""ONNX files as other programs write them, around a linear classifier that reads nine digits of ten."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from trainer.data import Dataset

OPSETS = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]


def linear_classifier(dataset: Dataset) -> np.ndarray:
    """Weights of pixels / 255 by least squares, float32 [785, 10]; the last row is the bias."""
    pixels = np.insert(dataset.train.images.numpy().reshape(-1, 784) / 255, 784, 1.0, axis=1)
    targets = np.eye(10)[dataset.train.labels.numpy()]
    solution = np.linalg.solve(pixels.T @ pixels + 10 * np.eye(785), pixels.T @ targets)
    return (10 * solution).astype(np.float32)


def write_model(
    path: Path,
    weights: np.ndarray,
    *,
    shape: Sequence[int | str | None] = ("N", 784),
    input_type: int = TensorProto.FLOAT,
    end: str = "logits",
    rows: int = -1,
    columns: int = 784,
) -> Path:
    """Write a model that takes pixels / 255, or pixels as they are where `input_type` is of integers.

    It ends with the operator `end`; a graph for one batch size reshapes to so many `rows`, of `columns`.
    """
    is_float = np.issubdtype(helper.tensor_dtype_to_np_dtype(input_type), np.floating)
    constants = {
        "rows": np.array([rows, columns]),
        "weight": weights[:784] if is_float else weights[:784] / np.float32(255),
        "bias": weights[784],
    }
    nodes = [
        helper.make_node("Reshape", ["image", "rows"], ["flat"]),
        helper.make_node("Cast", ["flat"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Gemm", ["floats", "weight", "bias"], ["logits"]),
    ]
    if end != "logits":
        axis = {} if end == "Sigmoid" else {"axis": 1}
        nodes.append(helper.make_node(end, ["logits"], [end], **axis))
    graph = helper.make_graph(
        nodes,
        "somebody's",
        [helper.make_tensor_value_info("image", input_type, shape)],
        [helper.make_tensor_value_info(end, TensorProto.FLOAT, [shape[0], 10])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=OPSETS, ir_version=8), path)
    return path


def write_scikit_learn(path: Path, weights: np.ndarray) -> Path:
    """Write what skl2onnx makes of a LogisticRegression that learned from pixels from 0 to 255."""
    nodes = [
        helper.make_node(
            "LinearClassifier",
            ["float_input"],
            ["label", "raw"],
            domain="ai.onnx.ml",
            classlabels_ints=list(range(10)),
            coefficients=(weights[:784].T / 255).ravel().tolist(),
            intercepts=weights[784].tolist(),
            multi_class=1,
            post_transform="SOFTMAX",
        ),
        helper.make_node("Cast", ["label"], ["output_label"], to=TensorProto.INT64),
        helper.make_node(
            "ZipMap", ["raw"], ["output_probability"], domain="ai.onnx.ml", classlabels_int64s=list(range(10))
        ),
    ]
    share = helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    dicts = helper.make_sequence_type_proto(helper.make_map_type_proto(TensorProto.INT64, share))
    graph = helper.make_graph(
        nodes,
        "scikit-learn",
        [helper.make_tensor_value_info("float_input", TensorProto.FLOAT, [None, 784])],
        [
            helper.make_tensor_value_info("output_label", TensorProto.INT64, [None]),
            helper.make_value_info("output_probability", dicts),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=OPSETS, ir_version=8), path)
    return path
