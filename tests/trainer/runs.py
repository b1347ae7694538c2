"""Runs in other processes, and what a run left."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer import checkpoint

QUICK = ("--recipe", "notebook", "--dataset", "mnist5k", "--limit", "640", "--epochs", "2")
LONG = (*QUICK[:-2], "--epochs", "100000", "--checkpoint-every", "50")

MNIST_TRAIN = (sys.executable, "-m", "serve_cli.app", "train")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def torchrun(processes: int, *arguments: object) -> list[str]:
    """The command line that trains in a group of `processes`."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*launcher, "--nproc-per-node", str(processes), "-m", "trainer.main", *map(str, arguments)]


def finish(
    command: Sequence[object], timeout_s: float = 300, **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end on the CPU."""
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        env=ENVIRONMENT | environment,
        timeout=timeout_s,
    )


@contextlib.contextmanager
def started(command: Sequence[object]) -> Iterator["subprocess.Popen[str]"]:
    """Start a training; the block begins after its first epoch, and its end kills it."""
    with subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline().startswith("Epoch 1/")
            yield child
        finally:
            child.kill()


def report(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "report.json").read_bytes()))


def epochs(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run: Path) -> dict[str, Tensor]:
    return dict(torch.load(run / "mnist_model.pth", weights_only=True))


def assert_same_weights(first: Path, second: Path) -> None:
    """Check for the same bits."""
    ours, theirs = weights(first), weights(second)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def checkpoint_steps(run: Path) -> list[int]:
    return sorted(map(checkpoint.step_of, checkpoint.find(run / "checkpoints")))


def step_losses(run: Path) -> np.ndarray:
    """The mean loss of each step of the last two epochs, from their checkpoints, float64 [steps]."""
    samples = report(run)["train"]["samples"]
    losses = []
    for path in reversed(checkpoint.find(run / "checkpoints")):
        saved = checkpoint.load(path)
        batch = saved.state["config"]["batch_size"]
        sums = saved.tensors["losses"]
        losses.append(sums / np.minimum(batch, samples - batch * np.arange(len(sums))))
    return np.concatenate(losses)
