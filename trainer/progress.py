"""The progress bar of a training run: on stderr, and only where somebody can watch it."""

import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def progress_bar(*, speaks: bool) -> Progress:
    """A bar that advances by images; silent unless `speaks` and stderr is a terminal."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("images"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),  # else rich would send our results to stderr
        disable=not (speaks and console.is_terminal),
    )
