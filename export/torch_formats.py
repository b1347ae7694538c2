"""PyTorch's own formats: write the model, stamp a contract on it, open it.

Both are zip archives of stored files. PyTorch writes notes with local paths into them; they are removed.
"""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from export.format import EXAMPLE, Order, Runner, quiet
from serve_cli.runtime import Prediction
from serve_cli.spec import INPUT, METADATA_KEY, Contract
from trainer.model import DeployedModel

Module = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Maps uint8 [N, 28, 28] to logits and probabilities."""

NOTES = (".debug_pkl", "/.data/serialization_id")
"""Ends of the names of archive entries that nothing needs: source lines with paths, and their digest."""


def convert_torchscript(model: DeployedModel, path: Path, _order: Order) -> None:
    """Write `model` as a TorchScript archive."""
    with quiet():
        torch.jit.save(torch.jit.trace(model, (EXAMPLE,)), path)


def convert_pt2(model: DeployedModel, path: Path, _order: Order) -> None:
    """Write `model` as torch.export's archive."""
    with quiet():
        program = torch.export.export(
            model, (EXAMPLE,), dynamic_shapes={INPUT["name"]: {0: torch.export.Dim("N")}}
        )
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)
        torch.export.save(program, path)


def stamp_archive(path: Path, contract: Contract) -> None:
    """Store the contract as the archive's extra file, where torch.jit and torch.export look for it.

    The archive is written anew, in a fixed order, without dates and notes: equal models give equal bytes.
    """
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist() if not name.endswith(NOTES)}
    root = next(iter(entries)).partition("/")[0]
    entries[f"{root}/extra/{METADATA_KEY}.json"] = contract.to_json().encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(entries):
            archive.writestr(zipfile.ZipInfo(name), entries[name])


def load_torchscript(archive: Path | BinaryIO) -> Runner:
    """Open the archive as any PyTorch program does."""
    with quiet():
        return runner(torch.jit.load(archive, map_location="cpu"))


def load_pt2(archive: Path | BinaryIO) -> Runner:
    """Open the archive as any PyTorch program does."""
    with quiet():
        return runner(torch.export.load(archive).module())


def runner(module: Module) -> Runner:
    """Run a module on numpy's arrays, a batch at a time."""

    @torch.inference_mode()
    def run(images: np.ndarray, batch_size: int) -> Prediction:
        batches = torch.from_numpy(np.require(images, requirements="W")).split(batch_size)
        logits, probabilities = (
            torch.cat(parts).numpy() for parts in zip(*map(module, batches), strict=True)
        )
        return Prediction(logits, probabilities)

    return run
