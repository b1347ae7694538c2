"""The command line of a training run: `accelerate launch -m trainer.main` and `mnist train` alike."""

import contextlib
import dataclasses
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from serve_cli import process
from serve_cli.errors import InputError, needs_extra
from trainer.config import DEFAULT_RECIPE, OWN, PROGRAM, TrainConfig, expected, parse_hidden, read_settings

TRACKERS = ("tensorboard",)

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def with_setting_options(command: Callable[..., None]) -> Callable[..., None]:
    """Replace the `**flags` of a typer command by an option for each field of TrainConfig."""
    signature = inspect.signature(command)
    own = [item for item in signature.parameters.values() if item.kind is not item.VAR_KEYWORD]
    settings = [setting_option(item) for item in dataclasses.fields(TrainConfig)]
    parameters = [own[0], *settings[:2], *own[1:], *settings[2:]]  # recipe and dataset come first
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {item.name: item.annotation for item in parameters}
    return command


def setting_option(item: "dataclasses.Field[Any]") -> inspect.Parameter:
    """The option of one field; its default is None, for the recipe decides."""
    kind: Any = str if item.name == "hidden" else get_type_hints(TrainConfig)[item.name]
    choices = item.metadata["choices"]
    metavar = (
        "NAME" if choices else "SIZES" if item.name == "hidden" else "N" if kind in (int, int | None) else "X"
    )
    help_text = item.metadata["help"]
    help_text += {"hidden": "", "mean": ""}.get(item.name, f" [{expected(item)}]")
    if item.name == "recipe":
        help_text += f" {DEFAULT_RECIPE} if not given."
    option = typer.Option(
        metavar=metavar, help=help_text, autocompletion=process.among(choices) if choices else None
    )
    return inspect.Parameter(
        item.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


@app.command()
@with_setting_options
def train(
    context: typer.Context,
    *,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Settings from a JSON, TOML or YAML file, such as a run's config.json; flags override it.",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DATA",
            help="Data of your own: a folder of pictures for each label, manifest.tsv, IDX files, an .npz or "
            "a .csv file. The same as --dataset own --data-dir DATA.",
        ),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder with the data, or to download it to; MNIST_DATA_DIR if not given."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="The run directory to make; runs/DATASET-RECIPE if not given."),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Replace the run in RUN and its export; they are kept until the new run is finished.",
        ),
    ] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on from the newest whole checkpoint of RUN, with its settings; start if there is none. "
            "--checkpoint-every, --tracker, --data and --data-dir may differ.",
        ),
    ] = False,
    checkpoint_every: Annotated[
        int | None,
        typer.Option(metavar="STEPS", min=1, help="Save every STEPS steps, besides after each epoch."),
    ] = None,
    num_processes: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Train in N processes on this machine.")
    ] = None,
    tracker: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            autocompletion=process.among(TRACKERS),
            help=f"Write curves for {', '.join(TRACKERS)} into the run directory.",
        ),
    ] = None,
    **flags: Any,
) -> None:
    """Train the digit classifier.

    On CPU or GPU, in one process or in many, with the same gradients. Leaves a run directory: state_dict,
    settings, metrics, report, checkpoints and pictures; mnist export goes on from there.

    The recipe has the settings that no flag and no --config gives: `notebook` is the tutorial, `fast` reaches
    98 % in seconds, `best` takes minutes for the last points. Ctrl-C or SIGTERM saves and stops; the same
    command with --resume goes on there, in the middle of an epoch.

    `accelerate launch -m trainer.main` is the same program with the same flags, for several machines and
    for accelerate's own configurations.

    Exit codes: 0 done, 1 the system failed, 2 bad usage or bad input, 130 and 143 stopped by Ctrl-C or
    SIGTERM. accelerate turns all but 0 into 1.

    \b
    Examples:
      mnist train --recipe notebook --output runs/notebook
      mnist train --data scans --output runs/scans
      mnist train --recipe best --num-processes 2 --output runs/best
      mnist train --recipe best --num-processes 2 --output runs/best --resume
      mnist train --config runs/best/config.json --seed 1 --output runs/best-1
      accelerate launch -m trainer.main --recipe notebook --output runs/notebook
    """
    if resume and overwrite:
        raise InputError("--resume goes on with a run, --overwrite starts anew: give one of them")
    if tracker is not None and tracker not in TRACKERS:
        close = process.did_you_mean(tracker, TRACKERS)
        raise InputError(f"--tracker is {tracker}, expected one of {', '.join(TRACKERS)}{close}")
    if data is not None:
        if data_dir is not None or flags["dataset"] not in (None, OWN):
            raise InputError("--data names data of your own: leave --data-dir and --dataset out")
        flags["dataset"] = OWN
    settings = merge_settings(config, flags)
    checked = TrainConfig.from_recipe(**{"recipe": DEFAULT_RECIPE, **settings})
    with needs_extra("train"):  # bad flags end before this, without torch
        from trainer.distributed import launch
        from trainer.train import Options
        from trainer.train import train as run_training

        if tracker is not None:
            with needs_extra(tracker):
                __import__(tracker)
        launched = os.environ.get("WORLD_SIZE")
        if num_processes is not None and launched is None:
            raise typer.Exit(launch(num_processes, command_line(context.params)))
        if num_processes is not None and launched != str(num_processes):
            raise InputError(
                f"--num-processes is {num_processes}, but a launcher has started {launched}: leave it out"
            )
        options = Options(
            output=output or Path("runs", f"{checked.dataset}-{checked.recipe}"),
            data_dir=data or data_dir,
            overwrite=overwrite,
            resume=resume,
            checkpoint_every=checkpoint_every,
            tracker=tracker,
        )
        run_training(settings, options)


def merge_settings(config: Path | None, flags: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that were given: flags beat the file, and both beat the recipe.

    Raises:
        InputError: the file cannot be read, or --hidden is not a list of sizes.
    """
    settings = {} if config is None else read_settings(config)
    given = {name: value for name, value in flags.items() if value is not None}
    if "hidden" in given:
        given["hidden"] = parse_hidden(given["hidden"])
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")  # of accelerate launch --mixed_precision
    if precision != "no":
        settings.setdefault("mixed_precision", precision)
    return {**settings, **given}


def command_line(parameters: Mapping[str, Any]) -> list[str]:
    """The flags that `parameters` came from, for the processes that are started."""
    line = []
    for name, value in parameters.items():
        if value is not None and value is not False:
            line += [f"--{name.replace('_', '-')}"] + ([] if value is True else [str(value)])
    return line


def main() -> None:
    """Entry point of `python -m trainer.main`, and so of accelerate launch and torchrun."""
    code = process.run(app, PROGRAM)
    if "LOCAL_RANK" in os.environ:  # gloo's threads outlive the group and can abort an interpreter that ends
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
