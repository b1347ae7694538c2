"""The process edge: from exceptions to one line on stderr and an exit code."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

from serve_cli.errors import MnistError

if TYPE_CHECKING:
    import typer

INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM
"""Exit codes after Ctrl-C and kill, as shells have them."""

HELP = ["-h", "--help"]

MAIN_PROCESS_FIRST_S = 5.0
"""How long the others of a group stay after an error that the main process reports: a launcher ends all of
them as soon as one has failed, and the main process could be ended before it has said why."""


def is_main_process() -> bool:
    """Whether this is the only process, or rank 0 of a group that a launcher has started."""
    return os.environ.get("RANK", "0") == "0"


def printable(text: str) -> str:
    """`text` as one line: line breaks and control characters are escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def warn(program: str, message: str, *, on_main_process_only: bool = True) -> None:
    """Print `message` on stderr as one line; of a launched group, in the main process unless told otherwise.

    Where standard error fails, the exit code alone says it.
    """
    if is_main_process() or not on_main_process_only:
        try:
            print(f"{program}: {printable(message)}", file=sys.stderr)  # noqa: T201
        except OSError:
            discard(sys.stderr)


def print_result(line: str) -> None:
    """Print a result of long work at once; when standard output fails, the work goes on without it."""
    try:
        print(line, flush=True)  # noqa: T201
    except OSError as error:
        discard(sys.stdout)
        warn("mnist", f"standard output is lost ({error.strerror}), the work goes on")


def discard(stream: IO[str]) -> None:
    """Send what a standard stream still holds nowhere, so that it cannot fail again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def open_missing_streams() -> None:
    """Put /dev/null where a daemon or a script has closed a standard stream."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115


@contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block as an exception does, so that nothing half-made is left."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def did_you_mean(word: str, names: Sequence[str]) -> str:
    """The end of a message about an unknown `word`: the closest of `names`, or nothing."""
    import difflib  # 10 ms, which `mnist infer` does not have

    close = difflib.get_close_matches(word, names, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def among(names: Sequence[str]) -> Callable[[str], list[str]]:
    """What completes a word in a shell to one of `names`: the `autocompletion` of a typer option."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return complete


def run(app: "typer.Typer", program: str, arguments: Sequence[str] | None = None) -> int:
    """Run a typer app and return its exit code; errors become one line on stderr.

    `arguments` defaults to the process's own.
    """
    return guard(program, lambda: _call(app, program, arguments))


def _call(app: "typer.Typer", program: str, arguments: Sequence[str] | None) -> int:
    import typer  # 50 ms, which `mnist infer` does not have

    try:
        return int(app(arguments, prog_name=program, standalone_mode=False, help_option_names=HELP) or 0)
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)  # an option without its value has none
        program = context.command_path if context else " ".join((program, *(arguments or ())[:1]))
        warn(program, f"{error.format_message()} (see {program} --help)")
        return error.exit_code
    except typer.Abort:
        return INTERRUPTED


def guard(program: str, command: Callable[[], int]) -> int:
    """Run `command` and return its exit code; errors become one line on stderr."""
    open_missing_streams()
    try:
        exit_code = command()
        sys.stdout.flush()
    except MnistError as error:
        warn(program, str(error), on_main_process_only=error.on_main_process_only)
        if error.on_main_process_only and not is_main_process():
            time.sleep(MAIN_PROCESS_FIRST_S)
        return error.exit_code
    except OSError as error:  # a disk that is full, a reader of our output that has gone
        discard(sys.stdout)
        if not isinstance(error, BrokenPipeError):
            warn(program, str(error) if error.filename else f"standard output: {error.strerror or error}")
        return 1
    except KeyboardInterrupt:
        exit_code = INTERRUPTED
    if exit_code == INTERRUPTED:  # typer returns this code for a KeyboardInterrupt that it caught
        with suppress(KeyboardInterrupt):  # of somebody who cannot wait
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the end is near, it shall be an orderly one
            warn(program, "interrupted")
    return exit_code
