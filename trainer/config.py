"""Everything that decides the weights of a run, in one frozen place; it needs no torch."""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve_cli.errors import InputError

DATASETS = ("mnist", "mnist5k", "fashion-mnist", "kmnist", "emnist-digits", "idx")
SCHEDULES = ("constant", "one-cycle")
OPTIMIZERS = ("adam", "muon")
PRECISIONS = ("no", "bf16")

NOTEBOOK: dict[str, Any] = {}
FAST: dict[str, Any] = {
    "batch_size": 256,
    "lr": 8e-3,
    "weight_decay": 1e-2,
    "schedule": "one-cycle",
    "validation_fraction": 0.1,
    "mean": 0.1307,
    "std": 0.3081,
}
DEFAULT_RECIPE = "fast"
BEST: dict[str, Any] = {
    "epochs": 60,
    "batch_size": 256,
    "optimizer": "muon",
    "lr": 4e-3,
    "weight_decay": 0.2,
    "schedule": "one-cycle",
    "distortion": 1.0,
    "strangers": 0.05,
    "validation_fraction": 0.05,
    "mean": 0.1307,
    "std": 0.3081,
}
RECIPES = {"notebook": NOTEBOOK, "fast": FAST, "best": BEST}
"""What each recipe changes in TrainConfig's defaults, which are the tutorial's own values."""


NUMBERS = (
    "lr",
    "weight_decay",
    "distortion",
    "strangers",
    "validation_fraction",
    "mean",
    "std",
)

FIELD_TYPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("recipe", "dataset", "optimizer", "schedule", "mixed_precision"), str),
    **dict.fromkeys(("epochs", "batch_size", "accumulate", "seed", "threads"), int),
    **dict.fromkeys(NUMBERS, (int, float)),
    **dict.fromkeys(("limit", "patience"), (int, type(None))),
}
"""What config.json may hold: its values arrive without the types that the flags give."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The settings of a run; the defaults are the tutorial's. Paths are not among them: they decide nothing.

    Raises:
        InputError: a value is out of range; the message names the field.
    """

    recipe: str = "notebook"
    dataset: str = "mnist"
    epochs: int = 5
    batch_size: int = 64
    accumulate: int = 1
    optimizer: str = "adam"
    lr: float = 1e-3
    weight_decay: float = 0.0
    schedule: str = "constant"
    seed: int = 0
    hidden: tuple[int, ...] = (128, 64)
    distortion: float = 0.0
    strangers: float = 0.0
    mixed_precision: str = "no"
    threads: int = 1
    limit: int | None = None
    patience: int | None = None
    validation_fraction: float = 0.0
    mean: float = 0.5
    std: float = 0.5

    def __post_init__(self) -> None:
        """Check every type and range."""
        for name, kind in FIELD_TYPES.items():
            value = getattr(self, name)
            _require(isinstance(value, kind) and not isinstance(value, bool), name, value, "another type")
        _require(self.recipe in RECIPES, "recipe", self.recipe, f"one of {', '.join(RECIPES)}")
        _require(self.dataset in DATASETS, "dataset", self.dataset, f"one of {', '.join(DATASETS)}")
        _require(self.optimizer in OPTIMIZERS, "optimizer", self.optimizer, f"one of {', '.join(OPTIMIZERS)}")
        _require(self.schedule in SCHEDULES, "schedule", self.schedule, f"one of {', '.join(SCHEDULES)}")
        _require(
            self.mixed_precision in PRECISIONS,
            "mixed_precision",
            self.mixed_precision,
            f"one of {', '.join(PRECISIONS)}",
        )
        for name in ("epochs", "batch_size", "accumulate"):
            _require(1 <= getattr(self, name) < 2**31, name, getattr(self, name), "from 1 to 2**31 - 1")
        _require(self.accumulate <= self.batch_size, "accumulate", self.accumulate, "at most --batch-size")
        _require(1 <= self.threads <= 1024, "threads", self.threads, "from 1 to 1024")
        _require(0 < self.lr < math.inf, "lr", self.lr, "above 0")
        _require(0 <= self.weight_decay < math.inf, "weight_decay", self.weight_decay, "at least 0")
        _require(0 <= self.seed < 2**32, "seed", self.seed, "from 0 to 2**32 - 1")
        sizes_ok = len(self.hidden) > 0 and all(
            isinstance(size, int) and 1 <= size <= 65536 for size in self.hidden
        )
        _require(sizes_ok, "hidden", self.hidden, "layer sizes from 1 to 65536, such as 128,64")
        _require(0 <= self.distortion <= 2, "distortion", self.distortion, "0 to 2")
        _require(0 <= self.strangers <= 0.5, "strangers", self.strangers, "0 to 0.5")
        for name in ("limit", "patience"):
            value = getattr(self, name)
            _require(value is None or value >= 1, name, value, "at least 1")
        _require(
            0 <= self.validation_fraction <= 0.5, "validation_fraction", self.validation_fraction, "0 to 0.5"
        )
        _require(
            self.patience is None or self.validation_fraction > 0,
            "validation_fraction",
            self.validation_fraction,
            "above 0 where --patience is given: the test set chooses nothing",
        )
        _require(math.isfinite(self.mean), "mean", self.mean, "a number")
        _require(0 < self.std < math.inf, "std", self.std, "above 0")

    @classmethod
    def from_recipe(cls, recipe: str, **flags: Any) -> "TrainConfig":
        """Build the config of a named recipe; each flag that is not None overrides it.

        Raises:
            InputError: no such recipe, or a value out of range.
        """
        given = {name: value for name, value in flags.items() if value is not None}
        return cls(recipe=recipe, **{**RECIPES.get(recipe, {}), **given})

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values, for config.json."""
        return {**dataclasses.asdict(self), "hidden": list(self.hidden)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainConfig":
        """Build a config from what `to_dict` gave.

        Raises:
            InputError, ValueError, KeyError, TypeError: an unknown key, or a value that does not fit.
        """
        return cls(**{**values, "hidden": tuple(values["hidden"])})

    def require_same(self, flags: Mapping[str, Any], where: Path) -> None:
        """Refuse `flags` that this config, which the run at `where` was started with, does not have.

        Raises:
            InputError: names each field that differs; a flag that is None was not given.
        """
        differing = [
            f"--{name.replace('_', '-')} {value} (the run has {getattr(self, name)})"
            for name, value in flags.items()
            if value is not None and getattr(self, name) != value
        ]
        if differing:
            raise InputError(
                f"{where} was started with other settings: {', '.join(differing)}; leave them out to go on, "
                "or name another --output"
            )

    @classmethod
    def read(cls, path: Path) -> "TrainConfig":
        """Read a run's config.json.

        Raises:
            InputError: missing, not JSON, an unknown key, or a value that does not fit.
        """
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error
        except (InputError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is not the config of a run ({error}): train again") from error


def _require(holds: bool, field: str, value: object, expected: str) -> None:
    if not holds:
        raise InputError(f"--{field.replace('_', '-')} is {value}, expected {expected}")


def parse_hidden(text: str) -> tuple[int, ...]:
    """Read `128,64` as layer sizes.

    Raises:
        InputError: not whole numbers between commas.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"--hidden is {text!r}, expected layer sizes such as 128,64") from error
