"""The ONNX formats: convert, quantize to 8 bits, embed the contract, open."""

import copy
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
import torch._dynamo  # the exporter's own import of it would swallow Ctrl-C
from onnx import numpy_helper

from export.parity import Runner
from export.torch_formats import EXAMPLE, ConversionOptions, quiet
from serve_cli.errors import InputError
from serve_cli.runtime import Prediction, Predictor, open_session
from serve_cli.spec import INPUT, METADATA_KEY, OUTPUTS, Contract
from trainer.model import MLP, DeployedModel, Normalize

DEFAULT_OPSET = 20
FIRST_OPSET = 18
"""Oldest operator set that PyTorch's exporter writes; asked for an older one, it silently writes this one."""

NEWEST_OPSET = onnx.defs.onnx_opset_version()
FIRST_INT8_OPSET = 19
"""Oldest one whose quantization ONNX's own evaluator knows."""

CALIBRATION_BATCH = 500

IMAGE_METADATA = {
    "Image.BitmapPixelFormat": "Gray8",
    "Image.ColorSpaceGamma": "SRGB",
    "Image.NominalPixelRange": "NominalRange_0_255",
}
"""ONNX's own words for an image: https://onnx.ai/onnx/repo-docs/MetadataProps.html"""

OUTPUT_NAMES = [output["name"] for output in OUTPUTS]


def convert_onnx(model: DeployedModel, options: ConversionOptions) -> bytes:
    """`model` as one ONNX file that holds no local path.

    Raises:
        InputError: the exporter cannot write this opset.
    """
    with quiet():
        program = torch.onnx.export(
            _with_distinct_weights(model),
            (EXAMPLE,),
            dynamo=True,
            input_names=[INPUT["name"]],
            output_names=OUTPUT_NAMES,
            dynamic_shapes={INPUT["name"]: {0: torch.export.Dim("N")}},
            opset_version=options.opset,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    state = model.state_dict()
    for constant in proto.graph.initializer:
        if constant.name in state:
            constant.CopyFrom(numpy_helper.from_array(state[constant.name].numpy(), constant.name))
    strip_notes(proto)
    _denote(proto.graph.input[0])
    return _checked(proto, options.opset)


def _with_distinct_weights(model: DeployedModel) -> DeployedModel:
    """A copy whose weights all differ: the exporter drops a bias of zeros, and merges equal constants."""
    distinct = copy.deepcopy(model)
    for number, parameter in enumerate(distinct.net.parameters()):
        parameter.data = (torch.arange(parameter.numel()) + number + 1.0).view_as(parameter)
    return distinct


def convert_int8(model: DeployedModel, options: ConversionOptions) -> bytes:
    """`model` with 8-bit weights and activations, calibrated on training images.

    Both are unsigned: with signed weights, processors without VNNI saturate sums and compute other logits.
    The output of a layer stays float until the next layer reads it: that halves the error.

    Raises:
        InputError: the exporter cannot write this opset.
    """
    from onnxruntime import quantization  # 0.3 s to import, which the other formats do not need

    class Batches(quantization.CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        def __init__(self) -> None:
            images = options.calibration_images
            self.batches = iter(np.array_split(images, -(-len(images) // CALIBRATION_BATCH)))

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {INPUT["name"]: batch}

    folded = onnx.load_model_from_string(convert_onnx(_fold_normalization(model), options))
    with quiet(), tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "model.onnx")
        quantization.quantize_static(
            folded,
            output,
            Batches(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["Gemm"],
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QUInt8,
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm"]},
        )
        proto = onnx.load(output)
    strip_notes(proto)
    return _checked(proto, options.opset)


def _fold_normalization(model: DeployedModel) -> DeployedModel:
    """The same model with mean and std inside its first layer.

    Pixels / 255, which the layer then reads, are exact in 8 bits. Normalised pixels are all off by the same
    part of a step, which adds up over 784 of them.
    """
    mean, std = model.normalize.mean.double(), model.normalize.std.double()
    state = model.net.state_dict()
    weight, bias = state["fc1.weight"].double(), state["fc1.bias"].double()
    folded = {"fc1.weight": weight / std, "fc1.bias": bias - (weight * mean / std).sum(dim=1)}
    net = MLP(model.net.hidden)
    net.load_state_dict({**state, **folded})
    temperature = 1.0 if model.temperature is None else model.temperature.item()
    return DeployedModel(net, Normalize(0.0, 1.0), temperature).eval()


def strip_notes(proto: onnx.ModelProto) -> None:
    """Remove the exporter's notes, which hold absolute paths of this machine, and all else that nobody needs.

    Constants are kept in one way, as raw bytes, so that equal models are equal files.
    """
    graph = proto.graph
    del proto.metadata_props[:], graph.value_info[:]
    for item in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del item.metadata_props[:]
        item.ClearField("doc_string")
    for constant in graph.initializer:
        constant.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(constant), constant.name))


def _denote(image: onnx.ValueInfoProto) -> None:
    """State in ONNX's own words what the input is: https://onnx.ai/onnx/repo-docs/TypeDenotation.html"""
    image.type.denotation = "IMAGE"
    dimensions = image.type.tensor_type.shape.dim
    for dimension, denotation in zip(dimensions, ("DATA_BATCH", *["DATA_FEATURE"] * 2), strict=True):
        dimension.denotation = denotation


def _checked(proto: onnx.ModelProto, opset: int) -> bytes:
    """The bytes of a model whose operator set is the one asked for, and that onnxruntime can run.

    Raises:
        InputError: it is another one, or onnxruntime does not know it.
    """
    written = next(item.version for item in proto.opset_import if item.domain == "")
    if written != opset:
        raise InputError(
            f"--opset {opset} cannot be written, the exporter made it {written}: leave the option out"
        )
    onnx.checker.check_model(proto)
    data = proto.SerializeToString(deterministic=True)
    try:
        open_session(data)
    except InputError as error:
        advice = "" if opset == DEFAULT_OPSET else ": leave the option out"
        raise InputError(f"--opset {opset} cannot be proven, {error}{advice}") from error
    return data


def embed_contract(model: bytes, contract: Contract) -> bytes:
    """The file with the contract in its metadata, which comes last: the bytes of `model` do not change."""
    metadata = onnx.ModelProto()
    properties = {METADATA_KEY: contract.to_json(), **IMAGE_METADATA, "model_license": contract.license}
    onnx.helper.set_model_props(metadata, properties)
    return model + metadata.SerializeToString(deterministic=True)


def weights(model: bytes) -> Mapping[str, np.ndarray]:
    """The constants of the graph by name."""
    graph = onnx.load_model_from_string(model).graph
    return {item.name: numpy_helper.to_array(item) for item in graph.initializer}


def run_onnxruntime(path: Path) -> Runner:
    """Open the file with the class that `mnist infer` uses."""
    predictor = Predictor(path)
    return lambda images, batch_size: predictor.predict(images, batch_size=batch_size)


def run_reference(path: Path) -> Runner:
    """Open the file with ONNX's own evaluator, which shares no code with onnxruntime or PyTorch."""
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(str(path))

    def run(images: np.ndarray, batch_size: int) -> Prediction:
        starts = range(0, max(len(images), 1), batch_size)
        parts = [evaluator.run(OUTPUT_NAMES, {INPUT["name"]: images[at : at + batch_size]}) for at in starts]
        logits, probabilities = map(np.concatenate, zip(*parts, strict=True))
        return Prediction(logits, probabilities)

    return run
