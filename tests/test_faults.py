"""The table of faults is whole, and what it names exists; the tests are read, not run."""

import ast
import json
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
ROWS: list[dict[str, Any]] = tomllib.loads((ROOT / "docs" / "faults.toml").read_text(encoding="utf-8"))["row"]
KINDS = {"T": 35, "S": 17, "I": 19, "H": 26, "C": 6}
"""How many faults there are of training, of saved files, of pictures, of HTTP and of the command line."""

by_id = pytest.mark.parametrize("row", ROWS, ids=lambda row: row["id"])


@cache
def names_in(file: str) -> set[str]:
    """The names of the test functions of a file below the root."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_fault_is_there_once_and_in_order() -> None:
    expected = [f"{kind}{number}" for kind, count in KINDS.items() for number in range(1, count + 1)]
    assert [row["id"] for row in ROWS] == expected


@by_id
def test_a_row_says_what_covers_it_or_why_nothing_does(row: dict[str, Any]) -> None:
    assert row.keys() <= {"id", "fault", "expected", "covered", "uncovered", "note"}
    assert ("covered" in row) != ("uncovered" in row)
    assert all(row.values()), "an empty value says nothing"
    assert isinstance(row.get("covered", []), list)
    assert row["fault"]
    assert row["expected"]


@by_id
def test_what_covers_a_row_exists(row: dict[str, Any]) -> None:
    names = row.get("covered", [])
    assert len(set(names)) == len(names)
    for name in names:
        file, _, function = name.partition("::")
        if file.startswith("tests/"):
            assert function.startswith("test_")
            assert function in names_in(file), name
        else:
            assert file.startswith("scripts/")
            assert not function
            assert (ROOT / file).is_file(), name


def faults(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "scripts" / "faults", *map(str, arguments)], capture_output=True, text=True
    )


def test_the_page_is_that_of_its_figures(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    result = faults("--from", ROOT / "docs" / "reliability.json", "--output", page)
    assert result.returncode == 0, result.stderr
    assert page.read_text() == (ROOT / "docs" / "RELIABILITY.md").read_text()


def test_a_campaign_keeps_the_figures_of_the_others_and_tells_what_was_lost(tmp_path: Path) -> None:
    figures = tmp_path / "reliability.json"
    before = json.loads((ROOT / "docs" / "reliability.json").read_text())
    lossy = {**before["stops"], "figures": {**before["stops"]["figures"], "lost": 3}}
    figures.write_text(json.dumps({"stops": lossy}))
    result = faults("--part", "damage", "--quick", "--output", tmp_path / "page.md")
    assert result.returncode == 1, "an earlier campaign lost something"
    after = json.loads(figures.read_text())
    assert after["stops"] == lossy
    assert after["damage"]["figures"]["lost"] == 0
    assert after["damage"]["command"] == "scripts/flip_bits --every 3001"
    page = (tmp_path / "page.md").read_text()
    assert "3 requests lost" in page
    assert "| Stops | 1,000 stops" in page
    assert "Not run." in page
