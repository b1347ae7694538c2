"""scripts/coverage: what it makes of coverage's report. What it measures is not measured here."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

SCRIPT = runpy.run_path(str(Path(__file__).parents[1] / "scripts" / "coverage"))


def found(lines: int, branches: int) -> dict[str, Any]:
    """A file of 100 statements and 50 branches, of which so many were run."""
    return {
        "summary": {
            "num_statements": 100,
            "covered_lines": lines,
            "num_branches": 50,
            "covered_branches": branches,
        },
        "missing_lines": [8],
        "missing_branches": [[7, 8], [9, -3], [11, 12]],
    }


def test_both_halves_reach_their_floors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quality = tmp_path / "quality.json"
    quality.write_text('{"mutation": 1}')
    files = {
        "serve_cli/http/work.py": found(95, 48),
        "trainer/run.py": found(100, 50),
        "export/a.py": found(80, 41),
    }
    assert SCRIPT["judge"](files, quality)
    assert json.loads(quality.read_text()) == {
        "mutation": 1,
        "coverage": {
            "serve_cli": {"branches": 96.0, "statements": 95.0, "floor": 95},
            "trainer, export": {"branches": 91.0, "statements": 90.0, "floor": 90},
        },
    }
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "serve_cli/http/work.py: 8, 9->end, 11->12"
    assert lines[-1] == "trainer, export: branches 91.0 %, statements 90.0 %, floor 90 %"
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(("lines", "branches"), [(94, 50), (100, 47)])
def test_statements_or_branches_below_the_floor(lines: int, branches: int, tmp_path: Path) -> None:
    files = {"serve_cli/app.py": found(lines, branches), "trainer/run.py": found(100, 50)}
    assert not SCRIPT["judge"](files, tmp_path / "quality.json")


def test_a_share_is_rounded_down() -> None:
    assert (
        SCRIPT["percent"]([{"part": 9499, "whole": 10_000}, {"part": 500, "whole": 526}], "part", "whole")
        == 94.9
    )
    assert SCRIPT["percent"]([{"part": 949_999, "whole": 1_000_000}], "part", "whole") == 94.9
