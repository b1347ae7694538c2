"""The command line that reads digits: `mnist infer`.

It is parsed by argparse: typer and what it imports would take as long to start as onnxruntime does.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from serve_cli import process
from serve_cli.answer import Answer, header
from serve_cli.errors import InputError, NotSure
from serve_cli.infer import answers, find_sources
from serve_cli.model_file import find_model
from serve_cli.picture import SUFFIXES
from serve_cli.runtime import Predictor
from serve_cli.spec import BUNDLED_MODEL, CLASSES, Preprocess, floor_of

PROGRAM = "mnist infer"

Batches = Generator[list[Answer | InputError]]

ABOUT = """Read the digit in each picture.

For pictures that people drew, scanned or photographed, of any size, colour
and polarity: the digit is found, cropped, scaled and centred as MNIST does it.
Answers go to stdout, in order, as they are known. A bad file gives a line on
stderr and does not stop the others."""

ENDING = """In a folder only files with a picture's extension are read, and hidden ones are
skipped; the numbers of the others are on stderr. A CSV, NumPy or IDX file gives
an answer a row. With --csv and one CSV file without labels the table is a
Kaggle submission, ImageId and Label. Percentages are rounded, --json and --csv
are not. Names that begin with - go after --.

Exit codes: 0 all were read, 1 the output or a worker failed, 2 bad usage or a
bad file, 3 not sure of a picture and no file was bad, 130 interrupted.

Examples:
  mnist infer digit.png
  mnist infer scans --json > answers.jsonl
  mnist infer test.csv --csv > submission.csv
  mnist infer digit.png --model artifact --top-k 3 --show"""


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
    is_submission = options.csv and _is_unlabelled_csv(options.images)
    tell = _teller(options, predictor.contract.labels, is_submission=is_submission)
    exit_code = unsure = 0
    sources, notes = find_sources(options.images)
    save = _saver(options, len(sources))
    found = answers(predictor, sources, raw=raw, floor=floor)
    with closing(found), closing(_watched(found, len(sources))) as batches:
        for batch in batches:
            for answer in batch:
                try:
                    if isinstance(answer, InputError):
                        raise answer
                    tell(answer)
                    save(answer)
                    unsure += answer.label is None
                except InputError as error:
                    process.warn(PROGRAM, str(error))
                    exit_code = error.exit_code
            sys.stdout.flush()
    for note in notes:
        process.warn(PROGRAM, note)
    if is_submission and unsure:
        process.warn(
            PROGRAM,
            f"{options.images[0]}: not sure of {unsure:,} of {len(sources):,} rows (confidence below "
            f"{floor:.1%}, or no single digit); the table has their best guess",
        )
    elif unsure:
        exit_code = exit_code or NotSure.exit_code
    return exit_code


def _is_unlabelled_csv(names: Sequence[str]) -> bool:
    """Whether the only name is a CSV file of images without labels, such as Kaggle's test.csv."""
    if len(names) != 1 or Path(names[0]).suffix.lower() in SUFFIXES:
        return False
    from serve_cli.datasets import is_unlabelled_csv

    return is_unlabelled_csv(Path(names[0]))


def _teller(
    options: argparse.Namespace, labels: Sequence[int | str], *, is_submission: bool
) -> Callable[[Answer], object]:
    """What prints an answer in the form that was asked for."""
    if options.json:
        return lambda answer: sys.stdout.write(json.dumps(answer.to_dict(options.top_k)) + "\n")
    if options.csv:
        import csv

        table = csv.writer(sys.stdout, lineterminator="\n")
        if is_submission:
            table.writerow(("ImageId", "Label"))
            rows = itertools.count(1)
            return lambda answer: table.writerow((next(rows), answer.best_guess))
        table.writerow(_cells(header(labels)))
        return lambda answer: table.writerow(_cells(answer.to_row()))
    if options.show:
        from serve_cli.seen import draw, has_colours

        colours = has_colours()
        return lambda answer: sys.stdout.write(
            f"{process.printable(answer.to_text(options.top_k))}\n"
            f"{draw(answer.picture.pixels, colours=colours)}\n"
        )
    return lambda answer: sys.stdout.write(process.printable(answer.to_text(options.top_k)) + "\n")


def _cells(row: Sequence[object]) -> list[object]:
    """A row whose names are one line each: a table is for people's terminals and tools, too."""
    return [process.printable(cell) if isinstance(cell, str) else cell for cell in row]


def _saver(options: argparse.Namespace, total: int) -> Callable[[Answer], object]:
    """What saves the picture of an answer where it was asked for."""
    if options.save_input is None:
        return lambda answer: None
    from serve_cli.seen import Saver

    several = total > 1 or Path(options.images[0]).is_dir()
    saver = Saver(options.save_input, options.images, several=several)
    return lambda answer: saver.save(answer.picture.pixels, answer.file)


def _watched(batches: Batches, total: int) -> Batches:
    """The batches; a line on stderr says how far they are, where somebody sees that and not the answers."""
    if not sys.stderr.isatty() or sys.stdout.isatty():
        return batches
    from serve_cli.progress import watched

    return watched(batches, total)


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


class Word(NamedTuple):
    """What may stand next on the command line, for the completion of a shell."""

    value: str
    help: str | None


def completions(arguments: Sequence[str], incomplete: str) -> list[Word]:
    """The words that begin with `incomplete` and may follow `arguments`; none where a file is to be named."""
    options: dict[str, argparse.Action] = _parser()._option_string_actions
    before = options.get(arguments[-1]) if arguments else None
    if before is not None and before.nargs != 0:
        words = [Word(str(choice), None) for choice in before.choices or ()]
    elif incomplete.startswith("-"):
        words = [Word(name, action.help) for name, action in options.items()]
    else:
        words = []
    return [word for word in words if word.value.startswith(incomplete)]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options: images, model, json, csv, show, top_k, preprocess, save_input, min_confidence.

    Raises:
        InputError: bad usage.
    """
    parser = _parser()
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser.parse_intermixed_args(arguments[:end])
    options.images += arguments[end + 1 :]  # argparse would take those that begin with - for options
    if not options.images:
        parser.error("no picture is named")
    if options.csv and options.top_k > 1:
        parser.error("--csv has the probability of every label: leave --top-k out")
    return options


def _parser() -> Parser:
    parser = Parser(
        prog=PROGRAM,
        usage=f"{PROGRAM} [OPTIONS] IMAGE...",
        description=ABOUT,
        epilog=ENDING,
        formatter_class=Help,
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument_group("Arguments").add_argument(
        "images",
        metavar="IMAGE...",
        nargs="*",
        help="Pictures, folders of them, tables of them (.csv, .npz, .npy, IDX), or - for standard input.",
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
        "--top-k",
        type=_rank,
        default=1,
        metavar="N",
        help="How many labels to print, best first (1 to 10); --csv has all.",
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
    return parser


def _rank(text: str) -> int:
    if text.isdecimal() and 1 <= int(text) <= CLASSES:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {CLASSES}")


def _share(text: str) -> float:
    with suppress(ValueError):
        if 0 <= float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
