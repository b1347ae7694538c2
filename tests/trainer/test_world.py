"""1, 2 and 4 processes are one training: the same losses, the same net, every sample counted once."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.trainer.launch import launch
from tests.trainer.world import SIZES
from trainer import evaluate as evaluation
from trainer.data import Split
from trainer.evaluate import evaluate, predict
from trainer.model import MLP, Normalize

WORLDS = (1, 2, 4)
SAMPLES = 4000
EPOCHS = 5  # 63 steps each, so that there are 200 steps to compare


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """What groups of each size found."""
    folder = tmp_path_factory.mktemp("worlds")
    found = {}
    for processes in WORLDS:
        path = folder / f"{processes}.json"
        result = launch(processes, "tests.trainer.world", path, str(SAMPLES), str(EPOCHS))
        assert result.returncode == 0, result.stderr
        found[processes] = json.loads(path.read_text())
    return found


def test_the_groups_had_the_sizes(worlds: dict[int, dict[str, Any]]) -> None:
    assert [worlds[processes]["processes"] for processes in WORLDS] == list(WORLDS)


@pytest.mark.parametrize("processes", WORLDS[1:])
def test_the_first_200_losses_agree(worlds: dict[int, dict[str, Any]], processes: int) -> None:
    alone, together = worlds[1]["losses"][:200], worlds[processes]["losses"][:200]
    assert len(alone) == 200
    assert together == pytest.approx(alone, rel=1e-6)
    assert alone[0] > 2 * alone[-1]


@pytest.mark.parametrize("processes", WORLDS[1:])
def test_the_nets_agree_after_5_epochs(worlds: dict[int, dict[str, Any]], processes: int) -> None:
    alone, together = worlds[1], worlds[processes]
    # 0.1 points, and an image more: there are 1,000 of them. The weights may differ by then: one ReLU whose
    # input rounding moves across zero is enough (LOG.md).
    assert together["test"]["accuracy"] == pytest.approx(alone["test"]["accuracy"], abs=0.002)
    assert together["test"]["samples"] == alone["test"]["samples"] == 1000


def test_two_processes_give_the_bits_of_two_parts_in_one(
    worlds: dict[int, dict[str, Any]], tmp_path: Path
) -> None:
    path = tmp_path / "parts.json"
    result = launch(1, "tests.trainer.world", path, str(SAMPLES), str(EPOCHS), "accumulate=2")
    assert result.returncode == 0, result.stderr
    parts = json.loads(path.read_text())
    assert parts["weights"] == worlds[2]["weights"]
    assert parts["weights"] != worlds[1]["weights"]


def test_strangers_and_schedule_are_the_same_in_any_number_of_processes_and_parts(tmp_path: Path) -> None:
    """21 of 64, and 13 of the ragged 40: neither half has as many as the other."""
    found = {}
    for processes, parts in ((1, 1), (2, 1), (1, 2)):
        path = tmp_path / f"{processes}-{parts}.json"
        flags = ("strangers=0.33", "distortion=1.0", 'schedule="one-cycle"', f"accumulate={parts}")
        result = launch(processes, "tests.trainer.world", path, "1000", "1", *flags)
        assert result.returncode == 0, result.stderr
        found[processes, parts] = json.loads(path.read_text())
    assert found[2, 1]["weights"] == found[1, 2]["weights"]
    assert found[2, 1]["losses"] == pytest.approx(found[1, 1]["losses"], rel=1e-5)
    for together, alone in zip(found[2, 1]["weights"], found[1, 1]["weights"], strict=True):
        torch.testing.assert_close(torch.tensor(together), torch.tensor(alone), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("processes", WORLDS)
def test_each_size_of_set_is_predicted_whole_and_in_order(
    worlds: dict[int, dict[str, Any]], processes: int
) -> None:
    whole = torch.tensor(worlds[processes]["logits"][-1])
    assert whole.argmax(dim=1).double().var() > 1
    for size, logits in zip(SIZES, worlds[processes]["logits"], strict=True):
        torch.testing.assert_close(torch.tensor(logits), whole[:size], rtol=1e-4, atol=1e-4)


class Rank:
    """One of `world` processes as predict sees it; `others` are the shares that the others bring."""

    def __init__(self, rank: int, world: int, shares: list[Tensor]) -> None:
        self.process_index, self.num_processes, self.shares = rank, world, shares

    def gather(self, share: Tensor) -> Tensor:
        self.shares.append(share)
        return torch.cat([*self.shares, *[share] * (self.num_processes - len(self.shares))])


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 300), st.integers(1, 9), st.integers(1, 64))
def test_any_number_of_processes_and_any_batch_count_every_sample_once(
    samples: int, world: int, batch: int
) -> None:
    """The shares of all ranks, gathered, are the predictions of one process, and so is every loss."""
    torch.manual_seed(samples)
    images = torch.randint(0, 256, (samples, 28, 28), dtype=torch.uint8)
    split = Split(images, torch.randint(0, 10, (samples,)))
    net, normalize = MLP((8,)), Normalize(0.5, 0.5)
    shares: list[Tensor] = []
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(evaluation, "BATCH", batch)
        for rank in range(world):
            logits = predict(net, normalize, images, Rank(rank, world, shares))  # type: ignore[arg-type]
        found = evaluate(net, normalize, split, Rank(world - 1, world, shares[:-1]))  # type: ignore[arg-type]
    with torch.no_grad():
        expected = net(normalize(images))
    torch.testing.assert_close(logits, expected)
    assert found.samples == samples
    assert found.accuracy == (expected.argmax(dim=1) == split.labels).double().mean().item()
    loss = torch.nn.functional.cross_entropy(expected.double(), split.labels).item()
    assert found.loss == pytest.approx(loss, rel=1e-5)
