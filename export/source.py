"""What is exported: a run directory, or a bare state_dict as the tutorial saves it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.weights import load_net
from serve_cli.errors import InputError
from serve_cli.spec import STATE_DICT, is_calibration, temperature_of
from trainer import run_dir
from trainer.config import TrainConfig
from trainer.data import DIGITS
from trainer.model import MLP, DeployedModel, Normalize


@dataclass(frozen=True, kw_only=True)
class Source:
    """A trained net with its normalisation, its labels, and what is known of its training and calibration.

    Of a bare file nothing is known: `training` and `calibration` are empty, and the labels are the digits.
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

    def model(self) -> DeployedModel:
        """The module that is exported, in evaluation mode."""
        normalize = Normalize(self.mean, self.std)
        return DeployedModel(self.net, normalize, temperature_of(self.calibration)).eval()


def read_source(path: Path, *, dataset: str | None, mean: float | None, std: float | None) -> Source:
    """Read a run directory, a state_dict inside one, or a bare state_dict.

    For a bare one `dataset`, `mean` and `std` are the tutorial's unless given; a run says its own.

    Raises:
        InputError: nothing to export there, damaged, or a setting given that the run already has.
    """
    weights = path / STATE_DICT if path.is_dir() else path
    if not weights.is_file():
        raise InputError(f"no such file: {weights}; name a run directory or a saved state_dict")
    run = weights.parent
    if weights.name == STATE_DICT and (run / run_dir.REPORT).is_file():
        if (dataset, mean, std) != (None, None, None):
            raise InputError(f"{run} is a run and says its own dataset, mean and std: leave those flags out")
        return _of_run(run, weights)
    if path.is_dir():
        raise InputError(
            f"{path} has no {run_dir.REPORT}, so it is not a finished run: name its {weights.name}"
        )
    tutorial = TrainConfig()
    given = {"dataset": dataset or tutorial.dataset, "mean": mean, "std": std}
    config = TrainConfig.from_recipe(tutorial.recipe, **given)
    return _source(weights, config, DIGITS, training={}, calibration={})


def _of_run(run: Path, weights: Path) -> Source:
    config = TrainConfig.read(run / run_dir.CONFIG)
    report = run_dir.read_report(run / run_dir.REPORT)
    training = {
        "recipe": config.recipe,
        "config": config.to_dict(),
        "dataset": config.dataset,
        "dataset_sha256": report["dataset"]["train_sha256"],
    }
    calibration = report.get("calibration") or {}  # none without held-out images, or in an older run
    if not is_calibration(calibration):
        raise InputError(f"{run / run_dir.REPORT} holds no calibration of ours: train again")
    source = _source(weights, config, tuple(report["dataset"]["labels"]), training, calibration)
    if source.state_dict_sha256 != report["weights_sha256"]:
        raise InputError(
            f"{weights} is not the file that report.json speaks of: train again, or export it alone"
        )
    if source.net.hidden != config.hidden:
        raise InputError(
            f"{weights} has hidden layers {source.net.hidden}, its config.json says {config.hidden}"
        )
    return source


def _source(
    weights: Path,
    config: TrainConfig,
    labels: tuple[int | str, ...],
    training: Mapping[str, Any],
    calibration: Mapping[str, Any],
) -> Source:
    return Source(
        folder=weights.parent,
        net=load_net(weights),
        mean=config.mean,
        std=config.std,
        dataset=config.dataset,
        labels=labels,
        training=training,
        calibration=calibration,
        state_dict_sha256=hashlib.sha256(weights.read_bytes()).hexdigest(),
    )
