"""What people bring to an export: a run directory, a state_dict of their own, or an ONNX file."""

import copy
import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from export.parity import Runner
from export.state_dict import load_net
from export.torch_formats import ConversionOptions, run_module, to_numpy
from serve_cli.errors import InputError
from serve_cli.model_file import read_bytes
from serve_cli.spec import STATE_DICT, is_calibration, temperature_of
from trainer import run_dir
from trainer.config import TrainConfig
from trainer.data import DIGITS, Dataset
from trainer.model import MLP, DeployedModel, Normalize

ONNX_SUFFIX, ONNX_START = ".onnx", b"\x08"
"""How the name of an ONNX file ends, and how its content begins: with the number of the field ir_version."""

Convert = Callable[[DeployedModel, ConversionOptions], bytes]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A net with its normalisation, its labels, and what is known of its training and calibration.

    Nothing is known of a bare file: `training` and `calibration` are empty, and the labels are the digits.
    `data_dir` is where the run found its data.
    """

    folder: Path
    mean: float
    std: float
    dataset: str
    labels: tuple[int | str, ...] = DIGITS
    training: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    calibration: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    data_dir: Path | None = None

    @property
    def normalizes(self) -> bool:
        """Whether `mean` and `std` change anything."""
        return True

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

    def runner(self) -> Runner:
        """Run the original, with normalisation and temperature as the source says."""
        raise NotImplementedError

    def convert(self, convert: Convert, options: ConversionOptions) -> bytes:
        """The bytes of a file in the format that `convert` makes, without a contract."""
        raise NotImplementedError

    def weights(self) -> Mapping[str, np.ndarray]:
        """The arrays that a float file must hold to the last bit, by their names there."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """What the contract says of the net: layers, parameters, the hash of its file."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class NetSource(Source):
    """The tutorial's net, from a run or a state_dict."""

    net: MLP
    state_dict_sha256: str

    def model(self) -> DeployedModel:
        """The module that is exported, in evaluation mode."""
        normalize = Normalize(self.mean, self.std)
        return DeployedModel(self.net, normalize, temperature_of(self.calibration)).eval()

    def runner(self) -> Runner:  # noqa: D102
        return run_module(self.model())

    def convert(self, convert: Convert, options: ConversionOptions) -> bytes:  # noqa: D102
        return convert(self.model(), options)

    def weights(self) -> Mapping[str, np.ndarray]:  # noqa: D102
        return to_numpy(self.net.state_dict(prefix="net."))

    def with_activation(self, activation: Callable[[Tensor], Tensor]) -> "NetSource":
        """The same net with another function between its layers."""
        net = copy.copy(self.net)
        net.activation = activation
        return dataclasses.replace(self, net=net)

    def layer_sizes(self) -> list[int]:
        """Sizes of the net's layers, the input's first: 784, 128, 64, 10."""
        weights = [value for value in self.net.state_dict().values() if value.ndim == 2]
        return [weights[0].shape[1], *(weight.shape[0] for weight in weights)]

    def describe(self) -> dict[str, Any]:  # noqa: D102
        return {
            "layers": "-".join(map(str, self.layer_sizes())),
            "parameters": sum(parameter.numel() for parameter in self.net.parameters()),
            "state_dict_sha256": self.state_dict_sha256,
        }


def read_source(
    path: Path,
    *,
    dataset: str | None,
    mean: float | None,
    std: float | None,
    note: Callable[[str], None],
) -> Source:
    """Read a run directory, a state_dict inside one, a bare state_dict, or an ONNX file.

    A run has its own `dataset`, `mean` and `std`; for a bare file they default to the tutorial's. `note`
    receives a line about what was found in a file that is not as the tutorial saves it.

    Raises:
        InputError: nothing to export there, damaged, or a setting given that the run already has.
    """
    weights = path / STATE_DICT if path.is_dir() else path
    run, is_run = weights.parent, weights.name == STATE_DICT and (weights.parent / run_dir.REPORT).is_file()
    if path.is_dir() and not is_run:
        _refuse_unfinished(path, weights)
    if not weights.exists():
        raise InputError(f"no such file: {weights}; name a run directory, a saved state_dict or an ONNX file")
    if is_run:
        if (dataset, mean, std) != (None, None, None):
            raise InputError(f"{run} is a run and says its own dataset, mean and std: leave those flags out")
        return _read_run(run, weights, note)
    tutorial = TrainConfig.from_recipe("notebook", dataset=dataset)
    is_given = (mean, std) != (None, None)
    mean = tutorial.mean if mean is None else mean
    std = tutorial.std if std is None else std
    if not math.isfinite(mean) or not math.isfinite(std) or std == 0:
        raise InputError(f"--mean is {mean} and --std {std}, expected finite numbers, --std other than 0")
    data = read_bytes(weights)
    if data.startswith(ONNX_START) or weights.suffix == ONNX_SUFFIX:
        from export.onnx_source import read_onnx  # imports onnx, which a state_dict does not need here

        return read_onnx(data, weights, dataset=tutorial.dataset, mean=mean, std=std, is_given=is_given)
    return NetSource(
        folder=run,
        mean=mean,
        std=std,
        dataset=tutorial.dataset,
        net=load_net(data, weights, note),
        state_dict_sha256=hashlib.sha256(data).hexdigest(),
    )


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


def _read_run(folder: Path, weights: Path, note: Callable[[str], None]) -> NetSource:
    """The source of a finished run.

    Raises:
        InputError: report.json is damaged, or the weights are not those of the run.
    """
    config = TrainConfig.read(folder / run_dir.CONFIG)
    data = read_bytes(weights)
    path, sha256 = folder / run_dir.REPORT, hashlib.sha256(data).hexdigest()
    net = load_net(data, weights, note)
    report = run_dir.read_report(path)
    calibration = report.get("calibration") or {}  # none without held-out images, or in an older run
    if not is_calibration(calibration):
        raise InputError(f"{path} holds no calibration of ours: train again")
    if sha256 != report["weights_sha256"]:
        raise InputError(
            f"{weights} is not the file that report.json speaks of: train again, or export it alone"
        )
    if net.hidden != config.hidden:
        raise InputError(f"{weights} has hidden layers {net.hidden}, its config.json says {config.hidden}")
    return NetSource(
        folder=folder,
        net=net,
        mean=config.mean,
        std=config.std,
        dataset=config.dataset,
        labels=tuple(report["dataset"]["labels"]),
        training={
            "recipe": config.recipe,
            "config": config.to_dict(),
            "dataset": config.dataset,
            "dataset_sha256": report["dataset"]["train_sha256"],
        },
        calibration=calibration,
        state_dict_sha256=sha256,
        data_dir=run_dir.read_data_dir(folder),
    )
