"""The command line that tests a model on labelled images: `mnist evaluate`."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from serve_cli.errors import CheckFailed
from serve_cli.process import printable
from serve_cli.spec import BUNDLED_MODEL, Preprocess, floor_of, temperature_of

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

LONGEST_LABEL = 24
"""Characters of a label that a table shows."""

WIDEST_HEADING = 4
"""Characters of a label that fit above a column; where one is longer, columns have the class's number."""

ModelArgument = Annotated[
    Path,
    typer.Argument(
        help="A model file of any format, or the directory of an artifact or run.",
        show_default="the model in the package",
    ),
]


@app.command()
def evaluate(
    data: Annotated[
        Path,
        typer.Option(
            metavar="DATA",
            help="A folder of pictures for each label, manifest.tsv (columns file and label), IDX files, an "
            ".npz or a .csv file.",
        ),
    ],
    model: ModelArgument = BUNDLED_MODEL,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON document.")] = False,
    min_accuracy: Annotated[
        float,
        typer.Option(metavar="P", min=0, max=1, help="Below this (0.98 for 98 %) the exit code is 1."),
    ] = 0.0,
    preprocess: Annotated[
        Preprocess,
        typer.Option(
            help="auto: find and centre the digit; raw: take 28x28 pictures as they are. IDX, NumPy and CSV "
            "files are always taken as they are."
        ),
    ] = Preprocess.AUTO,
) -> None:
    """Test a model on labelled images.

    Prints the accuracy with its 95 % interval, the loss, the calibration error, what 'not sure' below the
    model's own confidence floor costs and brings, precision, recall and F1 of each label, and which labels
    are taken for which. All but that line counts every answer. The loss is that of the logits, as in
    training; the calibration error that of the probabilities, temperature included. Where there is a
    training and a test set, the test set counts.

    A picture that cannot be read ends it and is named: an accuracy of the others would be another one.

    Exit codes: 0 done, 1 below --min-accuracy, 2 bad usage or bad input.

    \b
    Examples:
      mnist evaluate --data scans
      mnist evaluate artifact --data MNIST/raw --min-accuracy 0.98
      mnist evaluate --data train.csv
      mnist evaluate artifact/model.pt2 --data scans/manifest.tsv --json
    """
    import numpy as np

    from serve_cli.datasets import read_test_images
    from serve_cli.engine import open_engine
    from serve_cli.metrics import confidences, risk_coverage, score, selective

    engine = open_engine(model)
    labelled = read_test_images(
        data,
        engine.labels,
        raw=preprocess is Preprocess.RAW,
        learned_from=engine.training.get("dataset_sha256"),
    )
    logits = engine.predict(labelled.images).logits
    if not np.isfinite(logits).all():
        raise CheckFailed(f"{engine.path} answers with numbers that are not finite: export the model again")
    temperature = temperature_of(engine.calibration)
    confidence, hits = confidences(logits / temperature), logits.argmax(axis=1) == labelled.labels
    report = {
        "model": str(engine.path),
        "data": str(labelled.source),
        "preprocess": preprocess.value,
        **score(logits, labelled.labels, engine.labels, temperature),
        "selective": selective(confidence, hits, floor_of(engine.calibration)),
        "risk_coverage": risk_coverage(confidence, hits),
    }
    for line in [json.dumps(report)] if as_json else as_text(report):
        typer.echo(printable(line))
    if report["accuracy"] < min_accuracy:
        raise CheckFailed(
            f"accuracy {report['accuracy']} on {report['samples']:,} images is below "
            f"--min-accuracy {min_accuracy}"
        )


def as_text(report: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of the report for people."""
    low, high = report["accuracy_interval"]
    yield f"model: {report['model']}"
    yield f"data: {report['data']} ({report['samples']:,} images)"
    yield f"accuracy: {report['accuracy']:.2%} (95 % interval {low:.2%} to {high:.2%})"
    yield f"loss: {report['loss']:.4f}"
    yield f"calibration error: {report['calibration_error']:.4f}"
    if report["selective"]["min_confidence"] > 0:
        yield _selective(**report["selective"])
    yield f"macro F1: {report['macro_f1']:.2%}"
    yield ""
    yield from _classes(report["classes"])
    yield ""
    yield from _confusion(report["confusion"], [str(of_class["label"]) for of_class in report["classes"]])


def _selective(min_confidence: float, refused: float, accuracy_answered: float | None) -> str:
    rest = "" if accuracy_answered is None else f"; of the rest {accuracy_answered:.2%} right"
    return f"not sure, below {min_confidence:.1%}: {refused:.2%} of the images{rest}"


def _classes(classes: Sequence[dict[str, Any]]) -> Iterator[str]:
    rows = [
        (
            _short(str(of_class["label"])),
            f"{of_class['support']:,}",
            *(
                f"{of_class[name]:.2%}" if of_class["support"] else "-"
                for name in ("precision", "recall", "f1")
            ),
        )
        for of_class in classes
    ]
    return table([("label", "images", "precision", "recall", "F1"), *rows])


def _confusion(confusion: Sequence[Sequence[int]], labels: Sequence[str]) -> Iterator[str]:
    headings, names = labels, labels
    if max(map(len, labels)) > WIDEST_HEADING:
        headings = [str(number) for number in range(len(labels))]
        names = [f"{number} {_short(label)}" for number, label in enumerate(labels)]
    yield "confusion: a row for each true label, a column for each answer"
    rows = zip(names, confusion, strict=True)
    yield from table([("", *headings), *((name, *(f"{count:,}" for count in row)) for name, row in rows)])


def _short(label: str) -> str:
    return label if len(label) <= LONGEST_LABEL else f"{label[: LONGEST_LABEL - 1]}…"


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table: the first column stands left, the others right, two spaces between."""
    first, *others = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *cells in rows:
        right = (f"  {cell:>{width}}" for cell, width in zip(cells, others, strict=True))
        yield f"{name:<{first}}{''.join(right)}"
