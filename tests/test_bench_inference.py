"""scripts/bench_inference in small, and its tables from figures made by hand."""

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "bench_inference"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    """What the script defines."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPT.parent)
        return runpy.run_path(str(SCRIPT))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_one_round_of_everything(artifact: Path, tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    command = [sys.executable, SCRIPT, "--model", artifact, "--rounds", "1", "--json", path]
    small = ["--pictures", "20", "--photos", "1"]
    done = subprocess.run([*command, *small], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(path.read_bytes())
    assert set(report) == {
        *("machine", "versions", "rounds", "start", "folders", "calls", "memory", "comparisons"),
    }
    assert [figure["contestant"] for figure in report["start"]] == [
        *("imports", "mnist infer, genuine digit", "mnist infer, drawing", "torch", "PyTorch script"),
        *("onnxruntime script", "typer", "mnist --help"),
    ]
    kinds = [(figure["pictures"], figure["contestant"]) for figure in report["folders"]]
    assert kinds == [
        (kind, name)
        for kind in ("digits", "drawings", "photos")
        for name in ("decoding alone", "mnist infer")
    ]
    assert min(figure["pictures_per_second"] for figure in report["folders"]) > 0
    assert [figure["contestant"] for figure in report["calls"]] == [
        *("Predictor", "session.run, our file", "session.run, float file", "PyTorch eager"),
    ]
    for figure in report["calls"]:
        assert figure["call_us"].keys() == {"1", "32", "256"}
        assert min(figure["call_us"].values()) > 1
    assert [item["theirs"] for item in report["comparisons"] if "one drawing" in item["what"]] == [
        "numpy, Pillow, onnxruntime imported, no answer",
        "TorchScript behind our preprocessing",
        "PyTorch script, resize alone",
        "onnxruntime script, resize alone",
    ]
    assert len(report["comparisons"]) == 4 + 1 + 3 + 3 * 3
    assert [(figure["pictures"], figure["number"]) for figure in report["memory"]] == [
        *(("photos", 1), ("drawings", 2), ("drawings", 20)),
    ]
    assert report["memory"][0]["own_bytes"] > 1e6, "a photo takes some room"
    assert done.stdout.count("### ") == 4


def test_tables(script: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    seconds = {"imports": (0.1, 0.2, 0.3), "torch": (1.0, 3.0, 2.0), "typer": (0.1,), "mnist --help": (0.15,)}
    script["tell_start"](
        [{"contestant": name, "seconds": value} for name, values in seconds.items() for value in values]
    )
    script["tell_folders"](
        [
            {"pictures": "photos", "contestant": name, "pictures_per_second": rate}
            for name, rate in (("decoding alone", 2000.0), ("mnist infer", 1500.0))
        ]
    )
    lines = capsys.readouterr().out.splitlines()
    assert "| torch | 2000 (1000 to 3000) | 10.00 | imports |" in lines
    assert "| mnist --help | 150 | 1.50 | typer |" in lines
    assert "| photos | 2,000 | 1,500 | 0.75 |" in lines
