"""The `mnist` command: the shortest way to the code that was asked for.

`mnist infer` does not pass through typer as the others do: to start, typer takes as long as onnxruntime.
"""

import gc
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence

INTERRUPTED = 128 + signal.SIGINT


def main() -> None:
    """Entry point of the console script."""
    arguments = sys.argv[1:]
    interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not so with nohup
    if interruptible:  # until there is something to tidy up: an import cannot be left by an exception
        signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that the terminal's encoding has not
    command = find(arguments)
    if interruptible:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    exit_code = command()
    if arguments[:1] in (["infer"], ["train"]):
        os._exit(exit_code)  # all is printed; taking numpy and onnxruntime apart needs 20 ms, torch 0.3 s
    sys.exit(exit_code)


def find(arguments: Sequence[str]) -> Callable[[], int]:
    """Import what `arguments` ask for; what comes back runs it and returns the exit code."""
    if arguments[:1] == ["infer"]:
        gc.disable()  # importing leaves no garbage, to look for it takes 6 ms
        from serve_cli import infer_main

        gc.freeze()  # now and in the workers what is imported is not looked at again
        gc.enable()
        return lambda: infer_main.run(arguments[1:])
    from serve_cli import commands, process

    if "_MNIST_COMPLETE" in os.environ:  # typer folds help to this width, and shells take a line for a word
        os.environ["COLUMNS"] = "1000"
    return lambda: process.run(commands.app, "mnist", arguments)


if __name__ == "__main__":
    main()
