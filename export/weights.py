"""Reading a state_dict that somebody saved: tensors only, every key and shape checked."""

import re
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from export.archive import ADVICE, Refused, read_state, shown
from serve_cli.errors import InputError
from serve_cli.model_file import MAX_BYTES, read_bytes
from trainer.model import MLP

WRAPPERS = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put before each key."""


def load_net(path: Path) -> MLP:
    """Read a state_dict with keys fc1.weight, fc1.bias, ... and return its net; hidden sizes come from it.

    The content, not the name, says whether torch.save or safetensors wrote it. Code inside the file is never
    run, and the file is read once.

    Raises:
        InputError: unreadable, not a state_dict, or a key or shape that does not fit; the key is named.
    """
    state = _read(path)
    with torch.device("meta"):  # sizes come from the file: no memory before they have been checked
        net = MLP(_hidden_sizes(state, path))
    _check(state, net.state_dict(), path)
    net.to_empty(device="cpu").load_state_dict(state)
    return net.eval()


def _read(path: Path) -> dict[str, Tensor]:
    try:
        state = read_state(read_bytes(path))
    except Refused as error:
        raise InputError(f"{path} is refused, {error}") from error
    if others := [key for key, value in state.items() if not isinstance(value, Tensor)]:
        raise InputError(f"{path} is not a state_dict, key {shown(others[0])} holds no tensor: {ADVICE}")
    return state


def _hidden_sizes(state: dict[str, Tensor], path: Path) -> tuple[int, ...]:
    """Sizes of all layers but the last, from the biases and weights that are there."""
    layers = [
        int(match[1]) for key in state if (match := re.fullmatch(r"fc([1-9]\d?)\.(?:weight|bias)", key))
    ]
    if not layers:
        wrapped = next((prefix for prefix in WRAPPERS if prefix + "fc1.weight" in state), None)
        hint = (
            f"save model.{wrapped}state_dict()" if wrapped else "expected the tutorial's net, fc1, fc2, fc3"
        )
        raise InputError(f"{path} has no key fc1.weight but {_some(state)}: {hint}")
    sizes = []
    for layer in range(1, max(layers)):
        known = [state[key] for key in (f"fc{layer}.weight", f"fc{layer}.bias") if key in state]
        if not known or known[0].ndim == 0 or known[0].numel() == 0:
            raise InputError(f"{path} lacks key fc{layer}.weight, or it is empty: {ADVICE}")
        sizes.append(known[0].shape[0])
    return tuple(sizes)


def _check(state: dict[str, Tensor], expected: dict[str, Tensor], path: Path) -> None:
    if missing := sorted(expected.keys() - state.keys()):
        raise InputError(f"{path} lacks key {_some(missing)}: {ADVICE}")
    if extra := sorted(state.keys() - expected.keys()):
        raise InputError(
            f"{path} has unexpected key {_some(extra)}: the tutorial's net has only {_some(expected)}"
        )
    if sum(wanted.nbytes for wanted in expected.values()) > MAX_BYTES:  # tensors in a file may share memory
        raise InputError(f"{path} stands for more than {MAX_BYTES // 1024**2} MiB of weights: {ADVICE}")
    for key, wanted in expected.items():
        found = state[key]
        if found.shape != wanted.shape or found.dtype != wanted.dtype:
            raise InputError(
                f"{path}: key {key} is {found.dtype} {list(found.shape)}, "
                f"expected {wanted.dtype} {list(wanted.shape)}: "
                "save model.float().state_dict() of the tutorial's net"
            )
        if not found.isfinite().all():
            raise InputError(f"{path}: key {key} holds NaN or infinite values: train again")


def _some(keys: Iterable[str]) -> str:
    names = sorted(map(shown, keys))
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "") if names else "no keys at all"
