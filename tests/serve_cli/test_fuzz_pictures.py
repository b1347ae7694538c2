"""A thousand of the damaged pictures that the script makes by the hundred thousand."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "fuzz_pictures"


@pytest.mark.skipif(sys.platform != "linux", reason="forks, and limits memory, as Linux does")
def test_damaged_pictures_are_read_or_refused(tmp_path: Path) -> None:
    command = [sys.executable, SCRIPT, "--inputs", "1000", "--jobs", "1", "--keep", tmp_path]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    summary = json.loads(result.stdout)
    assert summary["crashes"] == []
    assert summary["read"] + summary["refused"] == summary["inputs"] == 1000
    assert summary["read"] > 100


@pytest.mark.skipif(sys.platform != "linux", reason="forks, and limits memory, as Linux does")
def test_failures_are_found_and_kept(tmp_path: Path) -> None:
    broken = """
import runpy, serve_cli.preprocess, sys
from serve_cli.preprocess import to_mnist
calls = []
def fail(grey):
    calls.append(grey)
    if len(calls) == 3:
        raise KeyError("found")
    if len(calls) == 6:
        import os
        os.abort()
    return to_mnist(grey)
serve_cli.preprocess.to_mnist = fail
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].removesuffix("/fuzz_pictures"))  # as for every script
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    command = [sys.executable, "-c", broken, SCRIPT, "--inputs", "60", "--jobs", "1", "--keep", tmp_path]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 1, result.stderr
    summary = json.loads(result.stdout)
    first, second = summary["crashes"][:2]
    assert "KeyError" in first["why"]
    assert second["why"] == "the process ended with -6"
    assert Path(second["file"]).read_bytes()
    assert summary["inputs"] == 60
