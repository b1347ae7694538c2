"""The losses of a run against plain PyTorch, and against other numbers of processes and parts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.utils import set_seed
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.command import Mnist
from tests.trainer.runs import assert_same_weights, finish, report, step_losses, torchrun, weights
from trainer import evaluate as evaluation
from trainer.augment import distort, draw_distortions
from trainer.data import Dataset, Split
from trainer.evaluate import evaluate, predict
from trainer.model import MLP, Normalize
from trainer.outliers import draw_outliers, make_outliers
from trainer.train import sample_order

NOTEBOOK = ("train", "--recipe", "notebook", "--dataset", "mnist5k")


class TutorialNet(nn.Module):
    """The class of the tutorial, word for word in what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(28 * 28, 128)
        self.fc2 = nn.Linear(128, 64)
        self.fc3 = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.view(-1, 28 * 28)
        x = torch.relu(self.fc1(x))
        x = torch.relu(self.fc2(x))
        return self.fc3(x)


def batches(samples: int, batch_size: int) -> list[Tensor]:
    """Those of two epochs."""
    return [batch for epoch in (1, 2) for batch in sample_order(samples, 0, epoch).split(batch_size)]


def test_the_first_200_losses_are_those_of_the_tutorials_own_loop(
    mnist: Mnist, mnist5k: Dataset, tmp_path: Path
) -> None:
    flags = ("--batch-size", "40", "--epochs", "2")
    assert mnist(*NOTEBOOK, *flags, "--output", tmp_path / "run").code == 0
    set_seed(0)
    tutorial = TutorialNet()
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(tutorial.parameters(), lr=0.001)
    losses = []
    for batch in batches(4000, 40):
        images = (mnist5k.train.images[batch].float() / 255 - 0.5) / 0.5
        optimizer.zero_grad()
        loss = criterion(tutorial(images), mnist5k.train.labels[batch])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert len(losses) == 200
    assert losses[0] > 2 * losses[-1]
    np.testing.assert_allclose(step_losses(tmp_path / "run"), losses, rtol=1e-6)
    for name, tensor in weights(tmp_path / "run").items():
        torch.testing.assert_close(tensor, tutorial.state_dict()[name], rtol=1e-3, atol=1e-5)


def with_outliers(images: Tensor, train: Split, batch: Tensor, numbers: Tensor) -> Tensor:
    """`images` of `batch`, the first of them outliers, one by one."""
    images = images.clone()
    for row, number in enumerate(numbers):
        other = train.images[int(number[1] * len(train))].float()
        label = train.labels[batch[row : row + 1]]
        images[row] = make_outliers(images[row : row + 1], other[None], label, number[None])[0]
    return images


def loss_with_outliers(logits: Tensor, labels: Tensor, outliers: int) -> Tensor:
    """The mean over a batch of -log p(label), and for its first ones over all ten labels alike."""
    surprise = -logits.log_softmax(dim=1)
    of_digits = [surprise[row, labels[row]] for row in range(outliers, len(labels))]
    return torch.stack([*surprise[:outliers].mean(dim=1), *of_digits]).mean()


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_a_recipe_with_everything_equals_plain_pytorch(
    mnist: Mnist, mnist5k: Dataset, tmp_path: Path, optimizer: str
) -> None:
    """Weight decay, one-cycle, distortions, outliers, accumulation and Muon, each written a second time."""
    flags = ["--epochs", "2", "--batch-size", "100", "--limit", "730", "--schedule", "one-cycle"]
    flags += ["--lr", "5e-3", "--weight-decay", "0.1"]
    flags += ["--distortion", "1", "--strangers", "0.247", "--optimizer", optimizer]
    flags += ["--accumulate", "3" if optimizer == "adam" else "1"]
    assert mnist(*NOTEBOOK, *flags, "--output", tmp_path / "run").code == 0

    train = mnist5k.train.take(torch.arange(730))
    set_seed(0)
    net = TutorialNet()
    by_muon = [net.fc1.weight, net.fc2.weight] if optimizer == "muon" else []
    rest = [parameter for parameter in net.parameters() if not any(parameter is each for each in by_muon)]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(rest, lr=5e-3, weight_decay=0.1)]
    if by_muon:
        optimizers += [torch.optim.Muon(by_muon, lr=5e-3, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")]
    schedules = [
        torch.optim.lr_scheduler.OneCycleLR(each, 5e-3, total_steps=16, cycle_momentum=False)
        for each in optimizers
    ]
    losses = []
    for step, batch in enumerate(batches(730, 100)):
        images = distort(train.images[batch], draw_distortions(len(batch), 0, step), 1.0)
        outliers = {100: 25, 30: 7}[len(batch)]  # of 24.7 and 7.41
        images = with_outliers(images, train, batch, draw_outliers(outliers, 0, step))
        loss = loss_with_outliers(net((images / 255 - 0.5) / 0.5), train.labels[batch], outliers)
        net.zero_grad()
        loss.backward()
        for each, schedule in zip(optimizers, schedules, strict=True):
            each.step()
            schedule.step()
        losses.append(loss.item())

    # PyTorch's Muon computes in bfloat16 and makes the smallest gradients as large as the others, rounding
    # included; test_optim.py compares ours with float64.
    found = step_losses(tmp_path / "run")
    np.testing.assert_allclose(found[:8], losses[:8], rtol=1e-5 if optimizer == "adam" else 5e-4)
    np.testing.assert_allclose(found, losses, rtol=1e-5 if optimizer == "adam" else 5e-3)
    if optimizer == "adam":
        for name, tensor in weights(tmp_path / "run").items():
            torch.testing.assert_close(tensor, net.state_dict()[name], rtol=1e-3, atol=1e-5)


def test_the_order_of_the_samples_depends_on_seed_and_epoch_alone() -> None:
    order = sample_order(100, 0, 1)
    assert order.sort().values.tolist() == list(range(100))
    torch.rand(5)
    assert torch.equal(order, sample_order(100, 0, 1))
    for other in (sample_order(100, 0, 2), sample_order(100, 1, 1), sample_order(100, 1, 0)):
        assert not torch.equal(order, other)


@pytest.mark.parametrize(
    ("samples", "flags"),
    [
        (130, ()),
        (64, ("--schedule", "one-cycle")),
        (7, ("--batch-size", "1")),
        (1, ("--schedule", "one-cycle")),
        (129, ("--strangers", "0.5")),  # the last batch has one image, and round(0.5) outliers
        (129, ("--strangers", "0.1", "--accumulate", "64")),  # most parts of the last batch are empty
    ],
)
def test_batches_of_any_size_train(
    mnist: Mnist, tmp_path: Path, samples: int, flags: tuple[str, ...]
) -> None:
    size = ("--limit", samples, "--epochs", "2")
    assert mnist(*NOTEBOOK, *size, *flags, "--output", tmp_path / "run").code == 0
    losses = np.split(step_losses(tmp_path / "run"), 2)
    assert np.isfinite(losses).all()
    assert losses[1].mean() < losses[0].mean() or "--strangers" in flags


# 1, 2 and 4 processes are one training.

Runs = dict[tuple[int, int], Path]


def train_in(folder: Path, mnist: Mnist, *flags: object, worlds: Sequence[tuple[int, int]]) -> Runs:
    """A run for each (number of processes, number of parts)."""
    runs = {}
    for processes, parts in worlds:
        run = runs[processes, parts] = folder / f"{processes}-{parts}"
        arguments = (*NOTEBOOK[1:], *flags, "--accumulate", parts, "--output", run)
        if processes == 1:
            assert mnist("train", *arguments).code == 0
        else:
            result = finish(torchrun(processes, *arguments))
            assert result.returncode == 0, result.stderr
        assert report(run)["train"]["processes"] == processes
    return runs


def test_1_2_and_4_processes_are_the_same_training_and_2_have_the_bits_of_2_parts(
    mnist: Mnist, tmp_path: Path
) -> None:
    """Of 200 steps, the last one ragged; nothing is divisible by the number of processes."""
    flags = ("--epochs", "1", "--batch-size", "18", "--validation-fraction", "0.1003")
    runs = train_in(tmp_path, mnist, *flags, worlds=[(1, 1), (2, 1), (4, 1), (1, 2)])
    one, losses = report(runs[1, 1]), step_losses(runs[1, 1])
    assert (len(losses), one["train"]["samples"]) == (200, 3599)
    assert losses[0] > 2 * losses[-1]
    for together in (runs[2, 1], runs[4, 1]):
        np.testing.assert_allclose(step_losses(together), losses, rtol=1e-6)
        many = report(together)
        assert one["test"]["samples"] == many["test"]["samples"] == 1000
        samples = [each["calibration"]["validation"]["samples"] for each in (one, many)]
        assert samples == [401, 401]
        assert many["test"]["loss"] == pytest.approx(one["test"]["loss"], rel=1e-4)
        # One image of 1,000: one ReLU whose input rounding moves across zero is enough (LOG.md).
        assert many["test"]["accuracy"] == pytest.approx(one["test"]["accuracy"], abs=0.0011)
    assert_same_weights(runs[2, 1], runs[1, 2])
    assert not torch.equal(weights(runs[2, 1])["fc1.weight"], weights(runs[1, 1])["fc1.weight"])


def test_outliers_and_schedule_are_the_same_in_any_number_of_processes_and_parts(
    mnist: Mnist, tmp_path: Path
) -> None:
    """21 of 64, and 13 of the ragged 40: neither half has as many as the other."""
    flags = ("--limit", "1000", "--epochs", "1", "--strangers", "0.33", "--distortion", "1")
    runs = train_in(tmp_path, mnist, *flags, "--schedule", "one-cycle", worlds=[(1, 1), (2, 1), (1, 2)])
    assert_same_weights(runs[2, 1], runs[1, 2])
    np.testing.assert_allclose(step_losses(runs[2, 1]), step_losses(runs[1, 1]), rtol=1e-5)
    for name, tensor in weights(runs[1, 1]).items():
        torch.testing.assert_close(weights(runs[2, 1])[name], tensor, rtol=1e-3, atol=1e-4)


class Process:
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
    """The shares of all processes, gathered, are the predictions of one, and so is every loss."""
    torch.manual_seed(samples)
    images = torch.randint(0, 256, (samples, 28, 28), dtype=torch.uint8)
    split = Split(images, torch.randint(0, 10, (samples,)))
    net, normalize = MLP((8,)), Normalize(0.5, 0.5)
    shares: list[Tensor] = []
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(evaluation, "BATCH", batch)
        last: Any = None
        for rank in range(world):
            last = predict(net, normalize, images, Process(rank, world, shares))  # type: ignore[arg-type]
        found = evaluate(net, normalize, split, Process(world - 1, world, shares[:-1]))  # type: ignore[arg-type]
    with torch.no_grad():
        expected = net(normalize(images))
    torch.testing.assert_close(last, expected)
    assert found.samples == samples
    assert found.accuracy == (expected.argmax(dim=1) == split.labels).double().mean().item()
    loss = nn.functional.cross_entropy(expected.double(), split.labels).item()
    assert found.loss == pytest.approx(loss, rel=1e-5)
