"""Reading a state_dict that somebody saved: tensors only, every key and shape checked."""

import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from serve_cli.errors import InputError
from trainer.model import MLP

WRAPPERS = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put before each key."""

ADVICE = "save it with torch.save(model.state_dict(), PATH)"


def load_net(path: Path) -> MLP:
    """Read a state_dict with keys fc1.weight, fc1.bias, ... and return its net; hidden sizes come from it.

    Code inside the file is never run: only tensors are read.

    Raises:
        InputError: unreadable, not a state_dict, or a key or shape that does not fit; the key is named.
    """
    state = _read(path)
    net = MLP(_hidden_sizes(state, path))
    _check(state, net.state_dict(), path)
    net.load_state_dict(state)
    return net.eval()


def _read(path: Path) -> dict[str, Tensor]:
    try:
        with path.open("rb") as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own about TorchScript archives: we refuse them below
            state: Any = torch.load(stream, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # torch.load raises eight kinds on damaged files
        raise InputError(f"{path} is refused, {_why(error)}: {ADVICE}") from error
    if not isinstance(state, dict):
        raise InputError(f"{path} holds a {type(state).__name__}, not a state_dict: {ADVICE}")
    if others := [key for key, value in state.items() if not (isinstance(key, str) and _is_plain(value))]:
        raise InputError(f"{path} is not a state_dict, key {others[0]} holds no plain tensor: {ADVICE}")
    return state


def _is_plain(value: Any) -> bool:
    """Whether `value` is an ordinary tensor whose memory is all there: not sparse, not meta, not expanded."""
    return (
        isinstance(value, Tensor)
        and not value.is_nested
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )


def _why(error: Exception) -> str:
    """Torch's reason in a few words; its own text is a page long and advises to switch the check off."""
    if isinstance(error, pickle.UnpicklingError):
        name = re.search(r"GLOBAL ([\w.]+)", str(error))
        return (
            f"it holds more than tensors ({name[1] if name else 'objects'}) and code in a file is never run"
        )
    if "TorchScript" in str(error):
        return "it is a TorchScript archive, not a state_dict"
    return "it is damaged or not a state_dict"


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
        if not known or known[0].ndim == 0 or known[0].shape[0] == 0:
            raise InputError(f"{path} lacks key fc{layer}.weight, or it is empty: {ADVICE}")
        sizes.append(known[0].shape[0])
    return tuple(sizes)


def _check(state: dict[str, Tensor], expected: dict[str, Tensor], path: Path) -> None:
    if missing := sorted(expected.keys() - state.keys()):
        raise InputError(f"{path} lacks key {', '.join(missing)}: {ADVICE}")
    if extra := sorted(state.keys() - expected.keys()):
        raise InputError(f"{path} has unexpected key {_some(extra)}: expected only {', '.join(expected)}")
    for key, wanted in expected.items():
        found = state[key]
        if found.shape != wanted.shape or found.dtype != wanted.dtype:
            raise InputError(
                f"{path}: key {key} is {found.dtype} {list(found.shape)}, "
                f"expected {wanted.dtype} {list(wanted.shape)}"
            )
        if not found.isfinite().all():
            raise InputError(f"{path}: key {key} holds NaN or infinite values: train again")


def _some(keys: Any) -> str:
    names = sorted(map(str, keys))
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "") if names else "no keys at all"
