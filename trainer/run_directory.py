"""The files of a run directory: their names, and how they are written and read."""

import json
from pathlib import Path
from typing import Any

from serve_cli.errors import InputError
from serve_cli.spec import ARTIFACT_FILES, ARTIFACT_FOLDER

CONFIG = "config.json"
METRICS = "metrics.jsonl"
WEIGHTS = "mnist_model.pth"
REPORT = "report.json"
SAMPLES = "samples.png"
LOSSES = "losses.png"

FILES = frozenset(
    {
        CONFIG,
        METRICS,
        WEIGHTS,
        REPORT,
        SAMPLES,
        LOSSES,
        *(f"{ARTIFACT_FOLDER}/{name}" for name in ARTIFACT_FILES),
    }
)
"""All files of a run directory, its export included."""


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write a JSON document that people can read, too."""
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def append_json_line(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON object as a line."""
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(record) + "\n")


def read_report(path: Path) -> dict[str, Any]:
    """Read a run's report.json.

    Raises:
        InputError: missing or not a report.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        dict(report["test"]), report["dataset"]["train_sha256"], report["weights_sha256"]
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not the report of a run ({error}): train again") from error
    return dict(report)
