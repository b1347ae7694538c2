"""The command line that reads digits: `mnist infer`.

It is parsed by argparse: typer and what it imports would take as long to start as onnxruntime does.
"""

import argparse
import json
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NoReturn

from serve_cli import process
from serve_cli.answer import Answer, header
from serve_cli.errors import InputError, NotSure
from serve_cli.infer import answers, count
from serve_cli.model_file import find_model
from serve_cli.runtime import Predictor
from serve_cli.spec import BUNDLED_MODEL, CLASSES, Preprocess, floor_of

PROGRAM = "mnist infer"

Batches = Generator[list[Answer | InputError]]

ABOUT = """Read the digit in each picture.

Any size, colour and polarity: the digit is cropped, scaled and centred as MNIST does it. A bad file
does not stop the others; the exit code says that there was one."""

EXAMPLE = "Example: mnist infer digit.png --model artifact --top-k 3"


def run(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code; errors become one line on stderr."""
    return process.guard(PROGRAM, lambda: _answered(arguments))


def _answered(arguments: Sequence[str]) -> int:
    try:
        options = parse(arguments)
    except SystemExit:  # so argparse ends after --help
        return 0
    return infer(options)


def infer(options: argparse.Namespace) -> int:
    """Answer all pictures, see `parse`; returns the exit code.

    Raises:
        MnistError: no model that can be used, or a worker was killed.
    """
    predictor = Predictor(find_model(options.model))
    floor = options.min_confidence
    if floor is None:
        floor = floor_of(predictor.contract.calibration)
    raw = options.preprocess == Preprocess.RAW
    save = _saver(options)
    tell = _teller(options, predictor.contract.labels)
    exit_code = 0
    found = answers(predictor, options.images, raw=raw, floor=floor)
    with closing(found), closing(_watched(found, options.images)) as batches:
        for batch in batches:
            for answer in batch:
                try:
                    if isinstance(answer, InputError):
                        raise answer
                    tell(answer)
                    save(answer)
                    if answer.label is None:
                        exit_code = exit_code or NotSure.exit_code
                except InputError as error:
                    process.complain(PROGRAM, str(error))
                    exit_code = error.exit_code
            sys.stdout.flush()
    return exit_code


def _teller(options: argparse.Namespace, labels: Sequence[int | str]) -> Callable[[Answer], object]:
    """What prints an answer in the form that was asked for."""
    if options.json:
        return lambda answer: sys.stdout.write(json.dumps(answer.to_dict(options.top_k)) + "\n")
    if options.csv:
        import csv

        table = csv.writer(sys.stdout, lineterminator="\n")
        table.writerow(header(labels))
        return lambda answer: table.writerow(answer.to_row())
    if options.show:
        from serve_cli.seen import draw, has_colours

        colours = has_colours()
        return lambda answer: sys.stdout.write(
            f"{process.printable(answer.to_text(options.top_k))}\n"
            f"{draw(answer.picture.pixels, colours=colours)}\n"
        )
    return lambda answer: sys.stdout.write(process.printable(answer.to_text(options.top_k)) + "\n")


def _saver(options: argparse.Namespace) -> Callable[[Answer], object]:
    """What saves the picture of an answer where it was asked for."""
    if options.save_input is None:
        return lambda answer: None
    from serve_cli.seen import Saver

    saver = Saver(options.save_input, options.images)
    return lambda answer: saver.save(answer.picture.pixels, answer.file)


def _watched(batches: Batches, names: Sequence[str]) -> Batches:
    """The batches; a line on stderr says how far they are, where somebody sees that and not the answers."""
    if not sys.stderr.isatty() or sys.stdout.isatty():
        return batches
    from serve_cli.progress import watched

    return watched(batches, count(names))


# The options


class Help(argparse.RawDescriptionHelpFormatter):
    """Help that looks like that of the other commands."""

    def add_usage(self, usage: Any, actions: Any, groups: Any, prefix: str | None = "Usage: ") -> None:
        """Begin with a capital."""
        super().add_usage(usage, actions, groups, prefix)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are ours."""

    def error(self, message: str) -> NoReturn:
        """Refuse what was typed."""
        raise InputError(f"{message} (see {self.prog} --help)")

    def print_help(self, file: object = None) -> None:
        """Print the help; argparse itself passes over a full disk."""
        sys.stdout.write(self.format_help())


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options: images, model, json, csv, show, top_k, preprocess, save_input, min_confidence.

    Raises:
        InputError: bad usage.
    """
    parser = Parser(
        prog=PROGRAM,
        usage=f"{PROGRAM} [OPTIONS] IMAGE...",
        description=ABOUT,
        epilog=EXAMPLE,
        formatter_class=Help,
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument_group("Arguments").add_argument(
        "images", metavar="IMAGE...", nargs="*", help="Pictures, folders of them, or - for standard input."
    )
    group = parser.add_argument_group("Options")
    group.add_argument(
        *("-m", "--model"),
        type=Path,
        default=BUNDLED_MODEL,
        metavar="M",
        help="An .onnx file, or the directory of an artifact or run; else the model that the package has.",
    )
    forms = group.add_mutually_exclusive_group()
    forms.add_argument("--json", action="store_true", help="Print a JSON object a picture, one a line.")
    forms.add_argument("--csv", action="store_true", help="Print a table, a row a picture.")
    forms.add_argument("--show", action="store_true", help="Draw, below each answer, what the net saw.")
    group.add_argument(
        "--top-k", type=_rank, default=1, metavar="N", help="How many labels to print, best first (1 to 10)."
    )
    group.add_argument(
        "--preprocess",
        metavar="WAY",
        choices=[way.value for way in Preprocess],
        default=Preprocess.AUTO.value,
        help="auto (default): find and centre the digit; raw: take a 28x28 picture as it is.",
    )
    group.add_argument(
        "--save-input",
        metavar="OUT",
        help="Save what the net saw as OUT, a PNG file, or of several pictures in OUT/, a folder.",
    )
    group.add_argument(
        "--min-confidence",
        type=_share,
        metavar="P",
        help="Below this, 0 to 1, the answer is 'not sure', exit code 3; else the model's own limit.",
    )
    group.add_argument("-h", "--help", action="help", help="Show this message and exit.")
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser.parse_intermixed_args(arguments[:end])
    options.images += arguments[end + 1 :]  # argparse would take those that begin with - for options
    if not options.images:
        parser.error("no picture is named")
    return options


def _rank(text: str) -> int:
    if text.isdecimal() and 1 <= int(text) <= CLASSES:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {CLASSES}")


def _share(text: str) -> float:
    with suppress(ValueError):
        if 0 <= float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
