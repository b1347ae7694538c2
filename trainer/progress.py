"""The progress bar of a training run: on stderr, and only where somebody can watch it."""

import sys

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


class Speed(ProgressColumn):
    """Images a second."""

    def render(self, task: Task) -> Text:
        """The speed of the last moments, once there is one."""
        return Text("" if task.speed is None else f"{task.speed:,.0f} images/s")


def progress_bar(*, speaks: bool) -> Progress:
    """A bar that advances by images, with a field `loss`; silent unless `speaks` and stderr is a terminal."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        Speed(),
        TextColumn("{task.fields[loss]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),  # else rich would send our results to stderr
        disable=not (speaks and console.is_terminal),
    )
