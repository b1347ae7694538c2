"""The command line of a training run: `accelerate launch -m trainer.main` and `mnist train` alike."""

import contextlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from serve_cli import process
from serve_cli.errors import InputError, needs_extra
from serve_cli.process import among
from trainer.config import (
    DATASETS,
    DEFAULT_RECIPE,
    OPTIMIZERS,
    PRECISIONS,
    RECIPES,
    SCHEDULES,
    TrainConfig,
    parse_hidden,
)

TRACKERS = ("tensorboard",)

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def train(
    context: typer.Context,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            autocompletion=among(tuple(RECIPES)),
            help=f"Named settings, which the other flags override: {', '.join(RECIPES)}; "
            f"{DEFAULT_RECIPE} if not given.",
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            autocompletion=among(DATASETS),
            help=f"What to learn: {', '.join(DATASETS)}; mnist if not given.",
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
            help="Replace the run that stands there; RUN/.replaced keeps it until this one is finished.",
        ),
    ] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on from the newest whole checkpoint of RUN, with its settings (--checkpoint-every, "
            "--tracker and --data-dir are none of them); start it if there is none.",
        ),
    ] = False,
    checkpoint_every: Annotated[
        int | None,
        typer.Option(metavar="STEPS", min=1, help="Save every so many steps, besides after each epoch."),
    ] = None,
    num_processes: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Train in so many processes on this machine.")
    ] = None,
    tracker: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            autocompletion=among(TRACKERS),
            help=f"Write curves for {', '.join(TRACKERS)} into the run directory.",
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(metavar="N", help="Passes over the training set.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(metavar="N", help="Images a step, over all processes together.")
    ] = None,
    accumulate: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Parts that each process computes its share of a batch in, to save memory."
        ),
    ] = None,
    optimizer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            autocompletion=among(OPTIMIZERS),
            help=f"What takes the steps: {', '.join(OPTIMIZERS)}.",
        ),
    ] = None,
    lr: Annotated[
        float | None, typer.Option(metavar="X", help="Learning rate; the peak of one-cycle.")
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option(metavar="X", help="Decoupled weight decay, as in AdamW.")
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            autocompletion=among(SCHEDULES),
            help=f"Of the learning rate: {', '.join(SCHEDULES)}.",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Of weights, sample order, distortions and strangers.")
    ] = None,
    hidden: Annotated[
        str | None, typer.Option(metavar="SIZES", help="Hidden layers, such as 128,64.")
    ] = None,
    distortion: Annotated[
        float | None,
        typer.Option(metavar="X", help="Strength of random distortions: 0 for none, 1 as people's pens."),
    ] = None,
    strangers: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Part of each batch that is made no digit, up to 0.5, to learn when to be unsure.",
        ),
    ] = None,
    mixed_precision: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            autocompletion=among(PRECISIONS),
            help=f"Precision of the products: {', '.join(PRECISIONS)}.",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(metavar="N", help="CPU threads a process; another number rounds differently."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", help="Use only the first N images, for a quick try.")
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Stop after so many epochs without a lower validation loss, with the best weights; needs "
            "--validation-fraction above 0.",
        ),
    ] = None,
    validation_fraction: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Part of the training set to validate on, up to 0.5; 0: the test set, as in the tutorial.",
        ),
    ] = None,
    mean: Annotated[float | None, typer.Option(metavar="X", help="Subtracted from pixels (0 to 1).")] = None,
    std: Annotated[float | None, typer.Option(metavar="X", help="What pixels are then divided by.")] = None,
) -> None:
    """Train the digit classifier.

    On CPU or GPU, in one process or in many, with the same gradients.

    Leaves a run directory with the state_dict, the settings, the metrics, checkpoints and pictures. What a
    flag does not set comes from the recipe: `notebook` is the tutorial, faithfully; `fast` reaches 98 % in
    seconds; `best` takes minutes for the last points. Ctrl-C or SIGTERM saves and stops; the same command
    with --resume goes on there, in the middle of an epoch.

    `accelerate launch -m trainer.main` is the same program with the same flags, for several machines and
    for accelerate's own configurations.

    Exit codes: 0 done, 1 the system failed, 2 bad usage or bad input, 130 and 143 stopped by Ctrl-C or
    SIGTERM. accelerate turns all but 0 into 1.

    \b
    Examples:
      mnist train --recipe notebook --output runs/notebook
      mnist train --recipe best --num-processes 2 --output runs/best
      mnist train --recipe best --num-processes 2 --output runs/best --resume
      accelerate launch -m trainer.main --recipe notebook --output runs/notebook
    """
    if resume and overwrite:
        raise InputError("--resume goes on with a run, --overwrite starts anew: give one of them")
    if tracker is not None and tracker not in TRACKERS:
        raise InputError(f"--tracker is {tracker}, expected one of {', '.join(TRACKERS)}")
    flags: dict[str, Any] = {
        "dataset": dataset,
        "epochs": epochs,
        "batch_size": batch_size,
        "accumulate": accumulate,
        "optimizer": optimizer,
        "lr": lr,
        "weight_decay": weight_decay,
        "schedule": schedule,
        "seed": seed,
        "hidden": None if hidden is None else parse_hidden(hidden),
        "distortion": distortion,
        "strangers": strangers,
        "mixed_precision": mixed_precision or precision_of_launcher(),
        "threads": threads,
        "limit": limit,
        "patience": patience,
        "validation_fraction": validation_fraction,
        "mean": mean,
        "std": std,
    }
    config = TrainConfig.from_recipe(recipe or DEFAULT_RECIPE, **flags)  # bad flags end here, without torch
    with needs_extra("train"):
        from trainer.processes import launch
        from trainer.run import Order, run

        launched = os.environ.get("WORLD_SIZE")
        if num_processes is not None and launched is None:
            raise typer.Exit(launch(num_processes, command_line(context.params)))
        if num_processes is not None and launched != str(num_processes):
            raise InputError(
                f"--num-processes is {num_processes}, but a launcher has started {launched}: leave it out"
            )
        order = Order(
            output=output or Path("runs", f"{config.dataset}-{config.recipe}"),
            data_dir=data_dir,
            overwrite=overwrite,
            resume=resume,
            checkpoint_every=checkpoint_every,
            tracker=tracker,
        )
        run(recipe, flags, order)


def precision_of_launcher() -> str | None:
    """What `accelerate launch --mixed_precision` was asked for, unless nothing."""
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    return None if precision == "no" else precision


def command_line(parameters: Mapping[str, Any]) -> list[str]:
    """The flags that `parameters` came from, for the processes that are started."""
    line = []
    for name, value in parameters.items():
        if value is not None and value is not False:
            line += [f"--{name.replace('_', '-')}"] + ([] if value is True else [str(value)])
    return line


def main() -> None:
    """Entry point of `python -m trainer.main`, and so of accelerate launch and torchrun."""
    code = process.run(app, process.LAUNCHED)
    if "LOCAL_RANK" in os.environ:  # gloo's threads outlive the group and can abort an interpreter that ends
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
