"""The formats, a few short functions each: convert the model, stamp the contract on it, load it to run it."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch

from serve_cli.errors import InputError
from serve_cli.runtime import Prediction, Predictor
from serve_cli.spec import IMAGE_SIZE, INPUT, METADATA_KEY, OUTPUTS, Contract
from trainer.model import DeployedModel

DEFAULT_OPSET = 20
FIRST_OPSET = 18
"""Oldest operator set that PyTorch's exporter writes; asked for an older one, it silently writes this one."""

EXAMPLE = torch.zeros(2, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8)
"""What the exporters trace with: two pictures, for they take a batch of one for a constant."""

Runner = Callable[[np.ndarray, int], Prediction]
"""Classifies uint8 [N, 28, 28] in batches of the given size."""


@dataclass(frozen=True)
class Format:
    """`convert` writes the file, `stamp` puts a contract into it, `load` opens it as its users do."""

    convert: Callable[[DeployedModel, Path, int], None]
    stamp: Callable[[Path, Contract], None]
    load: Callable[[Path], Runner]


def convert_onnx(model: DeployedModel, path: Path, opset: int) -> None:
    """Write `model` as one ONNX file that holds no local path.

    Raises:
        InputError: the exporter cannot write this opset.
    """
    newest = onnx.defs.onnx_opset_version()
    if not FIRST_OPSET <= opset <= newest:
        raise InputError(f"--opset is {opset}, expected {FIRST_OPSET} to {newest}")
    with _quiet():
        program = torch.onnx.export(
            model,
            (EXAMPLE,),
            dynamo=True,
            input_names=[INPUT["name"]],
            output_names=[output["name"] for output in OUTPUTS],
            dynamic_shapes={INPUT["name"]: {0: torch.export.Dim("N")}},
            opset_version=opset,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    written = next(item.version for item in proto.opset_import if item.domain == "")
    if written != opset:
        raise InputError(
            f"--opset {opset} cannot be written, the exporter made it {written}: leave the option out"
        )
    _strip(proto)
    onnx.checker.check_model(proto)
    path.write_bytes(proto.SerializeToString(deterministic=True))


def _strip(proto: onnx.ModelProto) -> None:
    """Remove the exporter's notes: they hold absolute paths of this machine."""
    graph = proto.graph
    del proto.metadata_props[:]
    for item in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del item.metadata_props[:]
        item.ClearField("doc_string")


def stamp_onnx(path: Path, contract: Contract) -> None:
    """Store the contract in the file's metadata."""
    proto = onnx.load(path)
    onnx.helper.set_model_props(proto, {METADATA_KEY: contract.to_json()})
    path.write_bytes(proto.SerializeToString(deterministic=True))


def load_onnx(path: Path) -> Runner:
    """Open the file with the class that `mnist infer` uses."""
    predictor = Predictor(path)
    return lambda images, batch_size: predictor.predict(images, batch_size=batch_size)


def convert_torchscript(model: DeployedModel, path: Path, opset: int) -> None:
    """Write `model` as a TorchScript archive; `opset` does not apply."""
    with _quiet():
        torch.jit.save(torch.jit.trace(model, (EXAMPLE,)), path)


def stamp_torchscript(path: Path, contract: Contract) -> None:
    """Store the contract as the archive's extra file."""
    with _quiet():
        torch.jit.save(torch.jit.load(path), path, _extra_files={f"{METADATA_KEY}.json": contract.to_json()})


def load_torchscript(path: Path) -> Runner:
    """Open the archive as any PyTorch program does."""
    with _quiet():
        module = torch.jit.load(path, map_location="cpu")
    return lambda images, batch_size: run_torch(module, images, batch_size)


@torch.inference_mode()
def run_torch(
    module: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]], images: np.ndarray, batch_size: int
) -> Prediction:
    """Classify uint8 `images` [N, 28, 28] with a module that returns logits and probabilities."""
    batches = torch.from_numpy(images).split(batch_size)
    logits, probabilities = (torch.cat(parts).numpy() for parts in zip(*map(module, batches), strict=True))
    return Prediction(logits, probabilities)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's deprecation warnings and the exporter's log from users, who can do nothing about them."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)


FORMATS = {
    "onnx": Format(convert_onnx, stamp_onnx, load_onnx),
    "torchscript": Format(convert_torchscript, stamp_torchscript, load_torchscript),
}
