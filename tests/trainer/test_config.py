"""One frozen config: recipes, overrides, ranges, and flags that map one to one to its fields."""

import dataclasses
import inspect
import json
from pathlib import Path

import pytest

from serve_cli.errors import InputError
from trainer.config import RECIPES, TrainConfig, parse_hidden
from trainer.main import train


def test_the_notebook_recipe_is_the_tutorial() -> None:
    config = TrainConfig.from_recipe("notebook")
    assert (config.hidden, config.lr, config.batch_size, config.epochs) == ((128, 64), 1e-3, 64, 5)
    assert (config.mean, config.std, config.weight_decay, config.schedule) == (0.5, 0.5, 0.0, "constant")
    assert (config.validation_fraction, config.limit, config.dataset) == (0.0, None, "mnist")


def test_flags_override_a_recipe() -> None:
    config = TrainConfig.from_recipe("fast", batch_size=32, lr=None)
    assert config.batch_size == 32
    assert config.lr == RECIPES["fast"]["lr"]
    assert config.validation_fraction > 0


def test_flags_and_fields_are_the_same() -> None:
    others = {"context", "output", "overwrite", "resume", "data_dir", "checkpoint_every", "tracker"}
    flags = set(inspect.signature(train).parameters) - others - {"num_processes"}
    assert flags == {field.name for field in dataclasses.fields(TrainConfig)}


def test_config_file_and_back(tmp_path: Path) -> None:
    config = TrainConfig.from_recipe("fast", hidden=(32,), limit=100)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.to_dict()))
    assert TrainConfig.read(path) == config


def test_a_config_file_from_before_there_were_strangers_still_reads(tmp_path: Path) -> None:
    config = TrainConfig.from_recipe("fast")
    values = config.to_dict()
    assert values.pop("strangers") == 0
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert TrainConfig.read(tmp_path / "config.json") == config


def test_half_of_a_batch_may_be_strangers() -> None:
    assert TrainConfig(strangers=0.5).strangers == 0.5
    assert TrainConfig(strangers=0).strangers == 0
    assert TrainConfig.from_recipe("best").strangers > 0


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"hidden": [128], "colour": 1}',
        '{"hidden": [1], "lr": "x"}',
        '{"hidden": [1], "std": 0}',
    ],
)
def test_a_broken_config_file_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"config\.json"):
        TrainConfig.read(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("recipe", "slow"),
        ("dataset", "cifar"),
        ("schedule", "cosine"),
        ("epochs", 0),
        ("batch_size", 0),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("lr", float("inf")),
        ("weight_decay", -1.0),
        ("seed", -1),
        ("seed", 2**32),
        ("epochs", 2.5),
        ("mean", True),
        ("batch_size", 10**22),
        ("hidden", (128.0,)),
        ("distortion", -1.0),
        ("strangers", -0.1),
        ("strangers", 0.51),
        ("strangers", float("nan")),
        ("strangers", "0.1"),
        ("optimizer", "sgd"),
        ("accumulate", 0),
        ("threads", 0),
        ("mixed_precision", "fp16"),
        ("patience", 0),
        ("hidden", ()),
        ("hidden", (128, 0)),
        ("limit", 0),
        ("validation_fraction", 0.9),
        ("mean", float("inf")),
        ("std", 0.0),
    ],
)
def test_a_value_out_of_range_names_its_flag(field: str, value: object) -> None:
    with pytest.raises(InputError, match=f"--{field.replace('_', '-')} is"):
        TrainConfig(**{field: value})  # type: ignore[arg-type]


def test_patience_never_watches_the_test_set() -> None:
    with pytest.raises(InputError, match="the test set chooses nothing"):
        TrainConfig.from_recipe("notebook", patience=3)
    assert TrainConfig.from_recipe("fast", patience=3).patience == 3


def test_other_settings_are_named() -> None:
    config = TrainConfig.from_recipe("notebook", epochs=3)
    config.require_same({"epochs": 3, "lr": None, "recipe": None}, Path("runs/a"))
    with pytest.raises(
        InputError, match=r"runs/a .*--lr 0.5 \(the run has 0.001\), --seed 7 \(the run has 0\)"
    ):
        config.require_same({"epochs": 3, "lr": 0.5, "seed": 7}, Path("runs/a"))


def test_hidden_sizes() -> None:
    assert parse_hidden("128,64") == (128, 64)
    assert parse_hidden("32") == (32,)
    for text in ("", "a", "1,,2", "1.5"):
        with pytest.raises(InputError, match="--hidden"):
            parse_hidden(text)
