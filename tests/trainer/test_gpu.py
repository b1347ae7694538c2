"""What only a GPU shows; nothing of this runs in CI, and a run without one says so."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.command import Mnist
from tests.trainer.runs import MNIST_TRAIN, finish, report, step_losses
from trainer.augment import distort, draw_distortions
from trainer.data import Dataset
from trainer.outliers import add_outliers, draw_outliers

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: the GPU path is untested"),
]

FAST = ("--recipe", "fast", "--dataset", "mnist5k")


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_the_first_steps_agree_with_the_cpu(mnist: Mnist, tmp_path: Path, optimizer: str) -> None:
    flags = (*FAST, "--limit", "1280", "--batch-size", "64", "--epochs", "1", "--optimizer", optimizer)
    flags += ("--distortion", "1", "--strangers", "0.2", "--output")
    assert mnist("train", *flags, tmp_path / "gpu").code == 0
    on_cpu = finish((*MNIST_TRAIN, *flags, tmp_path / "cpu"), ACCELERATE_USE_CPU="true")
    assert on_cpu.returncode == 0, on_cpu.stderr
    assert report(tmp_path / "gpu")["train"]["device"] == "cuda"
    rtol = 1e-3 if optimizer == "adam" else 1e-2
    np.testing.assert_allclose(step_losses(tmp_path / "gpu"), step_losses(tmp_path / "cpu"), rtol=rtol)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_run_on_one_gpu(tmp_path: Path, precision: str) -> None:
    command = (*MNIST_TRAIN, *FAST, "--mixed-precision", precision, "--output", tmp_path / "run")
    result = finish(command, CUDA_VISIBLE_DEVICES="0")
    assert result.returncode == 0, result.stderr
    assert report(tmp_path / "run")["train"]["device"] == "cuda"
    assert report(tmp_path / "run")["test"]["accuracy"] > 0.85


def test_distortions_are_those_of_the_cpu(mnist5k: Dataset) -> None:
    images, numbers = mnist5k.train.images[:64], draw_distortions(64, 0, 0)
    on_gpu = distort(images.cuda(), numbers.cuda(), 1.0).cpu()
    torch.testing.assert_close(on_gpu, distort(images, numbers, 1.0), rtol=0, atol=0.1)


def test_outliers_are_those_of_the_cpu(mnist5k: Dataset) -> None:
    train, numbers, targets = mnist5k.train, draw_outliers(32, 0, 0), torch.eye(10)[mnist5k.train.labels[:64]]
    on_cpu = add_outliers(train.images[:64], train.labels[:64], targets, train, numbers)
    there = train.to(torch.device("cuda"))
    on_gpu = add_outliers(there.images[:64], there.labels[:64], targets.cuda(), there, numbers.cuda())
    torch.testing.assert_close(on_gpu[0].cpu(), on_cpu[0], rtol=0, atol=0.1)
    assert torch.equal(on_gpu[1].cpu(), on_cpu[1])
