"""scripts/people_report: the counts, the trade and the sheet."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[1] / "scripts" / "people_report"


def report(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SCRIPT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture
def manifest(tmp_path: Path, digit: np.ndarray) -> Path:
    """A 7 that is a 7, one that is said to be a 1, a blank page, and a file that is no picture."""
    for name in ("right.png", "wrong.png"):
        Image.fromarray(digit).save(tmp_path / name)
    Image.new("L", (40, 40), 255).save(tmp_path / "blank.png")
    (tmp_path / "text.png").write_text("no picture")
    path = tmp_path / "manifest.tsv"
    rows = [
        "file\tlabel\tkind",
        "right.png\t7\tgood",
        "wrong.png\t1\tbad",
        "blank.png\t0\tbad",
        "text.png\t0\tbad",
    ]
    path.write_text("\n".join(rows) + "\n")
    return path


def test_every_verdict_is_counted_by_kind(manifest: Path, artifact: Path) -> None:
    found = json.loads(report(manifest, "--model", artifact, "--json").stdout)
    assert found["kinds"] == {
        "good": {"right": 1, "wrong": 0, "not sure": 0, "unreadable": 0},
        "bad": {"right": 0, "wrong": 1, "not sure": 1, "unreadable": 1},
    }
    assert [Path(failure["file"]).name for failure in found["failures"]] == [
        "wrong.png",
        "blank.png",
        "text.png",
    ]


def test_the_table_and_the_sheet(manifest: Path, artifact: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    result = report(manifest, "--model", artifact, "--sheet", sheet)
    assert result.returncode == 0
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["good", "1", "1", "0", "0", "0", "100.0%"] in lines
    assert ["all", "4", "1", "1", "1", "1", "25.0%"] in lines
    assert "3 pictures on" in result.stderr
    with Image.open(sheet) as image:
        assert len(image.convert("L").getcolors() or ()) > 2


def test_what_is_no_manifest_is_refused(tmp_path: Path, artifact: Path) -> None:
    path = tmp_path / "manifest.tsv"
    path.write_text("name\tlabel\n")
    result = report(path, "--model", artifact)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
