"""What only a GPU shows; nothing of this runs in CI, and a run without one says so."""

import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from tests.command import Mnist
from tests.trainer.world import fit
from trainer.augment import distort, draw
from trainer.config import TrainConfig
from trainer.data import Dataset
from trainer.outliers import draw_strangers, mix_in

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: the GPU path is untested"),
]


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_the_first_steps_agree_with_the_cpu(mnist5k: Dataset, optimizer: str) -> None:
    train = mnist5k.train.take(torch.arange(1280))
    config = TrainConfig(epochs=1, optimizer=optimizer, distortion=1.0, strangers=0.2)
    _, _, on_gpu = fit(config, train, mnist5k.test, Accelerator())
    Accelerator().free_memory()
    from accelerate.state import AcceleratorState, PartialState

    AcceleratorState._reset_state(reset_partial_state=True)
    _, _, on_cpu = fit(config, train, mnist5k.test, Accelerator(cpu=True))
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()
    assert on_gpu == pytest.approx(on_cpu, rel=1e-3 if optimizer == "adam" else 1e-2)


def test_a_run_on_one_gpu(mnist: Mnist, tmp_path: Path) -> None:
    for precision in ("no", "bf16"):
        output = tmp_path / precision
        flags = ("--recipe", "fast", "--dataset", "mnist5k", "--mixed-precision", precision)
        assert mnist("train", *flags, "--output", output).code == 0
        report = json.loads((output / "report.json").read_text())
        assert report["train"]["device"] == "cuda"
        assert report["test"]["accuracy"] > 0.85


def test_distortions_are_those_of_the_cpu(mnist5k: Dataset) -> None:
    images, numbers = mnist5k.train.images[:64], draw(64, 0, 0)
    on_gpu = distort(images.cuda(), numbers.cuda(), 1.0).cpu()
    torch.testing.assert_close(on_gpu, distort(images, numbers, 1.0), rtol=0, atol=0.1)


def test_strangers_are_those_of_the_cpu(mnist5k: Dataset) -> None:
    train, numbers = mnist5k.train, draw_strangers(32, 0, 0)
    on_cpu = mix_in(train.images[:64], train.labels[:64], train, numbers)
    there = train.to(torch.device("cuda"))
    on_gpu = mix_in(there.images[:64], there.labels[:64], there, numbers.cuda())
    torch.testing.assert_close(on_gpu[0].cpu(), on_cpu[0], rtol=0, atol=0.1)
    assert torch.equal(on_gpu[1].cpu(), on_cpu[1])
