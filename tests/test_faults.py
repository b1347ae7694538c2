"""scripts/faults writes its page from its figures, and keeps those of earlier campaigns."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


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
