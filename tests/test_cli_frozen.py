"""The command line is frozen: options, exit codes, the keys of JSON, the columns of CSV, see tests/frozen."""

import argparse
import importlib
import json
from pathlib import Path
from types import GenericAlias
from typing import Any, get_type_hints

import pytest
import typer
from PIL import Image

from serve_cli import commands, infer_main, process
from serve_cli.spec import BUNDLED_MODEL
from tests.command import Mnist
from tests.frozen import record
from tests.frozen.record import shape
from tests.serve_cli.http.serving import serving
from trainer.config import RECIPES


def type_name(hint: Any) -> str:
    """A type as it is written: int, str | None, list[str]."""
    is_plain = isinstance(hint, type) and not isinstance(hint, GenericAlias)
    return hint.__name__ if is_plain else str(hint).replace("pathlib.", "")


def default_name(value: Any) -> str:
    return "the model in the package" if value == BUNDLED_MODEL else str(value)


def typer_option(param: Any, hints: dict[str, Any], context: Any) -> str:
    """What an option or argument of typer takes, in a line."""
    parts = [type_name(hints.get(param.name, bool))]
    parts += ["required"] if param.required else [f"default {default_name(param.default)}"]
    parts += [
        f"{name} {limit}" for name in ("min", "max") if (limit := getattr(param, name, None)) is not None
    ]
    parts += [f"from {param.envvar}"] if param.envvar else []
    choices = [item.value for item in param.shell_complete(context, "")]
    return ", ".join(parts + ([f"one of {' '.join(choices)}"] if choices else []))


def typer_command(app: typer.Typer) -> dict[str, str]:
    """The options and arguments of an app that is one command."""
    (registered,) = app.registered_commands
    return typer_params(typer.main.get_command(app), registered.callback)


def typer_params(command: Any, callback: Any) -> dict[str, str]:
    hints = get_type_hints(callback)
    context = command.make_context("x", [], resilient_parsing=True)
    return {
        ", ".join((*param.opts, *param.secondary_opts))
        if param.param_type_name == "option"
        else param.metavar or param.name: typer_option(param, hints, context)
        for param in command.params
        if param.name not in ("install_completion", "show_completion")
    }


def argparse_option(action: argparse.Action) -> str:
    """What an option of argparse takes, in a line."""
    flag = action.nargs == 0
    type_of = "bool" if flag else getattr(action.type, "__name__", "str").strip("_")
    choices = f", one of {' '.join(action.choices)}" if action.choices else ""
    return f"{type_of}, default {default_name(action.default)}{choices}"


def options() -> dict[str, dict[str, str]]:
    """What each command takes."""
    root = typer.main.get_command(commands.app)
    parser = infer_main._parser()
    info = root.commands["info"]  # type: ignore[attr-defined]
    return {
        "mnist": typer_params(root, commands._root),
        **{
            f"mnist {name}": typer_command(importlib.import_module(module).app)
            for name, module in commands.LAZY_COMMANDS.items()
        },
        "mnist infer": {
            ", ".join(action.option_strings) or action.dest: argparse_option(action)
            for action in parser._actions
        },
        "mnist info": typer_params(info, commands.info),
    }


@pytest.fixture
def blank_png(tmp_path: Path) -> Path:
    path = tmp_path / "blank.png"
    Image.new("L", (40, 40), 255).save(path)
    return path


def exit_codes(mnist: Mnist, digit: Path, blank: Path) -> dict[str, int]:
    """What each outcome ends with, as it was seen."""
    evaluate = ("evaluate", "--data", digit.parents[1], "--min-accuracy", 1)
    wrong = digit.parents[1] / "1" / "wrong.png"
    wrong.parent.mkdir()
    wrong.write_bytes(digit.read_bytes())
    return {
        "done": mnist("infer", digit).code,
        "check failed": mnist(*evaluate).code,
        "bad usage": mnist("infer", digit, "--colour").code,
        "bad input": mnist("infer", digit, "missing.png").code,
        "not sure": mnist("infer", blank).code,
        "not sure, and bad input": mnist("infer", blank, "missing.png").code,
        "Ctrl-C": process.INTERRUPTED,
        "SIGTERM": process.TERMINATED,
    }


def predictions(picture: bytes) -> dict[str, Any]:
    """What the server answers."""
    with serving() as server:
        return {
            "POST /predict": shape(server.ask("/predict", picture).json),
            "POST /predict?top_k=2&pixels=true": shape(
                server.ask("/predict?top_k=2&pixels=true", picture).json
            ),
            "POST /predict, refused": shape(server.ask("/predict", b"no picture").json),
        }


def documents(mnist: Mnist, digit: Path, blank: Path, run: Path, artifact: Path) -> dict[str, Any]:
    """The keys and types of every JSON document."""

    def printed(*arguments: object) -> Any:
        return shape(json.loads(mnist(*arguments, "--json").out))

    def stored(path: Path) -> Any:
        return shape(json.loads(path.read_text(encoding="utf-8")))

    return {
        "mnist infer --json": printed("infer", digit),
        "mnist infer --json, not sure": printed("infer", blank),
        "mnist infer --json --top-k 2": printed("infer", digit, "--top-k", 2),
        "mnist evaluate --json": printed("evaluate", "--data", digit.parents[1]),
        "mnist info --json": printed("info"),
        "mnist bench --json": printed("bench", artifact / "model.onnx", "--rounds", 1),
        "config.json": stored(run / "config.json"),
        "metrics.jsonl": shape(json.loads((run / "metrics.jsonl").read_text().splitlines()[0])),
        "report.json": stored(run / "report.json"),
        "parity.json": stored(artifact / "parity.json"),
        "artifact.json": stored(artifact / "artifact.json"),
    }


def test_the_command_line_is_frozen(
    mnist: Mnist, digit_png: Path, blank_png: Path, run_directory: Path, artifact: Path
) -> None:
    labelled = digit_png.parent / "data" / "7"
    labelled.mkdir(parents=True)
    digit = digit_png.rename(labelled / "digit.png")
    found = {
        "options": options(),
        "recipes": RECIPES,
        "json": documents(mnist, digit, blank_png, run_directory, artifact) | predictions(digit.read_bytes()),
        "csv": {"mnist infer --csv": mnist("infer", digit, "--csv").out.splitlines()[0].split(",")},
        "exit codes": exit_codes(mnist, digit, blank_png),
    }
    record.check("cli", "tests/test_cli_frozen.py", found)


def test_every_state_of_the_command_line_was_announced() -> None:
    record.check_announced("cli")
