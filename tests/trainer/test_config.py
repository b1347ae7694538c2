"""The settings of a run: recipes, a file, flags; each with its range, and the flags are the fields."""

import dataclasses
import inspect
import json
from pathlib import Path

import pytest

from serve_cli.errors import InputError
from tests.command import Mnist
from trainer.config import RECIPES, TrainConfig, read_settings
from trainer.main import merge_settings, train

TINY = ("--dataset", "mnist5k", "--limit", "100", "--epochs", "1")


def test_the_notebook_recipe_is_the_tutorial() -> None:
    config = TrainConfig.from_recipe("notebook")
    assert (config.hidden, config.lr, config.batch_size, config.epochs) == ((128, 64), 1e-3, 64, 5)
    assert (config.mean, config.std, config.weight_decay, config.schedule) == (0.5, 0.5, 0.0, "constant")
    assert (config.validation_fraction, config.limit, config.dataset) == (0.0, None, "mnist")
    assert TrainConfig.from_recipe("best").strangers > 0


def test_flags_and_fields_are_the_same() -> None:
    others = {"context", "config", "output", "overwrite", "resume", "data", "data_dir", "checkpoint_every"}
    flags = set(inspect.signature(train).parameters) - others - {"num_processes", "tracker"}
    assert flags == {field.name for field in dataclasses.fields(TrainConfig)}


def test_the_config_of_a_run_reads_back(tmp_path: Path) -> None:
    config = TrainConfig.from_recipe("fast", hidden=(32,), limit=100)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.to_dict()))
    assert TrainConfig.read(path) == config
    old = {name: value for name, value in config.to_dict().items() if name != "strangers"}
    path.write_text(json.dumps(old))  # from before there were outliers
    assert TrainConfig.read(path) == config


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"hidden": [1], "lr": "x"}', '{"hidden": [1], "std": 0}']
)
def test_a_broken_config_of_a_run_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"config\.json"):
        TrainConfig.read(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", '{"lr": 0.01, "hidden": [32, 16], "recipe": "fast"}'),
        ("a.toml", 'lr = 0.01\nhidden = [32, 16]\nrecipe = "fast"\n'),
        ("a.yaml", "lr: 0.01\nhidden: [32, 16]\nrecipe: fast\n"),
        ("a.YML", "lr: 0.01\nhidden: [32, 16]\nrecipe: fast\n"),
    ],
)
def test_a_file_of_settings_is_json_toml_or_yaml(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert read_settings(tmp_path / name) == {"lr": 0.01, "hidden": (32, 16), "recipe": "fast"}


def test_flags_beat_the_file_and_the_file_beats_the_recipe(mnist: Mnist, tmp_path: Path) -> None:
    """The second run takes the config.json of the first one as its file."""
    file = tmp_path / "settings.toml"
    file.write_text('recipe = "fast"\nlr = 0.01\nbatch_size = 50\n')
    flags = ("train", *TINY, "--batch-size", "20", "--hidden", "16")
    assert mnist(*flags, "--config", file, "--output", tmp_path / "a").code == 0
    config = TrainConfig.read(tmp_path / "a" / "config.json")
    assert (config.recipe, config.lr, config.batch_size, config.hidden) == ("fast", 0.01, 20, (16,))
    assert config.weight_decay == RECIPES["fast"]["weight_decay"]
    again = ("train", "--config", tmp_path / "a" / "config.json", "--seed", "1", "--output", tmp_path / "b")
    assert mnist(*again).code == 0
    assert TrainConfig.read(tmp_path / "b" / "config.json") == dataclasses.replace(config, seed=1)


def test_the_precision_of_accelerate_launch_counts_where_none_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert merge_settings(None, {"lr": None}) == {"mixed_precision": "bf16"}
    assert merge_settings(None, {"mixed_precision": "no"}) == {"mixed_precision": "no"}


@pytest.mark.parametrize(
    ("name", "text", "parts"),
    [
        ("a.json", '{"batchsize": 1}', ("unknown key 'batchsize'", "did you mean batch_size?")),
        ("a.toml", "lr = 0", ("--lr is 0",)),
        ("a.yaml", "recipe: fats", ("--recipe is fats", "did you mean fast?")),
        ("a.json", "{", ("a.json cannot be read as settings",)),
        ("a.toml", "lr = ", ("a.toml cannot be read as settings",)),
        ("a.yaml", "a: [", ("a.yaml cannot be read as settings",)),
        ("a.yaml", "lr: !!python/object/apply:os.getcwd []", ("a.yaml cannot be read as settings",)),
        ("a.json", "[" * 100_000, ("a.json cannot be read as settings",)),
        ("a.json", "[]", ("a.json holds no settings",)),
        ("a.yaml", "", ("a.yaml holds no settings",)),
        ("a.json", '{"hidden": 3}', ("--hidden is 3",)),
        ("a.json", '{"recipe": ["fast"]}', ("--recipe is ",)),
        ("a.json", f'{{"epochs": 1{"0" * 400}}}', ("--epochs is 1000",)),
        ("a.yaml", "lr: 1e-3\nhidden: 32,16\nepochs: 0", ("--epochs is 0",)),  # YAML reads 1e-3 as text
    ],
)
def test_a_bad_file_of_settings_is_refused(
    mnist: Mnist, tmp_path: Path, name: str, text: str, parts: tuple[str, ...]
) -> None:
    (tmp_path / name).write_text(text)
    mnist("train", "--config", tmp_path / name, "--output", tmp_path / "run").assert_refused(*parts)
    mnist("train", "--config", tmp_path, "--output", tmp_path / "run").assert_refused("not a regular file")
    assert not (tmp_path / "run").exists()


OUT_OF_RANGE: dict[str, tuple[object, ...]] = {
    "recipe": ("slow", 3),
    "dataset": ("cifar",),
    "schedule": ("cosine",),
    "optimizer": ("sgd",),
    "mixed_precision": ("fp16",),
    "epochs": (0, 2.5),
    "batch_size": (0, 10**22),
    "accumulate": (0, 65),
    "threads": (0,),
    "patience": (0,),
    "limit": (0,),
    "lr": (0.0, float("nan"), float("inf")),
    "weight_decay": (-1.0,),
    "seed": (-1, 2**32),
    "mean": (True, float("inf")),
    "std": (0.0,),
    "hidden": ((), (128, 0), (128.0,), (17000,), (10000, 10000), 128),
    "distortion": (-1.0,),
    "strangers": (-0.1, 0.51, "0.1"),
    "validation_fraction": (0.9,),
}


@pytest.mark.parametrize("field", OUT_OF_RANGE)
def test_a_value_out_of_range_names_its_flag(field: str) -> None:
    for value in OUT_OF_RANGE[field]:
        with pytest.raises(InputError, match=f"--{field.replace('_', '-')} is .*expected"):
            TrainConfig(**{field: value})  # type: ignore[arg-type]


def test_the_ends_of_a_range_are_in_it() -> None:
    assert TrainConfig(strangers=0.5, validation_fraction=0.5, distortion=2, seed=2**32 - 1).strangers == 0.5
    assert TrainConfig(strangers=0, hidden=(16384,)).hidden == (16384,)


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (("--recipe", "fats"), ("--recipe is fats", "notebook", "did you mean fast?")),
        (("--dataset", "mnist5"), ("--dataset is mnist5", "did you mean mnist5k?")),
        (("--tracker", "tensorbord"), ("--tracker is tensorbord", "did you mean tensorboard?")),
        (("--hiden", "3"), ("--hiden", "--hidden", "--help")),
        (("--resume", "--overwrite"), ("give one of them",)),
        (("--checkpoint-every", "0"), ("--checkpoint-every",)),
        (("--epochs", "0"), ("--epochs is 0",)),
        (("--epochs", "many"), ("--epochs", "--help")),
        (("--hidden", "a,b"), ("--hidden is 'a,b'",)),
        (("--hidden", "17000"), ("--hidden is 17000", "16384")),
        (("--recipe", "notebook", "--patience", "3"), ("the test set chooses nothing",)),
        (("--accumulate", "1000"), ("--accumulate is 1000", "--batch-size")),
        (
            ("--recipe", "fast", "--dataset", "mnist5k", "--limit", "2"),
            ("--validation-fraction 0.1", "--limit"),
        ),
    ],
)
def test_bad_flags_are_refused(
    mnist: Mnist, tmp_path: Path, flags: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    mnist("train", *flags, "--output", tmp_path / "run").assert_refused(*parts)
    assert list(tmp_path.iterdir()) == []
