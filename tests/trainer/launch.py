"""Starting a module in several processes, as torchrun does."""

import os
import subprocess
import sys
from pathlib import Path

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def command(processes: int, module: str, *arguments: str | Path) -> list[str]:
    """The command line that starts `module` in a group of `processes`."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*launcher, "--nproc-per-node", str(processes), "-m", module, *map(str, arguments)]


def launch(
    processes: int, module: str, *arguments: str | Path, timeout_s: float = 300
) -> "subprocess.CompletedProcess[str]":
    """Run it to its end on the CPU."""
    return subprocess.run(
        command(processes, module, *arguments),
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=timeout_s,
    )
