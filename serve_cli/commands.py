"""All commands of `mnist`, by typer; `mnist infer` has a parser of its own, see infer_main."""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from serve_cli.process import did_you_mean, printable
from serve_cli.spec import BUNDLED_MODEL, MODEL_FILES

# Commands in modules of their own, by name only: those of the training half may not be there, and each is
# imported when somebody asks for it.
LAZY_COMMANDS = {
    "train": "trainer.main",
    "export": "export.main",
    "verify": "serve_cli.verify",
    "evaluate": "serve_cli.evaluate",
    "bench": "serve_cli.bench",
    "serve": "serve_cli.serve",
}


class Commands(TyperGroup):
    """The commands of this module and, loaded on demand, those of others."""

    def list_commands(self, ctx: Any) -> list[str]:
        """All names, in the order of the work: train, export, then the rest."""
        return [*LAZY_COMMANDS, *super().list_commands(ctx)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command, importing its module when it is a lazy one."""
        if cmd_name in LAZY_COMMANDS:
            return typer.main.get_command(importlib.import_module(LAZY_COMMANDS[cmd_name]).app)
        return super().get_command(ctx, cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command; the message about an unknown one names the closest."""
        names = self.list_commands(ctx)
        if args[0] not in names and not args[0].startswith("-"):
            ctx.fail(f"no such command {args[0]!r}{did_you_mean(args[0], names)}")
        return super().resolve_command(ctx, args)


class Infer(TyperCommand):
    """The command that typer hands its words to unread; it knows itself how they go on."""

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """The words that may stand in place of `incomplete`; none lets the shell complete names of files."""
        from serve_cli import infer_main

        return infer_main.completions(ctx.args, incomplete)


app = typer.Typer(
    cls=Commands,
    help="Train a digit classifier, export it with proof, and read digits on machines without torch.",
    epilog="Exit codes: 0 done, 1 a check failed, 2 bad usage or bad input, 3 not sure, 130 interrupted.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

LONGEST_LIST = 200
"""Characters of a list that `mnist info` prints as it is."""


def _version(show: bool) -> None:
    if show:
        from importlib.metadata import version

        typer.echo(f"mnist-toolkit {version('mnist-toolkit')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command(
    cls=Infer,
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def infer(context: typer.Context) -> None:
    """Read the digit in each picture."""
    from serve_cli import infer_main

    raise typer.Exit(infer_main.run(context.args))


@app.command()
def info(
    model: Annotated[
        Path,
        typer.Argument(
            help="A file that mnist export made, or the directory of an artifact or run.",
            show_default="the model in the package",
        ),
    ] = BUNDLED_MODEL,
    as_json: Annotated[bool, typer.Option("--json", help="Print the contract as one JSON document.")] = False,
) -> None:
    """Print what a model says about itself.

    Its input and labels, how it was trained, how it was proven: the contract that every file of mnist export
    carries. Nothing in the file is run; whether it is true, mnist verify checks.

    \b
    Examples:
      mnist info
      mnist info artifact/model.onnx
      mnist info runs/notebook --json
    """
    from serve_cli.model_file import find_model, read_contract

    path = find_model(model, [file.name for file in MODEL_FILES.values()])
    contract = read_contract(path)
    if as_json:
        typer.echo(contract.to_json())
        return
    typer.echo(f"file: {path} ({path.stat().st_size:,} bytes)")
    for line in outline(json.loads(contract.to_json())):
        typer.echo(printable(line))


def outline(value: Any, indent: str = "") -> Iterator[str]:
    """Yield the lines of a nested JSON value as an indented list of `name: value`; long lists are counted."""
    for key, item in value.items():
        if isinstance(item, dict) and item:
            yield f"{indent}{key}:"
            yield from outline(item, indent + "  ")
            continue
        text = item if isinstance(item, str) else json.dumps(item)
        if isinstance(item, list) and len(text) > LONGEST_LIST:
            text = f"{len(item)} entries, see --json"
        yield f"{indent}{key}: {text}"
