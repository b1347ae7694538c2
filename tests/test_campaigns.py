"""A few dozen of the kills and crash points that the scripts do by the thousand."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and strace, as Linux has them")


def run(name: str, *arguments: str) -> str:
    result = subprocess.run(
        [sys.executable, SCRIPTS / name, *arguments], capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.parametrize(("kills", "processes"), [(40, 1), (6, 2)])
def test_kills_at_random_moments_do_not_change_a_bit(kills: int, processes: int) -> None:
    summary = run("kill_campaign", "--kills", str(kills), "--processes", str(processes))
    found = re.search(r"(\d+) kills over (\d+) runs.*: (\d+) of (\d+) runs ended with the bits", summary)
    assert found, summary
    done, runs, same, compared = map(int, found.groups())
    assert done == kills
    assert same == compared == runs >= 1


def test_a_fault_at_a_system_call_of_a_save_leaves_a_whole_checkpoint() -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed; test_checkpoint.py injects errors without it")
    if subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True).returncode != 0:
        pytest.skip("strace may not trace here")
    summary = run("crash_points", "--every", "3")
    found = re.search(r": (\d+) of (\d+) crash points left a whole", summary)
    assert found, summary
    assert int(found[1]) == int(found[2]) >= 20
