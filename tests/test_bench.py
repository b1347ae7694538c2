"""scripts/bench: its page is its figures, and what lost, failed or was left out stands there too."""

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "bench"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    """What the script defines."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPT.parent)
        return runpy.run_path(str(SCRIPT))


def bench(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, timeout=300
    )


def values(ours: list[float | None], theirs: list[float | None], **more: Any) -> dict[str, Any]:
    common = {"what": "seconds", "form": ".1f", "ours": "ours", "theirs": "theirs"}
    return {**common, "our_values": ours, "their_values": theirs, **more}


def test_the_committed_page_is_its_figures(script: dict[str, Any]) -> None:
    figures = ROOT / "docs" / "benchmarks.json"
    assert (ROOT / "docs" / "BENCHMARKS.md").read_text() == script["page"](script["read"](figures))


@pytest.mark.parametrize(
    ("ours", "theirs", "more_is_better", "ratio", "verdict"),
    [
        ([1.0, 2.0, 3.0], [4.0, 5.0, 6.0], False, 2.5, "better"),
        ([1.0, 2.0, 3.0], [4.0, 5.0, 6.0], True, 0.4, "worse"),
        ([1.0, 2.0, 5.0], [4.0, 5.0, 6.0], False, 2.5, "better, ranges overlap"),
        ([1.0], [1.04], False, 1.04, "equal"),
        ([1.06], [1.0], False, 1 / 1.06, "worse"),
        ([0.0], [0.0], False, 1.0, "equal"),
        ([0.0], [3.0], False, float("inf"), "better"),
        ([3.0], [0.0], False, 0.0, "worse"),
        ([0.0], [3.0], True, 0.0, "worse"),
        ([3.0], [0.0], True, float("inf"), "better"),
        ([5.0], [None], False, float("inf"), "better"),
        ([None, None, 5.0], [7.0, 7.0, 7.0], False, 0.0, "worse, ranges overlap"),
        ([None], [None], False, 1.0, "equal"),
    ],
)
def test_verdicts(
    script: dict[str, Any],
    ours: list[float | None],
    theirs: list[float | None],
    more_is_better: bool,
    ratio: float,
    verdict: str,
) -> None:
    comparison = script["Comparison"](**values(ours, theirs, more_is_better=more_is_better))
    assert comparison.ratio() == pytest.approx(ratio)
    assert comparison.verdict() == verdict


def test_a_row_says_in_how_many_rounds_it_got_there(script: dict[str, Any]) -> None:
    comparison = script["Comparison"](**values([2.0, 3.0, None], [None, None, None]))
    cells = ["seconds", "ours", "2.5 (2.0 to 3.0) in 2 of 3 rounds", "theirs", "not reached", "-"]
    assert comparison.row() == [*cells, "better, ranges overlap"]


def test_a_page_hides_nothing(script: dict[str, Any]) -> None:
    part = {"command": "scripts/bench_x --rounds 1", "seconds": 60.0}
    worse = {"comparisons": [values([2.0], [1.0]), values([1.0], [1.0])], "rounds": 3}
    page = script["page"](
        {
            "command": "scripts/bench",
            "machine": {
                "cpu": "A processor",
                "cores": 2,
                "governor": None,
                "memory_bytes": 24 * 2**30,
                "system": "Linux 1",
                "load": 0.1,
            },
            "versions": {"python": "3.11"},
            "peers": {"optimum": "not there: tried, does not import: broken"},
            "date": "2026-01-02",
            "commit": "0123abc-dirty",
            "is_quick": True,
            "seconds": 600.0,
            "parts": {
                "training": {**part, "report": worse},
                "export": {**part, "failed": "exit code 1"},
                "people": {"skipped": "no pictures were given"},
            },
        }
    )
    lines = page.splitlines()
    for line in (
        "- Machine: A processor, 2 cores, governor not known, 24 GiB of memory, Linux 1, "
        "load 0.1 at the start; no GPU was used",
        "- Peers: optimum: not there: tried, does not import: broken",
        "- 2026-01-02, commit 0123abc-dirty, 10 minutes in all",
        "| training | 0 | 1 | 1 |",
        "| seconds | ours | 2.0 | theirs | 1.0 | 0.50 | worse |",
        "| seconds | ours | 1.0 | theirs | 1.0 | 1.00 | equal |",
        "This part failed: exit code 1.",
        "Not measured: no pictures were given.",
        "Not measured: this run was of other parts.",
    ):
        assert line in lines
    assert "Its figures mean nothing" in page


def test_a_part_for_real(script: dict[str, Any], tmp_path: Path, digit: np.ndarray) -> None:
    Image.fromarray(digit).save(tmp_path / "7.png")
    manifest, output = tmp_path / "manifest.tsv", tmp_path / "PAGE.md"
    manifest.write_text("file\tlabel\n7.png\t7\n")
    options = ("--quick", "--part", "people", "--output", output)
    done = bench(*options, "--people", manifest)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    text = (tmp_path / "benchmarks.json").read_text()
    assert str(tmp_path) not in text
    assert json.loads(text)["parts"].keys() == {"people"}
    first = output.read_text()
    assert "| people | 0 | 4 | 0 |" in first.splitlines()
    assert bench("--from", tmp_path / "benchmarks.json", "--output", tmp_path / "again.md").returncode == 0
    assert (tmp_path / "again.md").read_text() == first
    manifest.write_text("file\n7.png\n")
    done = bench(*options, "--people", manifest)
    assert done.returncode == 1
    assert "file and label" in done.stderr
    assert "This part failed: exit code 1." in output.read_text()
    assert bench(*options).returncode == 0
    assert "no pictures were given" in output.read_text()


@pytest.mark.parametrize("content", [None, "no JSON", "{}"])
def test_figures_that_are_none_are_one_line(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "figures.json"
    if content is not None:
        path.write_text(content)
    done = bench("--from", path, "--output", tmp_path / "PAGE.md")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "figures.json" in line
    assert not (tmp_path / "PAGE.md").exists()


def test_pictures_that_are_not_there_are_one_line(tmp_path: Path) -> None:
    done = bench("--people", tmp_path / "nowhere.tsv", "--output", tmp_path / "PAGE.md")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "nowhere.tsv" in line


def test_every_part_has_its_meaning_and_a_script(script: dict[str, Any]) -> None:
    assert script["COMMANDS"].keys() == script["QUICK"].keys() == script["MEANING"].keys()
    for commands in (script["COMMANDS"], script["QUICK"]):
        for command in commands.values():
            assert (ROOT / "scripts" / command[0]).is_file()
