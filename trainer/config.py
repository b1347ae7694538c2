"""The settings of a run. Each is stated once: type, default, range and help; it needs no torch."""

import dataclasses
import itertools
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_type_hints

from serve_cli.errors import InputError, needs_extra
from serve_cli.process import did_you_mean
from serve_cli.regular_file import read_regular
from serve_cli.spec import CLASSES, IMAGE_SIZE

OWN = "own"
"""The dataset that people bring with --data."""
DATASETS = ("mnist", "mnist5k", "fashion-mnist", "kmnist", "emnist-digits", "idx", OWN)
PROGRAM = "mnist train"
DEFAULT_RECIPE = "fast"
RECIPES: dict[str, dict[str, Any]] = {
    "notebook": {},
    "fast": {
        "batch_size": 256,
        "lr": 8e-3,
        "weight_decay": 1e-2,
        "schedule": "one-cycle",
        "validation_fraction": 0.1,
        "mean": 0.1307,
        "std": 0.3081,
    },
    "best": {
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
    },
}
"""What each recipe changes in TrainConfig's defaults, which are the tutorial's own values."""

MAX_PARAMETERS = 15_000_000
"""Largest net: every exported file stays below the 64 MiB that a model file may have."""

MAX_CONFIG_BYTES = 1024**2

MOST = 2**31 - 1
"""Of counts: more cannot be handed to PyTorch."""


def setting(
    default: Any,
    help_text: str,
    *,
    choices: Sequence[str] = (),
    low: float = -math.inf,
    above: float = -math.inf,
    high: float = math.inf,
) -> Any:
    """A field with its help and its range: one of `choices`, or a number in its bounds."""
    return field(
        default=default,
        metadata={"help": help_text, "choices": choices, "low": low, "above": above, "high": high},
    )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All settings that decide the weights of a run; the defaults are the tutorial's.

    Raises:
        InputError: a value is out of range; the message names the flag.
    """

    recipe: str = setting("notebook", "Named settings, which the other flags override.", choices=[*RECIPES])
    dataset: str = setting("mnist", "What to learn.", choices=DATASETS)
    epochs: int = setting(5, "Passes over the training set.", low=1, high=MOST)
    batch_size: int = setting(64, "Images a step, over all processes together.", low=1, high=MOST)
    accumulate: int = setting(
        1, "Parts that each process computes its share of a batch in, to save memory.", low=1, high=MOST
    )
    optimizer: str = setting("adam", "Optimizer.", choices=("adam", "muon"))
    lr: float = setting(1e-3, "Learning rate; the peak of one-cycle.", above=0)
    weight_decay: float = setting(0.0, "Decoupled weight decay, as in AdamW.", low=0)
    schedule: str = setting("constant", "Schedule of the learning rate.", choices=("constant", "one-cycle"))
    seed: int = setting(
        0, "Seed of weights, sample order, distortions and outliers.", low=0, high=MOST * 2 + 1
    )
    hidden: tuple[int, ...] = setting(
        (128, 64), "Sizes of the hidden layers, such as 128,64.", low=1, high=16384
    )
    distortion: float = setting(
        0.0, "Strength of random distortions: 0 for none, 1 as people's pens.", low=0, high=2
    )
    strangers: float = setting(
        0.0,
        "Part of each batch that is replaced by outliers, pictures of no digit, to learn when to be unsure.",
        low=0,
        high=0.5,
    )
    mixed_precision: str = setting("no", "Precision of matrix products.", choices=("no", "bf16"))
    threads: int = setting(
        1, "CPU threads of each process; another number rounds differently.", low=1, high=1024
    )
    limit: int | None = setting(None, "Use only the first N training images, for a quick try.", low=1)
    patience: int | None = setting(
        None,
        "Stop after N epochs without a lower validation loss and keep the best weights; needs "
        "--validation-fraction above 0.",
        low=1,
    )
    validation_fraction: float = setting(
        0.0, "Part of the training set to validate on; 0: the test set, as in the tutorial.", low=0, high=0.5
    )
    mean: float = setting(0.5, "Mean that is subtracted from the pixels (0 to 1).")
    std: float = setting(0.5, "Standard deviation that the pixels are divided by.", above=0)

    def __post_init__(self) -> None:
        """Check every type and range."""
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            for number in value if isinstance(value, tuple) else (value,):
                _check(item, number)
        if not self.hidden or not isinstance(self.hidden, tuple):
            raise InputError(f"--hidden is {self.hidden}, expected layer sizes such as 128,64")
        sizes = (IMAGE_SIZE**2, *self.hidden, CLASSES)
        if sum((before + 1) * after for before, after in itertools.pairwise(sizes)) > MAX_PARAMETERS:
            raise InputError(
                f"--hidden is {self.hidden}, expected a net of at most {MAX_PARAMETERS:,} parameters"
            )
        if self.accumulate > self.batch_size:
            raise InputError(f"--accumulate is {self.accumulate}, expected at most --batch-size")
        if self.patience is not None and self.validation_fraction == 0:
            raise InputError(
                "--validation-fraction is 0, expected above 0 where --patience is given: "
                "the test set chooses nothing"
            )

    @classmethod
    def from_recipe(cls, recipe: str, **values: Any) -> "TrainConfig":
        """The config of a named recipe; each of `values` that is not None overrides it.

        Raises:
            InputError: no such recipe, or a value out of range.
        """
        given = {name: value for name, value in values.items() if value is not None}
        return cls(recipe=recipe, **{**RECIPES.get(str(recipe), {}), **given})

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values, for config.json."""
        return {**dataclasses.asdict(self), "hidden": list(self.hidden)}

    def require_same(self, flags: Mapping[str, Any], where: Path) -> None:
        """Check that `flags` agree with this config, which the run at `where` was started with.

        Raises:
            InputError: names each field that differs; a flag that is None was not given.
        """
        differing = [
            f"{flag(name)} {value} (the run has {getattr(self, name)})"
            for name, value in flags.items()
            if value is not None and getattr(self, name) != value
        ]
        if differing:
            raise InputError(
                f"{where} was started with other settings: {', '.join(differing)}; leave them out to go on, "
                "or name another --output"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainConfig":
        """Build a config from what `to_dict` gave.

        Raises:
            InputError: a value is out of range.
            KeyError, TypeError: a key is missing or unknown.
        """
        return cls(**{**values, "hidden": tuple(values["hidden"])})

    @classmethod
    def read(cls, path: Path) -> "TrainConfig":
        """Read a run's config.json.

        Raises:
            InputError: missing, not JSON, an unknown key, or a value that does not fit.
        """
        try:
            return cls.from_dict(read_settings(path))
        except (InputError, KeyError, TypeError) as error:
            raise InputError(f"{path} is not the config of a run ({error}): train again") from error


def read_settings(path: Path) -> dict[str, Any]:
    """Read a file of settings: JSON, TOML or YAML by its extension, keys as the fields of TrainConfig.

    Raises:
        InputError: it cannot be read, is too large, is not such a file, or has an unknown key.
    """
    data = read_regular(path, MAX_CONFIG_BYTES, "name a file of settings, such as a run's config.json")
    try:
        values = _parse(data[:MAX_CONFIG_BYTES].decode(), path.suffix.lower())
    except (ValueError, RecursionError) as error:  # json, tomllib and yaml raise subclasses of ValueError
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{path} cannot be read as settings ({reason}): write it as JSON, TOML or YAML"
        ) from error
    if not isinstance(values, dict):
        raise InputError(f"{path} holds no settings: write names and values, such as lr = 0.001")
    names = [item.name for item in dataclasses.fields(TrainConfig)]
    for key in values:
        if key not in names:
            raise InputError(f"{path} has the unknown key {str(key)[:40]!r}{did_you_mean(str(key), names)}")
    for item in dataclasses.fields(TrainConfig):
        if isinstance(value := values.get(item.name), str) and item.type is float:
            with suppress(ValueError):
                values[item.name] = float(value)  # YAML reads 1e-3 as text
    if isinstance(hidden := values.get("hidden"), list | str):
        values["hidden"] = parse_hidden(hidden) if isinstance(hidden, str) else tuple(hidden)
    return values


def _parse(text: str, suffix: str) -> Any:
    if suffix == ".toml":
        return tomllib.loads(text)
    if suffix in (".yaml", ".yml"):
        with needs_extra("train", "a YAML file"):
            import yaml
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(str(error)) from error
    return json.loads(text)


def flag(name: str) -> str:
    """The command-line flag of a field."""
    return f"--{name.replace('_', '-')}"


def _check(item: "dataclasses.Field[Any]", value: object) -> None:
    """Check one value, or one number of a tuple, against the type and the range of its field."""
    kind, limits = get_type_hints(TrainConfig)[item.name], item.metadata
    kinds = tuple(part for part in (get_args(kind) or (kind,)) if part is not ...)
    if value is None and type(None) in kinds:
        return
    if float in kinds:
        kinds = (*kinds, int)
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise InputError(f"{flag(item.name)} is {value!r}, expected {expected(item)}")
    if limits["choices"] and value not in limits["choices"]:
        close = did_you_mean(str(value), limits["choices"])
        raise InputError(f"{flag(item.name)} is {value}, expected {expected(item)}{close}")
    if isinstance(value, int | float) and not (
        limits["low"] <= value <= limits["high"] and value > limits["above"] and abs(value) < math.inf
    ):
        raise InputError(f"{flag(item.name)} is {value}, expected {expected(item)}")


def expected(item: "dataclasses.Field[Any]") -> str:
    """The range of a field for people: `one of adam, muon`, `1 to 1024`, `at least 1`, `above 0`."""
    low, above, high = (item.metadata[name] for name in ("low", "above", "high"))
    if item.metadata["choices"]:
        return f"one of {', '.join(item.metadata['choices'])}"
    if item.name == "hidden":
        return f"layer sizes from {low} to {high}, such as 128,64"
    if math.isfinite(above):
        return f"above {above}"
    if math.isfinite(low):
        return f"{low} to {high}" if high < MOST else f"at least {low}"
    return "a number"


def parse_hidden(text: str) -> tuple[int, ...]:
    """Read `128,64` as layer sizes.

    Raises:
        InputError: not whole numbers between commas.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"--hidden is {text!r}, expected layer sizes such as 128,64") from error
