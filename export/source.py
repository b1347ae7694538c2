"""What people bring to an export: a run directory, or a state_dict that they saved themselves.

A state_dict is read by torch.load(weights_only=True) or by safetensors, behind limits on size. Code in a file
never runs. The file is read once: what is hashed is what is loaded.
"""

import dataclasses
import hashlib
import io
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from serve_cli.errors import InputError
from serve_cli.model_file import ZIP_MAGIC, read_bytes, read_entries
from serve_cli.process import printable
from serve_cli.spec import STATE_DICT, is_calibration, temperature_of
from trainer import run_dir
from trainer.config import TrainConfig
from trainer.data import DIGITS, Dataset
from trainer.model import MLP, DeployedModel, Normalize

ADVICE = "save it with torch.save(model.state_dict(), PATH)"
AGAIN = "save it again with a current PyTorch: torch.save(model.state_dict(), PATH)"

PICKLE = "/data.pkl"
"""End of the name of the zip entry that says what the tensors are; the others hold their numbers."""

LONGEST_NAME = 40


@dataclass(frozen=True, kw_only=True)
class Source:
    """A trained net with its normalisation, its labels, and what is known of its training and calibration.

    Of a bare file nothing is known: `training` and `calibration` are empty, and the labels are the digits.
    `data_dir` is where the run found its data.
    """

    folder: Path
    net: MLP
    mean: float
    std: float
    dataset: str
    labels: tuple[int | str, ...]
    training: Mapping[str, Any]
    calibration: Mapping[str, Any]
    state_dict_sha256: str
    data_dir: Path | None

    def model(self) -> DeployedModel:
        """The module that is exported, in evaluation mode."""
        normalize = Normalize(self.mean, self.std)
        return DeployedModel(self.net, normalize, temperature_of(self.calibration)).eval()

    def require_same_data(self, dataset: Dataset) -> None:
        """Raise unless a run was trained on `dataset`, with the same labels.

        Raises:
            InputError: the labels or the training images differ.
        """
        if not self.training:
            return
        advice = "name the data of the run with --data-dir"
        if dataset.labels != self.labels:
            ours, theirs = (", ".join(map(str, labels)) for labels in (self.labels, dataset.labels))
            raise InputError(
                f"{self.folder} was trained on other labels ({ours}) than the data has ({theirs}): {advice}"
            )
        if dataset.train.sha256 != self.training["dataset_sha256"]:
            raise InputError(f"{self.folder} was trained on other images than the data has: {advice}")


def read_source(path: Path, *, dataset: str | None, mean: float | None, std: float | None) -> Source:
    """Read a run directory, a state_dict inside one, or a bare state_dict.

    For a bare one `dataset`, `mean` and `std` are the tutorial's unless given; a run has its own.

    Raises:
        InputError: nothing to export there, damaged, or a setting given that the run already has.
    """
    weights = path / STATE_DICT if path.is_dir() else path
    run, is_run = weights.parent, weights.name == STATE_DICT and (weights.parent / run_dir.REPORT).is_file()
    if path.is_dir() and not is_run:
        _refuse_unfinished(path, weights)
    if not weights.exists():
        raise InputError(f"no such file: {weights}; name a run directory or a saved state_dict")
    if is_run and (dataset, mean, std) != (None, None, None):
        raise InputError(f"{run} is a run and says its own dataset, mean and std: leave those flags out")
    if is_run:
        config = TrainConfig.read(run / run_dir.CONFIG)
    else:
        tutorial = TrainConfig()
        given = {"dataset": dataset or tutorial.dataset, "mean": mean, "std": std}
        config = TrainConfig.from_recipe(tutorial.recipe, **given)
    data = read_bytes(weights)
    source = Source(
        folder=run,
        net=load_net(data, weights),
        mean=config.mean,
        std=config.std,
        dataset=config.dataset,
        labels=DIGITS,
        training={},
        calibration={},
        state_dict_sha256=hashlib.sha256(data).hexdigest(),
        data_dir=None,
    )
    return _with_report(source, config, weights) if is_run else source


def _refuse_unfinished(folder: Path, weights: Path) -> None:
    if (folder / run_dir.CONFIG).exists():
        raise InputError(
            f"{folder} is an unfinished run, it has no {run_dir.REPORT}: "
            f"finish it with mnist train --resume --output {folder}, then export it"
        )
    if weights.exists():
        raise InputError(
            f"{folder} has no {run_dir.REPORT}, so it is not a finished run: name its {weights.name}"
        )


def _with_report(source: Source, config: TrainConfig, weights: Path) -> Source:
    """The source of a run with what its report.json says.

    Raises:
        InputError: report.json is damaged, or the weights are not those of the run.
    """
    path = source.folder / run_dir.REPORT
    report = run_dir.read_report(path)
    calibration = report.get("calibration") or {}  # none without held-out images, or in an older run
    if not is_calibration(calibration):
        raise InputError(f"{path} holds no calibration of ours: train again")
    if source.state_dict_sha256 != report["weights_sha256"]:
        raise InputError(
            f"{weights} is not the file that report.json speaks of: train again, or export it alone"
        )
    if source.net.hidden != config.hidden:
        raise InputError(
            f"{weights} has hidden layers {source.net.hidden}, its config.json says {config.hidden}"
        )
    training = {
        "recipe": config.recipe,
        "config": config.to_dict(),
        "dataset": config.dataset,
        "dataset_sha256": report["dataset"]["train_sha256"],
    }
    return dataclasses.replace(
        source,
        labels=tuple(report["dataset"]["labels"]),
        training=training,
        calibration=calibration,
        data_dir=run_dir.read_data_dir(source.folder),
    )


def load_net(data: bytes, path: Path) -> MLP:
    """The net of a state_dict with keys fc1.weight, fc1.bias, ...; the hidden sizes come from the file.

    `data` is the content of the file `path`. Its content, not its name, says whether torch.save or
    safetensors wrote it.

    Raises:
        InputError: not a state_dict, or a key or shape that does not fit; the key is named.
    """
    state = _load_state(data, path)
    with torch.device("meta"):  # sizes come from the file: no memory before they have been checked
        net = MLP(_hidden_sizes(state, path))
    _check_state(state, net.state_dict(), path)
    net.to_empty(device="cpu").load_state_dict(state)
    return net.eval()


def _load_state(data: bytes, path: Path) -> dict[str, Tensor]:
    """The tensors of a file by key.

    Raises:
        InputError: it holds anything else.
    """
    try:
        if data.startswith(ZIP_MAGIC):
            state = _load_zip(data)
        elif data[8:9] == b"{":
            state = safetensors.torch.load(data)
        else:
            raise ValueError(f"it is no zip archive of torch.save, and code in a file is never run: {AGAIN}")
    except Exception as error:  # torch.load has no exception of its own
        raise InputError(f"{path} is refused, {_reason(error)}") from error
    if not isinstance(state, dict):
        raise InputError(f"{path} is refused, it is not a state_dict, it holds no dict: {ADVICE}")
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise InputError(
                f"{path} is not a state_dict, key {_shorten(str(key))} holds no tensor: {ADVICE}"
            )
    return state


def _load_zip(data: bytes) -> Any:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        raise ValueError(f"it is a TorchScript archive, not a state_dict: {ADVICE}")
    if any(name.endswith("/archive_format") or "/models/" in name for name in names):
        raise ValueError(f"it is a torch.export archive, not a state_dict: {ADVICE}")
    for name, content in read_entries(data).items():
        if name.endswith(PICKLE) and content[:1] == b"\x80" and content[1:2] >= b"\x04":
            raise ValueError(f"torch.load does not read its pickle protocol, {content[1]}: {ADVICE}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about the pickle protocol
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _reason(error: Exception) -> str:
    """Why a file is refused, in one line that says what to do; torch.load takes a paragraph for it."""
    if found := re.search(r"GLOBAL (\S+)|(?:function|class|type) (\w\S*\.\S*)", str(error)):
        name = _shorten(found[1] or found[2])
        return f"it holds more than tensors ({name}) and code in a file is never run: {ADVICE}"
    if isinstance(error, ValueError) and ADVICE.partition("(")[2] in str(error):
        return str(error)
    return f"it is damaged or not a state_dict: {ADVICE}"


def _hidden_sizes(state: Mapping[str, Tensor], path: Path) -> tuple[int, ...]:
    """Sizes of all layers but the last, from the biases and weights that are there."""
    layers = [
        int(match[1]) for key in state if (match := re.fullmatch(r"fc([1-9]\d?)\.(?:weight|bias)", key))
    ]
    if not layers:
        wrapped = next((key.removesuffix("fc1.weight") for key in state if key.endswith(".fc1.weight")), "")
        hint = (
            f"save model.{_shorten(wrapped)}state_dict()"
            if wrapped
            else "expected the tutorial's net, fc1, fc2, fc3"
        )
        raise InputError(f"{path} has no key fc1.weight but {_some(state)}: {hint}")
    sizes = []
    for layer in range(1, max(layers)):
        known = [state[key] for key in (f"fc{layer}.weight", f"fc{layer}.bias") if key in state]
        if not known or known[0].ndim == 0 or known[0].numel() == 0:
            raise InputError(f"{path} lacks key fc{layer}.weight, or it is empty: {ADVICE}")
        sizes.append(known[0].shape[0])
    try:
        return TrainConfig(hidden=tuple(sizes)).hidden  # what can be trained can be exported
    except InputError as error:
        limit = str(error).partition("expected ")[2]
        raise InputError(
            f"{path} has hidden layers {tuple(sizes)}, which cannot be exported: take {limit}"
        ) from error


def _check_state(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> None:
    """Check every key, shape and dtype against the net's, and that every weight is a number."""
    if missing := sorted(expected.keys() - state.keys()):
        raise InputError(f"{path} lacks key {_some(missing)}: {ADVICE}")
    if extra := sorted(state.keys() - expected.keys()):
        raise InputError(
            f"{path} has unexpected key {_some(extra)}: the tutorial's net has only {_some(expected)}"
        )
    for key, wanted in expected.items():
        found = state[key]
        if (found.layout, found.device.type) != (torch.strided, "cpu"):
            raise InputError(f"{path}: key {key} holds no plain tensor: {ADVICE}")
        if found.shape != wanted.shape or found.dtype != wanted.dtype:
            raise InputError(
                f"{path}: key {key} is {found.dtype} {list(found.shape)}, "
                f"expected {wanted.dtype} {list(wanted.shape)}: "
                "save model.float().state_dict() of the tutorial's net"
            )
        if not found.isfinite().all():
            raise InputError(f"{path}: key {key} holds NaN or infinite values: train again")


def _shorten(name: str) -> str:
    """A name from a file as a short text on one line."""
    return printable(name[:LONGEST_NAME]) + ("…" if len(name) > LONGEST_NAME else "")


def _some(keys: Iterable[str]) -> str:
    names = sorted(map(_shorten, keys))
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "") if names else "no keys at all"
