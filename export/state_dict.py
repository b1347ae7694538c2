"""Read the tutorial's net from a state_dict: what torch.save or safetensors wrote, in the forms people have.

Code in a file never runs: its pickle may build tensors and containers, and every other object in it becomes
an empty stand-in.
"""

import io
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from serve_cli.errors import InputError
from serve_cli.model_file import ZIP_MAGIC, read_entries
from serve_cli.process import printable
from serve_cli.spec import CLASSES, IMAGE_SIZE
from trainer.config import TrainConfig
from trainer.model import MLP

ADVICE = "save it with torch.save(model.state_dict(), PATH)"
AGAIN = "save it again with a current PyTorch: torch.save(model.state_dict(), PATH)"
OTHER_NET = "export another architecture to ONNX (torch.onnx.export), then run mnist export on the ONNX file"

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "module")
"""Keys under which training scripts and Lightning keep the state_dict in a checkpoint."""

MOST_WRAPPERS = 4

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

ALLOWED_GLOBALS = {
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
}
"""What the pickle of a state_dict calls, by the names that torch.save writes."""

OTHER_FILES = (
    (b"\x89HDF", "a Keras file: export it to ONNX with model.export(PATH, format='onnx')"),
    (b"\x80", f"a pickle without torch.save's zip archive, and code in a file is never run: {AGAIN}"),
)
"""How files begin that people take for a state_dict, and what they are."""

RECORD = re.compile(r"data\.pkl|version|byteorder|data/\d{1,9}")
"""The entries of torch.save's archive: what the tensors are, and the numbers of each."""

MAX_PICKLE_BYTES = 1024**2

LONGEST_NAME = 40


class StandIn:
    """Takes the place of an object whose class is not in ALLOWED_GLOBALS; it holds nothing."""

    def __new__(cls, *_args: object, **_options: object) -> "StandIn":
        """Accept the arguments of any class."""
        return super().__new__(cls)

    def __init__(self, *_args: object, **_options: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        """Drop the state."""

    def append(self, item: object) -> None:
        """Drop an item of a list's subclass."""

    def __setitem__(self, key: object, value: object) -> None:
        """Drop an item of a dict's subclass."""


class TensorUnpickler(pickle.Unpickler):
    """Builds tensors and containers; the rest becomes a StandIn."""

    def find_class(self, module: str, name: str) -> Any:
        """What the pickle may call under this name."""
        if (module, name) in ALLOWED_GLOBALS:
            return super().find_class(module, name)
        return type(name, (StandIn,), {"__module__": module})


class TensorPickle:
    """What torch.load uses in place of the pickle module."""

    Unpickler = TensorUnpickler


def load_net(data: bytes, path: Path, note: Callable[[str], None]) -> MLP:
    """Build the net from the content `data` of the file `path`; the hidden sizes come from the file.

    The layers may have any names, below any common prefix, and any float type. `note` receives a line about
    what was unwrapped, stripped or converted. The content says whether torch.save or safetensors wrote it.

    Raises:
        InputError: not a state_dict, or not one of Linear layers with ReLU between them; the key is named.
    """
    state = _unwrap(_load(data, path), path, note)
    layers = _find_layers(state, path, note)
    hidden = _check_layers(layers, state, path)
    with torch.device("meta"):
        net = MLP(hidden)
    _check_plain(state, path)
    if any(value.dtype != torch.float32 for value in state.values()):
        found = sorted({str(value.dtype).removeprefix("torch.") for value in state.values()})
        note(f"the weights are {', '.join(found)}: they are converted to float32")
    renamed = {
        f"fc{number}.{kind}": state[f"{layer}{kind}"].detach().float()
        for number, layer in enumerate(layers, 1)
        for kind in ("weight", "bias")
    }
    net.to_empty(device="cpu").load_state_dict(renamed)
    return net.eval()


def _load(data: bytes, path: Path) -> Any:
    """Whatever the file holds.

    Raises:
        InputError: it is no file of torch.save or safetensors, or is damaged.
    """
    try:
        if data.startswith(ZIP_MAGIC):
            return _load_zip(data)
        if data[8:9] == b"{":
            return safetensors.torch.load(data)
    except Exception as error:  # torch.load has no exception of its own
        reason = (
            str(error)
            if isinstance(error, RefusedArchive)
            else f"it is damaged or not a state_dict: {ADVICE}"
        )
        raise InputError(f"{path} is refused, {reason}") from error
    known = (what for magic, what in OTHER_FILES if data.startswith(magic))
    what = next(known, f"no zip archive of torch.save, and code in a file is never run: {AGAIN}")
    raise InputError(f"{path} is refused, it is {what}")


class RefusedArchive(ValueError):
    """The archive is whole, and of another kind."""


def _load_zip(data: bytes) -> Any:
    """What the pickle in the archive builds.

    torch.load gets a new archive of what a state_dict needs, under names of ours: it finds records by other
    rules than zipfile does, and would run a TorchScript program.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
    if "model.weights.h5" in names:
        raise RefusedArchive("it is a Keras file: export it to ONNX with model.export(PATH, format='onnx')")
    if any(name.endswith("/constants.pkl") for name in names):
        raise RefusedArchive(f"it is a TorchScript archive, not a state_dict: {ADVICE}")
    if any(name.endswith("/archive_format") or "/models/" in name for name in names):
        raise RefusedArchive(f"it is a torch.export archive, not a state_dict: {ADVICE}")
    entries = read_entries(data)
    (pickled,) = (name for name in entries if name.endswith("/data.pkl"))
    if len(entries[pickled]) > MAX_PICKLE_BYTES:
        raise RefusedArchive(f"it describes far more than tensors: {ADVICE}")
    root, checked = pickled.removesuffix("data.pkl"), io.BytesIO()
    with zipfile.ZipFile(checked, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            if RECORD.fullmatch(record := name.removeprefix(root)):
                archive.writestr(zipfile.ZipInfo(f"archive/{record}"), content)
    checked.seek(0)
    return torch.load(checked, map_location="cpu", weights_only=False, pickle_module=TensorPickle)


def _unwrap(found: Any, path: Path, note: Callable[[str], None]) -> dict[str, Tensor]:
    """The state_dict itself, where it lies inside a checkpoint.

    Raises:
        InputError: there is none.
    """
    for _ in range(MOST_WRAPPERS):
        if isinstance(found, StandIn):
            raise InputError(f"{path} is refused, {_describe(found)}: {ADVICE}")
        if not isinstance(found, dict):
            raise InputError(f"{path} is refused, it is not a state_dict, it holds no dict: {ADVICE}")
        wrapper = next((key for key in WRAPPERS if isinstance(found.get(key), dict | StandIn)), None)
        if wrapper is None:
            states = [key for key, value in found.items() if _is_state(value)]
            if len(states) != 1:
                break
            wrapper = states[0]
        note(f"the state_dict is read from the checkpoint's key {wrapper!r}")
        found = found[wrapper]
    if found.keys() >= {"state", "param_groups"}:
        raise InputError(f"{path} holds the state of an optimizer, not of a net: {ADVICE}")
    for key, value in found.items():
        name = _shorten(key) if isinstance(key, str) else f"of type {type(key).__name__}"
        if isinstance(value, StandIn):
            raise InputError(f"{path} is refused, key {name}: {_describe(value)}: {ADVICE}")
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise InputError(f"{path} is not a state_dict, key {name} holds no tensor: {ADVICE}")
    return {key: value for key, value in found.items() if value.ndim > 0 or value.is_floating_point()}


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and len(value) > 1
        and all(isinstance(item, Tensor) for item in value.values())
    )


def _describe(found: StandIn) -> str:
    name = _shorten(f"{type(found).__module__}.{type(found).__name__}")
    return f"it holds a whole pickled object ({name}), and code in a file is never run"


def _find_layers(state: Mapping[str, Tensor], path: Path, note: Callable[[str], None]) -> list[str]:
    """The beginnings of the keys of each layer, in order: `fc1.`, `fc2.`, `fc3.`, or `net.0.`, `net.2.`, …

    Raises:
        InputError: a key belongs to no Linear layer.
    """
    if not state:
        raise InputError(f"{path} holds no keys at all: {ADVICE}")
    for key, value in state.items():
        if value.ndim == 4:
            raise InputError(f"{path} holds a convolution ({_shorten(key)}): {OTHER_NET}")
        if not re.fullmatch(r"(.*\.)?(weight|bias)", key):
            raise InputError(
                f"{path} has the unexpected key {_shorten(key)}, a Linear layer has none: {OTHER_NET}"
            )
    layers = list(dict.fromkeys(re.sub(r"(weight|bias)$", "", key) for key in state))
    common = re.match(r"(?:[^.]+\.)*", _common_start(layers))
    prefix = common[0] if common and len(layers) > 1 else ""
    if prefix:
        note(f"the prefix {_shorten(prefix)} of all keys is left out")
    if len({re.sub(r"\d+", "", layer) for layer in layers}) == 1:  # fc1, fc2: the order in a file is free
        layers.sort(key=lambda layer: [int(number) for number in re.findall(r"\d+", layer)])
    return _in_order_of_sizes(layers, state)


def _in_order_of_sizes(layers: list[str], state: Mapping[str, Tensor]) -> list[str]:
    """Each layer after the one whose outputs it takes; safetensors sorts its keys by name."""
    ordered, rest, size = [], list(layers), IMAGE_SIZE**2
    while rest:
        shapes = {layer: state[f"{layer}weight"].shape for layer in rest if f"{layer}weight" in state}
        fitting = [layer for layer, shape in shapes.items() if len(shape) == 2 and shape[1] == size]
        if not fitting:
            break
        ordered.append(fitting[0])
        rest.remove(fitting[0])
        size = shapes[fitting[0]][0]
    return ordered + rest


def _common_start(names: list[str]) -> str:
    first, last = min(names), max(names)
    return next((first[:at] for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), first)


def _check_layers(layers: list[str], state: Mapping[str, Tensor], path: Path) -> tuple[int, ...]:
    """The hidden sizes, once the shapes of all layers fit each other.

    Raises:
        InputError: a weight or a bias is missing or has another shape.
    """
    sizes = [IMAGE_SIZE**2]
    for layer in layers:
        weight, bias = state.get(f"{layer}weight"), state.get(f"{layer}bias")
        if weight is None:
            raise InputError(f"{path} lacks key {_shorten(layer)}weight: {ADVICE}")
        if bias is None and weight.ndim != 2:
            raise InputError(
                f"{path} has the unexpected key {_shorten(layer)}weight, a Linear layer has none: {OTHER_NET}"
            )
        if bias is None:
            raise InputError(
                f"{path} lacks key {_shorten(layer)}bias, its layer was made with bias=False: "
                f"train it with biases, or {OTHER_NET}"
            )
        if weight.ndim != 2 or weight.shape[1] != sizes[-1] or weight.numel() == 0:
            raise InputError(
                f"{path}: key {_shorten(layer)}weight has the shape {list(weight.shape)}, expected "
                f"[outputs, {sizes[-1]}] of a Linear layer: {OTHER_NET}"
            )
        if bias.shape != weight.shape[:1]:
            raise InputError(
                f"{path}: key {_shorten(layer)}bias has the shape {list(bias.shape)}, "
                f"expected [{weight.shape[0]}]: {ADVICE}"
            )
        sizes.append(weight.shape[0])
    if sizes[-1] != CLASSES:
        raise InputError(f"{path}: its last layer has {sizes[-1]} outputs, expected {CLASSES}: {OTHER_NET}")
    hidden = tuple(sizes[1:-1])
    try:
        return TrainConfig(hidden=hidden).hidden if hidden else ()  # what can be trained can be exported
    except InputError as error:
        limit = str(error).partition("expected ")[2]
        raise InputError(
            f"{path} has hidden layers {hidden}, which cannot be exported: take {limit}"
        ) from error


def _check_plain(state: Mapping[str, Tensor], path: Path) -> None:
    """Raise unless every value is a dense tensor of finite floats in memory."""
    for key, value in state.items():
        if (value.layout, value.device.type) != (torch.strided, "cpu") or value.dtype not in FLOATS:
            raise InputError(f"{path}: key {_shorten(key)} holds no plain tensor of floats: {ADVICE}")
        if not value.isfinite().all() or not value.float().isfinite().all():
            raise InputError(f"{path}: key {_shorten(key)} holds NaN or infinite values: train again")


def _shorten(name: str) -> str:
    """A name from a file as a short text on one line."""
    return printable(name[:LONGEST_NAME]) + ("…" if len(name) > LONGEST_NAME else "")
