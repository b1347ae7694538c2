"""What can go wrong, and the exit code that says so.

MnistError
├── CheckFailed     1  a check did not hold: parity, accuracy
├── InputError      2  bad usage or bad input
│   └── MissingExtra   a command needs a part that is not installed
└── NotSure         3  the model has no answer that it stands by
"""

from collections.abc import Iterator
from contextlib import contextmanager

OWN_PACKAGES = frozenset({"trainer", "export", "serve_cli"})


class MnistError(Exception):
    """Base of all errors that users see as one line; `exit_code` is the command's.

    Of a group of training processes the main one reports an error that all of them raise.
    """

    exit_code = 1
    on_main_process_only = True


class CheckFailed(MnistError):
    """A check that was asked for did not hold; nothing was published."""


class InputError(MnistError):
    """Bad usage or bad input: the message says what, where and what to do."""

    exit_code = 2


class MissingExtra(InputError):
    """A command was called whose optional dependencies are not installed."""


class NotSure(MnistError):
    """At least one picture got no answer: blank, or below the confidence floor."""

    exit_code = 3


@contextmanager
def needs_extra(extra: str, what: str = "this command") -> Iterator[None]:
    """Turn a failing import inside the block into the pip command that mends it; `what` needs the extra.

    Raises:
        MissingExtra: a module that is not ours could not be found.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "a module").partition(".")[0]
        if missing in OWN_PACKAGES:
            raise
        raise MissingExtra(
            f"{what} needs the extra {extra!r}, which is not installed ({missing} is missing): "
            f"pip install 'mnist-toolkit[{extra}]', or in a clone pip install '.[{extra}]'"
        ) from error
