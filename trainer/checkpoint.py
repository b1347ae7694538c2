"""Checkpoints that a kill at any moment leaves whole; files and hashes only, no torch, no code in them.

    checkpoints/step-00000938/
        model.safetensors      the net's state_dict
        training.safetensors   the optimizers' state, the losses of the epoch so far
        state.json             counters, schedules, config, data hash, what the epochs left
        manifest.json          size and SHA-256 of the three

A checkpoint is built in a hidden folder beside, flushed, renamed, and only then older ones go. Reading one
writes its manifest anew from the files, so one bit that has changed in any of the four is noticed.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from serve_cli.errors import MnistError
from trainer.atomic import atomic_folder

MODEL, TRAINING = "model.safetensors", "training.safetensors"
STATE = "state.json"
MANIFEST = "manifest.json"
PAYLOAD = (MODEL, TRAINING, STATE)
FILES = frozenset({*PAYLOAD, MANIFEST})

KEPT = 2
"""How many of the newest checkpoints stay; the best one stays beside them."""

NAME = re.compile(r"step-(\d{8,})")
DAMAGED = "damaged-"
HIDDEN = ".step-"
"""How names of what is unfinished or on its way out begin."""

ANY_NAME = rf"(({re.escape(DAMAGED)})?step-\d+|{re.escape(HIDDEN)}[^/]*)"
"""What any of our folders may be called, as a regular expression."""

Arrays = Mapping[str, np.ndarray]


class Damaged(MnistError):
    """A folder that is no whole checkpoint; the message says which and why."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """All that a run needs to go on after `step` optimizer steps; `state` holds JSON values."""

    step: int
    model: Arrays
    training: Arrays
    state: Mapping[str, Any]


def folder_name(step: int) -> str:
    """The name of a checkpoint's folder."""
    return f"step-{step:08d}"


def write(root: Path, checkpoint: Checkpoint) -> Path:
    """Write `checkpoint` into its folder below `root`, durably, and return that folder.

    Raises:
        MnistError: the system refused; what was there is untouched, whatever the message of the system.
    """
    final = root / folder_name(checkpoint.step)
    payload = {
        MODEL: save(dict(checkpoint.model)),
        TRAINING: save(dict(checkpoint.training)),
        STATE: canonical_json(checkpoint.state),
    }
    with atomic_folder(final, ours=FILES, overwrite=False) as folder:
        for name, data in payload.items():
            (folder / name).write_bytes(data)
        (folder / MANIFEST).write_bytes(_manifest(payload))
    return final


def read(folder: Path) -> Checkpoint:
    """Read and verify one checkpoint.

    Raises:
        Damaged: a file is missing, truncated or changed, or the folder has another step's name.
        MnistError: the system does not let us read it, which says nothing about it.
    """
    try:
        payload = {name: (folder / name).read_bytes() for name in PAYLOAD}
        if (folder / MANIFEST).read_bytes() != _manifest(payload):
            raise Damaged(f"{folder} is damaged: its files are not those of its {MANIFEST}")
        state = json.loads(payload[STATE])
        if folder.name != folder_name(state["step"]):
            raise Damaged(f"{folder} is damaged: it holds step {state['step']}")
        return Checkpoint(
            step=state["step"], model=load(payload[MODEL]), training=load(payload[TRAINING]), state=state
        )
    except (FileNotFoundError, IsADirectoryError) as error:
        raise Damaged(f"{folder} is damaged: {error.filename} is no file") from error
    except OSError as error:
        raise MnistError(f"cannot read {error.filename}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise Damaged(f"{folder} is no checkpoint of this version: {error}") from error


def newest(root: Path) -> tuple[Checkpoint | None, list[tuple[Path, Damaged]]]:
    """Return the newest checkpoint that verifies, and each newer one with what is wrong with it.

    Raises:
        MnistError: the system does not let us read one.
    """
    skipped: list[tuple[Path, Damaged]] = []
    for folder in sorted(folders(root), key=_step, reverse=True):
        try:
            return read(folder), skipped
        except Damaged as damage:
            skipped.append((folder, damage))
    return None, skipped


def prune(root: Path, best: int | None) -> None:
    """Remove all checkpoints but the newest ones and that of step `best`.

    Raises:
        OSError: the system refused; what is left is whole.
    """
    for folder in sorted(folders(root), key=_step)[:-KEPT]:
        if _step(folder) != best:
            _discard(folder)


def put_aside(folder: Path) -> None:
    """Take a damaged checkpoint's name, so that it counts no more; its files stay, for whoever wants to look.

    Raises:
        OSError: the system refused.
    """
    aside = folder.with_name(f"{DAMAGED}{folder.name}")
    if aside.exists():
        shutil.rmtree(aside)
    folder.rename(aside)


def clean(root: Path) -> None:
    """Remove what killed processes have left half-written or half-removed; call it under the run's lock."""
    for path in root.glob(f"{HIDDEN}*"):
        shutil.rmtree(path)


def canonical_json(document: Mapping[str, Any]) -> bytes:
    """The one way in which we write `document`: equal documents have equal bytes."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _manifest(payload: Mapping[str, bytes]) -> bytes:
    files = {
        name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
        for name, data in payload.items()
    }
    return canonical_json({"files": files, "format": 1})


def folders(root: Path) -> list[Path]:
    """All folders below `root` that are called as checkpoints are, whole or not, in no order."""
    if not root.is_dir():
        return []
    return [path for path in root.iterdir() if NAME.fullmatch(path.name) and path.is_dir()]


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _discard(folder: Path) -> None:
    """Remove a checkpoint: first its name, at once, then its files."""
    hidden = folder.with_name(f".{folder.name}-gone")
    if hidden.exists():
        shutil.rmtree(hidden)
    folder.rename(hidden)
    shutil.rmtree(hidden)
