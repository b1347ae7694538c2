"""An ONNX file of another program, and what makes an artifact of it: the contract's input and outputs.

`OnnxSource.composed` puts the cast, the normalisation and the softmax into the graph. The result is compared
with the original file, which onnxruntime runs on pixels that numpy has normalised.
"""

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from onnx import TensorProto, helper, numpy_helper

from export.onnx_formats import strip_notes
from export.parity import Runner, edge_pictures
from export.source import Convert, Source
from export.torch_formats import ConversionOptions
from serve_cli.errors import InputError
from serve_cli.model_file import MAX_BYTES, read_bytes
from serve_cli.process import printable
from serve_cli.runtime import OUTPUT_NAMES, Prediction, open_session
from serve_cli.spec import CLASSES, IMAGE_SIZE, INPUT, METADATA_KEY, OUTPUTS, temperature_of
from serve_cli.workers import cores

PREFIX = "model/"
"""Put before all names of the original graph, so that none is one of ours."""

LAYOUTS = (
    (IMAGE_SIZE**2,),
    (IMAGE_SIZE, IMAGE_SIZE),
    (1, IMAGE_SIZE, IMAGE_SIZE),
    (IMAGE_SIZE, IMAGE_SIZE, 1),
)
"""Shapes of one image that the input may have."""

FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE)
INTEGERS = (TensorProto.UINT8, TensorProto.INT32, TensorProto.INT64)
"""Types that the input may have: floats get normalised pixels, integers the pixels from 0 to 255."""

ENDS = ("Softmax", "LogSoftmax", "Sigmoid")
"""Operators at the end of a graph that keep the order of the ten numbers."""

LEAST_PROBABILITY = 1e-30
"""Smaller ones count as this one, so that each has a logarithm; float32 goes down to 1e-38."""

LONGEST_REASON = 200

ADVICE = "export it again with one input of 28x28 pixels and one output of ten numbers"


@dataclass(frozen=True, kw_only=True)
class OnnxSource(Source):
    """A model of any architecture; `layout` is the shape of one image in its input.

    `fixed_batch` is the batch size that the file was made for, None where it takes any. `output` is the name
    of its ten numbers an image: logits or, if it `outputs_probabilities`, those, which may not sum to 1.
    """

    path: Path
    proto: onnx.ModelProto
    sha256: str
    layout: tuple[int, ...]
    fixed_batch: int | None
    output: str
    outputs_probabilities: bool

    @property
    def normalizes(self) -> bool:
        """Whether the input is of floats; a file that takes integers normalises them itself."""
        return _input(self.proto).type.tensor_type.elem_type in FLOATS

    def runner(self) -> Runner:
        """Run the original file; its probabilities become logits by their logarithm."""
        image = _input(self.proto)
        dtype = helper.tensor_dtype_to_np_dtype(image.type.tensor_type.elem_type)
        session = open_session(self.proto.SerializeToString(), str(self.path), threads=cores())
        temperature = temperature_of(self.calibration)

        def run(images: np.ndarray, batch_size: int) -> Prediction:
            values = (
                images if not self.normalizes else (images.astype(np.float32) / 255 - self.mean) / self.std
            )
            values = values.astype(dtype).reshape(-1, *self.layout)
            step = self.fixed_batch or batch_size
            parts = []
            for start in range(0, len(values), step):
                part = values[start : start + step]
                padding = np.zeros((step - len(part) if self.fixed_batch else 0, *self.layout), dtype)
                (found,) = session.run([self.output], {image.name: np.concatenate([part, padding])})
                parts.append(found.reshape(len(found), -1)[: len(part)].astype(np.float32))
            raw = np.concatenate(parts) if parts else np.empty((0, CLASSES), np.float32)
            logits = np.log(np.maximum(raw, LEAST_PROBABILITY)) if self.outputs_probabilities else raw
            shares = np.exp((logits - logits.max(axis=1, keepdims=True)).astype(np.float64) / temperature)
            return Prediction(logits, (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32))

        return run

    def convert(self, _convert: Convert, _options: ConversionOptions) -> bytes:
        """The file with the input and the outputs of the contract, for a batch of any size.

        Raises:
            InputError: the graph works with a batch of one size only.
        """
        pictures = edge_pictures()
        try:
            session = open_session(self.composed, str(self.path))
            for batch in (pictures, pictures[:1]):
                (found,) = session.run([OUTPUT_NAMES[0]], {INPUT["name"]: batch})
                if found.shape != (len(batch), CLASSES):
                    raise ValueError(f"{len(batch)} images give {list(found.shape)}")
        except Exception as error:  # onnxruntime's exceptions have no common base
            reason = printable(" ".join(str(error).split())[:LONGEST_REASON])
            raise InputError(
                f"{self.path} cannot take batches of any size ({reason}): export it with a dynamic batch "
                "(dynamic_shapes of torch.onnx.export)"
            ) from error
        return self.composed

    def weights(self) -> Mapping[str, np.ndarray]:
        """The constants of the original graph."""
        shapes = _batch_shapes(self.proto, self.fixed_batch)
        return {
            PREFIX + item.name: numpy_helper.to_array(item)
            for item in self.proto.graph.initializer
            if item.name not in shapes
        }

    def describe(self) -> dict[str, Any]:
        """Operators in place of layers, and what the runtime needs to choose batch size and threads."""
        operators = list(dict.fromkeys(node.op_type for node in self.proto.graph.node))
        return {
            "layers": ", ".join(operators),
            "parameters": sum(math.prod(item.dims) for item in self.proto.graph.initializer),
            "onnx_sha256": self.sha256,
            "activation_bytes": _activation_bytes(self.composed),
        }

    @cached_property
    def composed(self) -> bytes:
        """The original graph between our input and our outputs."""
        model = onnx.ModelProto()
        model.CopyFrom(self.proto)
        _free_batch(model, self.fixed_batch)
        name, output = PREFIX + _input(model).name, PREFIX + self.output
        input_type = _input(model).type.tensor_type.elem_type
        model = onnx.compose.add_prefix(model, PREFIX)
        graph = model.graph
        before, constants = self._before(name, input_type)
        after, more = self._after(output)
        nodes = list(graph.node)
        del graph.node[:], graph.value_info[:], graph.output[:]
        graph.node.extend([*before, *nodes, *after])
        graph.initializer.extend([*constants, *more])
        kept = [item for item in graph.input if item.name != name]  # older files list their constants here
        del graph.input[:]
        image = helper.make_tensor_value_info(INPUT["name"], TensorProto.UINT8, INPUT["shape"])
        graph.input.extend([image, *kept])
        graph.output.extend(
            helper.make_tensor_value_info(item["name"], TensorProto.FLOAT, item["shape"]) for item in OUTPUTS
        )
        graph.name = "mnist"
        strip_notes(model)
        return model.SerializeToString(deterministic=True)

    def _before(self, name: str, input_type: int) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
        """What leads from the image to the input `name` of the original graph."""
        nodes, constants, last = [], [], INPUT["name"]
        if self.normalizes:
            nodes.append(helper.make_node("Cast", [last], ["pixels"], to=TensorProto.FLOAT))
            last = "pixels"
            for operator, operand, value in (
                ("Div", "white", 255),
                ("Sub", "mean", self.mean),
                ("Div", "std", self.std),
            ):
                constants.append(numpy_helper.from_array(np.array(value, np.float32), operand))
                nodes.append(helper.make_node(operator, [last, operand], [f"by_{operand}"]))
                last = f"by_{operand}"
        constants.append(numpy_helper.from_array(np.array([-1, *self.layout]), "layout"))
        nodes.append(helper.make_node("Reshape", [last, "layout"], ["in_layout"]))
        nodes.append(helper.make_node("Cast", ["in_layout"], [name], to=input_type))
        return nodes, constants

    def _after(self, output: str) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
        """What leads from the `output` of the original graph to logits and probabilities."""
        logits, probabilities = OUTPUT_NAMES
        constants = [numpy_helper.from_array(np.array([-1, CLASSES]), "in_rows")]
        nodes = [
            helper.make_node("Cast", [output], ["floats"], to=TensorProto.FLOAT),
            helper.make_node(
                "Reshape", ["floats", "in_rows"], ["rows" if self.outputs_probabilities else logits]
            ),
        ]
        if self.outputs_probabilities:
            constants.append(numpy_helper.from_array(np.array(LEAST_PROBABILITY, np.float32), "least"))
            nodes.append(helper.make_node("Max", ["rows", "least"], ["at_least"]))
            nodes.append(helper.make_node("Log", ["at_least"], [logits]))
        scaled = logits
        if (temperature := temperature_of(self.calibration)) != 1:
            constants.append(numpy_helper.from_array(np.array(temperature, np.float32), "temperature"))
            nodes.append(helper.make_node("Div", [logits, "temperature"], ["scaled"]))
            scaled = "scaled"
        nodes.append(helper.make_node("Softmax", [scaled], [probabilities], axis=1))
        return nodes, constants


def read_onnx(
    data: bytes, path: Path, *, dataset: str, mean: float, std: float, is_given: bool
) -> OnnxSource:
    """Read an ONNX file with the content `data`, and the files beside it that its weights may be in.

    `is_given` says whether the user gave mean or std.

    Raises:
        InputError: it is no ONNX file, is damaged, or has another input or output than a digit classifier.
    """
    proto, sha256 = _load(data, path)
    if METADATA_KEY in {item.key for item in proto.metadata_props}:
        raise InputError(f"{path} was made by mnist export and is proven already: use it as it is")
    layout, batch = _check_input(proto, path)
    source = OnnxSource(
        folder=path.parent,
        path=path,
        mean=mean,
        std=std,
        dataset=dataset,
        proto=proto,
        sha256=sha256,
        layout=layout,
        fixed_batch=batch,
        output=_keep_one_output(proto, path),
        outputs_probabilities=False,
    )
    if not source.normalizes and is_given:
        raise InputError(
            f"{path} takes pixels as integers and normalises them itself: leave out --mean and --std"
        )
    return dataclasses.replace(source, outputs_probabilities=_outputs_probabilities(source))


def _load(data: bytes, path: Path) -> tuple[onnx.ModelProto, str]:
    """The whole model, and the SHA-256 of the file and of those that its weights are in."""
    digest = hashlib.sha256(data)
    try:
        proto = onnx.load_model_from_string(data)
        for name in sorted(_external_files(proto)):
            digest.update(read_bytes(path.parent / name))
        onnx.load_external_data_for_model(proto, str(path.parent))
        onnx.checker.check_model(proto)
        if proto.functions:
            proto = onnx.inliner.inline_local_functions(proto)
    except InputError:
        raise
    except Exception as error:  # those of protobuf and onnx have no common base
        reason = printable(str(error).strip().partition("\n")[0][:LONGEST_REASON])
        raise InputError(f"{path} is damaged or no ONNX file ({reason}): export it again") from error
    if proto.ByteSize() > MAX_BYTES:
        raise InputError(f"{path} has more than {MAX_BYTES // 1024**2} MiB with its weights, the limit here")
    return proto, digest.hexdigest()


def _external_files(proto: onnx.ModelProto) -> set[str]:
    """Names of the files beside the model that hold weights: torch.onnx.export makes one, NAME.onnx.data."""
    external = (item for item in proto.graph.initializer if item.data_location == TensorProto.EXTERNAL)
    return {entry.value for item in external for entry in item.external_data if entry.key == "location"}


def _input(proto: onnx.ModelProto) -> onnx.ValueInfoProto:
    """The first input that is no constant."""
    constants = {item.name for item in proto.graph.initializer}
    return next(item for item in proto.graph.input if item.name not in constants)


def _check_input(proto: onnx.ModelProto, path: Path) -> tuple[tuple[int, ...], int | None]:
    """The shape of one image, and the batch size that the file was made for, None for any.

    Raises:
        InputError: the input is not one batch of images of 28x28 pixels.
    """
    constants = {item.name for item in proto.graph.initializer}
    inputs = [item for item in proto.graph.input if item.name not in constants]
    if len(inputs) != 1:
        raise InputError(f"{path} has {len(inputs)} inputs, expected one: {ADVICE}")
    for node in proto.graph.node:
        if any(attribute.HasField("g") for attribute in node.attribute):
            raise InputError(f"{path} holds the operator {node.op_type}: export it without control flow")
    if TensorProto.FLOAT16 in {item.data_type for item in proto.graph.initializer}:
        raise InputError(
            f"{path} computes in float16, which each runtime rounds at other places: export float32"
        )
    tensor = inputs[0].type.tensor_type
    dims = [item.dim_value or None for item in tensor.shape.dim]
    fits = [
        layout
        for layout in LAYOUTS
        if len(dims) == 1 + len(layout)
        and all(found in (None, size) for found, size in zip(dims[1:], layout, strict=True))
    ]
    if not fits or tensor.elem_type not in (*FLOATS, *INTEGERS):
        shape = ", ".join(str(size or "N") for size in dims)
        kind = TensorProto.DataType.Name(tensor.elem_type).lower()
        raise InputError(
            f"{path} takes {kind} [{shape}], expected "
            f"float or uint8 [N, 784], [N, 28, 28], [N, 1, 28, 28] or [N, 28, 28, 1]: {ADVICE}"
        )
    return fits[0], dims[0]


def _keep_one_output(proto: onnx.ModelProto, path: Path) -> str:
    """Leave the output that has ten numbers an image, and return its name.

    scikit-learn's converters add the labels, and turn the probabilities into dicts by ZipMap; what ZipMap
    reads is taken in its place. So are the logits before a last softmax or sigmoid.

    Raises:
        InputError: there is no such output, or more than one.
    """
    graph = proto.graph
    zipped = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "ZipMap"}
    found = [item for item in graph.output if item.name in zipped or _is_ten_floats(item)]
    if len(found) != 1:
        names = ", ".join(printable(item.name) for item in graph.output)[:LONGEST_REASON]
        raise InputError(
            f"{path} has {len(found)} outputs of ten floats an image, expected one (of {names}): {ADVICE}"
        )
    name = zipped.get(found[0].name, found[0].name)
    makers = {node.output[0]: node for node in graph.node if node.op_type in ENDS}
    while name in makers:
        name = makers[name].input[0]
    elem_type = found[0].type.tensor_type.elem_type or TensorProto.FLOAT
    nodes = [node for node in graph.node if node.op_type != "ZipMap"]
    del graph.node[:], graph.output[:]
    graph.node.extend(nodes)
    graph.output.append(helper.make_tensor_value_info(name, elem_type, None))
    return str(name)


def _is_ten_floats(output: onnx.ValueInfoProto) -> bool:
    tensor = output.type.tensor_type
    sizes = [size.dim_value for size in tensor.shape.dim][1:]
    return tensor.elem_type in FLOATS and all(size in (0, 1, CLASSES) for size in sizes)


def _outputs_probabilities(source: OnnxSource) -> bool:
    """Whether the outputs for pictures of any kind are probabilities, or ten sigmoids.

    Raises:
        InputError: the model fails on them, gives no ten finite numbers for each, or others each time.
    """
    pictures = edge_pictures()
    try:
        run = source.runner()
        found, again = (run(pictures, batch_size).logits for batch_size in (len(pictures), 1))
    except InputError:
        raise
    except Exception as error:  # onnxruntime's exceptions have no common base
        raise InputError(f"{source.path} gives no ten numbers an image ({error}): {ADVICE}") from error
    if found.shape != (len(pictures), CLASSES) or not np.isfinite(found).all():
        raise InputError(f"{source.path} gives no ten finite numbers an image: {ADVICE}")
    if not np.allclose(found, again, rtol=1e-2, atol=1e-2):
        raise InputError(
            f"{source.path} gives other numbers for an image each time: "
            "export it in evaluation mode, model.eval()"
        )
    return bool((found >= 0).all() and (found <= 1).all())


def _free_batch(proto: onnx.ModelProto, fixed_batch: int | None) -> None:
    """Change the shapes that a graph for one batch size reshapes to: 0, the input's own size, comes first."""
    shapes = _batch_shapes(proto, fixed_batch)
    for item in shapes.values():
        item.CopyFrom(numpy_helper.from_array(np.array([0, *numpy_helper.to_array(item)[1:]]), item.name))
    for node in proto.graph.node:
        if node.op_type == "Reshape" and node.input[1] in shapes:
            del node.attribute[:]  # allowzero, with which 0 would be no element


def _batch_shapes(proto: onnx.ModelProto, fixed_batch: int | None) -> dict[str, TensorProto]:
    """The constant shapes of Reshape that begin with the fixed batch size, by name."""
    if fixed_batch is None:
        return {}
    shapes = {node.input[1] for node in proto.graph.node if node.op_type == "Reshape"}
    constants = {item.name: item for item in proto.graph.initializer}
    nodes = proto.graph.node
    constants |= {node.output[0]: node.attribute[0].t for node in nodes if node.op_type == "Constant"}
    values = {name: numpy_helper.to_array(constants[name]) for name in shapes & constants.keys()}
    return {
        name: constants[name]
        for name, value in values.items()
        if value.ndim == 1 and len(value) > 1 and value[0] == fixed_batch
    }


def _activation_bytes(model: bytes) -> int:
    """Bytes of all values that the graph computes for one image, as far as their shapes are known."""
    proto = onnx.load_model_from_string(model)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    for output in proto.graph.output:
        output.type.tensor_type.shape.dim[0].dim_value = 1
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    shapes = (
        [size.dim_value for size in item.type.tensor_type.shape.dim] for item in inferred.graph.value_info
    )
    return 4 * sum(map(math.prod, shapes))
