"""scripts/bench_people on a few pictures."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[1] / "scripts" / "bench_people"


def bench(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, timeout=120
    )


@pytest.fixture
def manifest(tmp_path: Path, digit: np.ndarray) -> Path:
    """A 7, its negative, both large and far too low on the page, and a file that is no picture."""
    Image.fromarray(digit).save(tmp_path / "plain.png")
    Image.fromarray(255 - digit).save(tmp_path / "negative.png")
    page = Image.new("L", (400, 800), 255)
    page.paste(Image.fromarray(255 - digit).resize((140, 140)), (240, 640))
    page.save(tmp_path / "page.png")
    (tmp_path / "text.png").write_text("no picture")
    rows = ["plain.png\t7\tas in MNIST", "negative.png\t7\tdark", "page.png\t7\tdark", "text.png\t7\tdark"]
    path = tmp_path / "manifest.tsv"
    path.write_text("\n".join(["file\tlabel\tkind", *rows]) + "\n")
    return path


def test_all_ways_answer_the_same_pictures(manifest: Path, tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    done = bench(manifest, "--json", path)
    assert (done.returncode, done.stderr) == (0, "")
    report: dict[str, Any] = json.loads(path.read_bytes())
    found = {figure["contestant"]: figure["kinds"] for figure in report["people"]}
    for kinds in found.values():
        assert list(kinds) == ["as in MNIST", "dark", "all"]
        assert kinds["as in MNIST"]["right"] == 1
        assert [sum(kinds[kind].values()) for kind in kinds] == [1, 3, 4]
        assert kinds["all"]["unreadable"] == 1
    assert found["mnist infer"]["dark"]["right"] == 2
    assert found["usual, inverted"]["dark"]["right"] == 1, "a page resized as a whole is no digit"
    assert found["usual"]["dark"]["right"] == 0
    right = [item for item in report["comparisons"] if item["what"] == "all, 4 pictures: right"]
    assert [(item["our_values"], item["their_values"]) for item in right] == [([3], [1]), ([3], [2])]


def test_a_manifest_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    done = bench(tmp_path / "nowhere.tsv")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "nowhere.tsv" in line
