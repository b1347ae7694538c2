"""Checkpoints: one safetensors file each, whole or not there. No torch is needed, and no code is in them.

    checkpoints/step-00000938-9f86d081884c7d65.safetensors

The name ends with the first 16 digits of the file's SHA-256, as names of PyTorch's own downloads do, so that
a changed bit is noticed. The tensors are those of the training state; the metadata has the rest as JSON.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from serve_cli.errors import InputError, MnistError
from serve_cli.regular_file import read_regular
from trainer.atomic import fsync, write_file

KEEP = 2
"""How many of the newest checkpoints are kept."""

NAME = re.compile(r"step-(\d{8,})-([0-9a-f]{16})\.safetensors")
DAMAGED = "damaged-"
METADATA = "state"
MAX_BYTES = 1024**3


class CorruptCheckpoint(MnistError):
    """A file that is no whole checkpoint; the message says which and why."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """All that a run needs to go on after `step` optimizer steps; `state` holds JSON values."""

    step: int
    tensors: Mapping[str, np.ndarray]
    state: Mapping[str, Any]


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write `checkpoint` into `folder`, durably, remove all but the newest ones, and return its path.

    Raises:
        OSError: the system refused; what was there is untouched.
    """
    state = json.dumps({**checkpoint.state, "step": checkpoint.step}, sort_keys=True, allow_nan=False)
    data = save_safetensors(dict(checkpoint.tensors), metadata={METADATA: state})
    if not folder.exists():
        folder.mkdir()
        fsync(folder.parent)
    path = folder / f"step-{checkpoint.step:08d}-{_digest(data)}.safetensors"
    write_file(path, data)
    for old in find(folder)[KEEP:]:
        old.unlink()
    return path


def load(path: Path) -> Checkpoint:
    """Read and verify one checkpoint.

    Raises:
        CorruptCheckpoint: it is truncated or changed.
        MnistError: the system does not allow reading it, which says nothing about it.
    """
    name = NAME.fullmatch(path.name)
    try:
        data = read_regular(path, MAX_BYTES, "a checkpoint is a file")
    except InputError as error:
        raise MnistError(str(error)) from error
    if name is None or _digest(data) != name[2]:
        raise CorruptCheckpoint(f"{path} is damaged: its SHA-256 is not the one in its name")
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        state = json.loads(header["__metadata__"][METADATA])
        if state["step"] != int(name[1]):
            raise CorruptCheckpoint(f"{path} is damaged: it holds step {state['step']}")
        return Checkpoint(step=state["step"], tensors=load_safetensors(data), state=state)
    except (ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise CorruptCheckpoint(f"{path} is no checkpoint of this version ({error})") from error


def find(folder: Path) -> list[Path]:
    """All files in `folder` that are named as checkpoints, whole or not, the newest first."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if NAME.fullmatch(path.name)), key=step_of, reverse=True)


def latest(folder: Path) -> tuple[Path | None, Checkpoint | None, list[CorruptCheckpoint]]:
    """The newest checkpoint that verifies with its path, and what is wrong with each newer one.

    Raises:
        MnistError: the system does not allow reading one.
    """
    skipped: list[CorruptCheckpoint] = []
    for path in find(folder):
        try:
            return path, load(path), skipped
        except CorruptCheckpoint as error:
            skipped.append(error)
    return None, None, skipped


def step_of(path: Path) -> int:
    """The step in a checkpoint's name."""
    return int(path.name.split("-")[1])


def set_aside(folder: Path, newest: Path | None) -> None:
    """Rename the damaged checkpoints that are newer than `newest`, so that they count no more; they are kept.

    Raises:
        OSError: the system refused.
    """
    for path in find(folder):
        if path == newest:
            return
        path.replace(path.with_name(DAMAGED + path.name))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
