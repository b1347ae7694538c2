"""PyTorch's own formats, TorchScript and torch.export: convert, embed the contract, open.

Both are zip archives of stored files. PyTorch writes notes with local paths into them; they are removed.
"""

import io
import logging
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from export.parity import Runner
from serve_cli.model_file import read_entries
from serve_cli.runtime import Prediction
from serve_cli.spec import IMAGE_SIZE, INPUT, METADATA_KEY, Contract
from trainer.model import DeployedModel

EXAMPLE = torch.zeros(2, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8)
"""What the exporters trace with: two pictures, for they take a batch of one for a constant."""

Module = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Maps uint8 [N, 28, 28] to logits and probabilities."""

NOTES = (".debug_pkl", "/.data/serialization_id")
"""Ends of the names of archive entries that nothing needs: source lines with paths, and their digest."""


@dataclass(frozen=True, kw_only=True)
class ConversionOptions:
    """What a conversion may need: the ONNX operator set, and training images uint8 [N, 28, 28]."""

    opset: int
    calibration_images: np.ndarray


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the exporters' warnings and logs: users can do nothing about them."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logging.disable(logging.NOTSET)


def convert_torchscript(model: DeployedModel, _options: ConversionOptions) -> bytes:
    """`model` as a TorchScript archive."""
    archive = io.BytesIO()
    with quiet():
        torch.jit.save(torch.jit.trace(model, (EXAMPLE,)), archive)
    return archive.getvalue()


def convert_pt2(model: DeployedModel, _options: ConversionOptions) -> bytes:
    """`model` as torch.export's archive."""
    archive = io.BytesIO()
    with quiet():
        program = torch.export.export(
            model, (EXAMPLE,), dynamic_shapes={INPUT["name"]: {0: torch.export.Dim("N")}}
        )
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)
        torch.export.save(program, archive)
    return archive.getvalue()


def embed_contract(model: bytes, contract: Contract) -> bytes:
    """The archive with the contract as its extra file, where torch.jit and torch.export look for it.

    Entries come in a fixed order, without dates and notes: equal models give equal bytes.
    """
    entries = {
        name: data for name, data in read_entries(model, deflated=True).items() if not name.endswith(NOTES)
    }
    root = next(iter(entries)).partition("/")[0]
    entries[f"{root}/extra/{METADATA_KEY}.json"] = contract.to_json().encode()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as file:
        for name in sorted(entries):
            file.writestr(zipfile.ZipInfo(name), entries[name])
    return archive.getvalue()


def torchscript_weights(model: bytes) -> Mapping[str, np.ndarray]:
    """Weights and buffers of a TorchScript archive by name."""
    with quiet():
        return to_numpy(torch.jit.load(io.BytesIO(model), map_location="cpu").state_dict())


def pt2_weights(model: bytes) -> Mapping[str, np.ndarray]:
    """Weights and buffers of a torch.export archive by name."""
    with quiet():
        return to_numpy(torch.export.load(io.BytesIO(model)).state_dict)


def to_numpy(state: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """A state_dict as arrays."""
    return {name: value.detach().numpy() for name, value in state.items()}


def run_torchscript(archive: Path | BinaryIO) -> Runner:
    """Open the archive as any PyTorch program does."""
    with quiet():
        return run_module(torch.jit.load(archive, map_location="cpu"))


def run_pt2(archive: Path | BinaryIO) -> Runner:
    """Open the archive as any PyTorch program does."""
    with quiet():
        return run_module(torch.export.load(archive).module())


def run_module(module: Module) -> Runner:
    """Run a module on numpy's arrays, a batch at a time."""

    @torch.inference_mode()
    def run(images: np.ndarray, batch_size: int) -> Prediction:
        batches = torch.from_numpy(np.require(images, requirements="W")).split(batch_size)
        logits, probabilities = (
            torch.cat(parts).numpy() for parts in zip(*map(module, batches), strict=True)
        )
        return Prediction(logits, probabilities)

    return run
