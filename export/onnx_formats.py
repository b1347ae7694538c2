"""The ONNX formats: write the model, shrink it to 8-bit integers, stamp a contract on it, open it."""

from pathlib import Path

import numpy as np
import onnx
import torch
import torch._dynamo  # the exporter's own import of it would swallow Ctrl-C
from onnx import numpy_helper
from onnx.helper import set_model_props
from onnx.reference import ReferenceEvaluator
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from export.format import EXAMPLE, Order, Runner, quiet
from serve_cli.errors import InputError
from serve_cli.onnx_file import DIGEST_KEY, NO_DIGEST, Unfit, digest
from serve_cli.runtime import Prediction, Predictor, open_session
from serve_cli.spec import INPUT, METADATA_KEY, OUTPUTS, Contract
from trainer.model import MLP, DeployedModel, Normalize

DEFAULT_OPSET = 20
FIRST_OPSET = 18
"""Oldest operator set that PyTorch's exporter writes; asked for an older one, it silently writes this one."""

FIRST_INT8_OPSET = 19
"""Oldest one whose quantization ONNX's own evaluator knows."""

CALIBRATION_BATCH = 500

IMAGE_METADATA = {
    "Image.BitmapPixelFormat": "Gray8",
    "Image.ColorSpaceGamma": "SRGB",
    "Image.NominalPixelRange": "NominalRange_0_255",
}
"""What ONNX itself has to say of an image: https://onnx.ai/onnx/repo-docs/MetadataProps.html"""


def convert_onnx(model: DeployedModel, path: Path, order: Order) -> None:
    """Write `model` as one ONNX file that holds no local path.

    Raises:
        InputError: the exporter cannot write this opset.
    """
    with quiet():
        program = torch.onnx.export(
            model,
            (EXAMPLE,),
            dynamo=True,
            input_names=[INPUT["name"]],
            output_names=[output["name"] for output in OUTPUTS],
            dynamic_shapes={INPUT["name"]: {0: torch.export.Dim("N")}},
            opset_version=order.opset,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    _strip(proto)
    _denote(proto.graph.input[0])
    _save(proto, path, order.opset)


def convert_onnx_int8(model: DeployedModel, path: Path, order: Order) -> None:
    """Write `model` with 8-bit weights and activations, calibrated on `order.calibration`.

    Both are unsigned: with signed weights, processors without VNNI saturate sums and answer differently.
    What a layer puts out stays float until the next one reads it: that halves the error.

    Raises:
        InputError: the exporter cannot write this opset.
    """
    convert_onnx(_fold_normalization(model), path, order)
    with quiet():
        quantize_static(
            path,
            path,
            _Batches(order.calibration),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Gemm"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QUInt8,
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm"]},
        )
    proto = onnx.load(path)
    _strip(proto)
    _save(proto, path, order.opset)


def _fold_normalization(model: DeployedModel) -> DeployedModel:
    """The same model, of temperature and all, with mean and std inside its first layer.

    What the layer then reads, pixels / 255, is exact in 8 bits; normalised pixels are all off by the same
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


class _Batches(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Feeds uint8 images [N, 28, 28] to onnxruntime's calibration."""

    def __init__(self, images: np.ndarray) -> None:
        self._batches = iter(np.array_split(images, -(-len(images) // CALIBRATION_BATCH)))

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch, None after the last."""
        batch = next(self._batches, None)
        return None if batch is None else {INPUT["name"]: batch}


def _strip(proto: onnx.ModelProto) -> None:
    """Remove the exporter's notes, which hold absolute paths of this machine, and all else that nobody needs.

    Constants are kept in one way, as raw bytes; see serve_cli.onnx_file for what a file may hold.
    """
    graph = proto.graph
    del proto.metadata_props[:], graph.value_info[:]
    for item in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del item.metadata_props[:]
        item.ClearField("doc_string")
    for constant in graph.initializer:
        constant.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(constant), constant.name))


def _denote(image: onnx.ValueInfoProto) -> None:
    """Say in ONNX's own words what the input is: https://onnx.ai/onnx/repo-docs/TypeDenotation.html"""
    image.type.denotation = "IMAGE"
    dimensions = image.type.tensor_type.shape.dim
    for dimension, denotation in zip(dimensions, ("DATA_BATCH", *["DATA_FEATURE"] * 2), strict=True):
        dimension.denotation = denotation


def _save(proto: onnx.ModelProto, path: Path, opset: int) -> None:
    """Write a model whose operator set is the one asked for, and that onnxruntime can run.

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
    except Unfit as error:
        raise InputError(f"--opset {opset} cannot be proven, {error}: leave the option out") from error
    path.write_bytes(data)


def stamp_onnx(path: Path, contract: Contract) -> None:
    """Store the contract in the file's metadata, and the digest of it all."""
    proto = onnx.load(path)
    properties = {METADATA_KEY: contract.to_json(), **IMAGE_METADATA, "model_license": contract.license}
    path.write_bytes(seal(proto, properties))


def seal(proto: onnx.ModelProto, metadata: dict[str, str]) -> bytes:
    """The file of a model with `metadata` and, in it, the digest of the whole file."""
    set_model_props(proto, {**metadata, DIGEST_KEY: NO_DIGEST})
    data = proto.SerializeToString(deterministic=True)
    return data.replace(NO_DIGEST.encode(), digest(data).encode())


def load_onnxruntime(path: Path) -> Runner:
    """Open the file with the class that `mnist infer` uses."""
    predictor = Predictor(path)
    return lambda images, batch_size: predictor.predict(images, batch_size=batch_size)


def load_reference(path: Path) -> Runner:
    """Open the file with ONNX's own evaluator, which shares no code with onnxruntime or PyTorch."""
    evaluator = ReferenceEvaluator(str(path))
    names = [output["name"] for output in OUTPUTS]

    def run(images: np.ndarray, batch_size: int) -> Prediction:
        starts = range(0, max(len(images), 1), batch_size)
        parts = [evaluator.run(names, {INPUT["name"]: images[at : at + batch_size]}) for at in starts]
        logits, probabilities = map(np.concatenate, zip(*parts, strict=True))
        return Prediction(logits, probabilities)

    return run
