"""Outliers: decided by numbers alone, row by row; no digits any more, and the net learns to be unsure."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.command import Mnist
from tests.trainer.runs import epochs, weights
from trainer.data import Dataset, Split
from trainer.model import MLP, Normalize
from trainer.outliers import COLUMNS, add_outliers, draw_outliers, make_outliers

PAIR, CROSSED, LYING = 0.1, 0.5, 0.9
"""Kinds, as the number in the first column names them."""

ONES = torch.ones(400, dtype=torch.int64)


def add(images: Tensor, labels: Tensor, train: Split, numbers: Tensor) -> tuple[Tensor, Tensor]:
    return add_outliers(images, labels, torch.eye(10)[labels], train, numbers)


def numbers_of(kind: float, count: int = 400) -> Tensor:
    """Random numbers for outliers of one kind."""
    numbers = draw_outliers(count, 0, 1)
    numbers[:, 0] = kind
    return numbers


def make(kind: float, split: Split) -> tuple[Tensor, Tensor, Tensor]:
    """400 digits, 400 others, and the outliers of one kind that they become; no label is 0."""
    digits, others = split.images[:400].float(), split.images[400:800].float()
    return digits, others, make_outliers(digits, others, ONES, numbers_of(kind))


def test_the_first_rows_become_outliers_and_the_rest_stays(mnist5k: Dataset) -> None:
    images, labels, train = mnist5k.train.images[:100], mnist5k.train.labels[:100], mnist5k.train
    numbers = draw_outliers(30, 0, 1)
    pictures, targets = add(images, labels, train, numbers)
    assert (pictures.dtype, targets.dtype) == (torch.float32, torch.float32)
    assert torch.equal(pictures[30:], images[30:].float())
    partners = train.images[(numbers[:, 1] * len(train)).long()].float()
    assert torch.equal(pictures[:30], make_outliers(images[:30].float(), partners, labels[:30], numbers))
    assert (pictures[:30] - images[:30]).abs().amax((1, 2)).min() > 100
    assert targets[:30].eq(torch.tensor(0.1)).all()
    assert torch.equal(targets[30:], torch.eye(10)[labels[30:]])
    assert torch.equal(add(images.float(), labels, train, numbers)[0], pictures)
    assert torch.equal(images, mnist5k.train.images[:100])


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 30])
def test_each_share_of_a_batch_has_the_rows_of_the_whole(mnist5k: Dataset, parts: int) -> None:
    """20 outliers among 50: in 30 parts some have no outlier, in 3 not all have as many."""
    images, labels, train = mnist5k.train.images[:50], mnist5k.train.labels[:50], mnist5k.train
    numbers = draw_outliers(20, 0, 1)
    pictures, targets = add(images, labels, train, numbers)
    for part in range(parts):
        ours = slice(part, None, parts)
        share = add(images[ours], labels[ours], train, numbers[ours])
        torch.testing.assert_close(share[0], pictures[ours], rtol=0, atol=0.05)  # of 255
        assert torch.equal(share[1], targets[ours])


def test_a_pair_has_one_digit_on_each_side(mnist5k: Dataset) -> None:
    digits, others, pairs = make(PAIR, mnist5k.train)
    ink = digits.sum((1, 2)) + others.sum((1, 2))
    for half in (pairs[:, :, :14], pairs[:, :, 14:]):
        assert (half.sum((1, 2)) / ink).min() > 0.03  # a digit of half its size has a quarter of its ink
        assert half.amax((1, 2)).min() > 100
    assert (pairs.sum((1, 2)) / ink).max() < 0.6


@pytest.mark.parametrize(("side", "mirrored"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_a_lying_digit_is_a_quarter_turn(mnist5k: Dataset, side: int, mirrored: int) -> None:
    digits = mnist5k.train.images[:400].float()
    numbers = numbers_of(LYING)
    numbers[:, 4], numbers[:, 7] = 0.5, 0.5  # neither tilted nor shifted
    numbers[:, 5], numbers[:, 6] = (0.75, 0.25)[side], (0.25, 0.75)[mirrored]
    expected = np.rot90(digits.numpy(), (3, 1)[side], axes=(1, 2)).copy()
    if mirrored:
        expected = expected[:, :, ::-1].copy()
    lying = make_outliers(digits, digits.flip(0), ONES, numbers)
    torch.testing.assert_close(lying, torch.from_numpy(expected), rtol=0, atol=0.05)  # of 255


def test_a_zero_never_lies_alone(mnist5k: Dataset) -> None:
    """It looks like a zero however it is turned."""
    zeros, others = (
        mnist5k.train.images[mnist5k.train.labels == 0].float(),
        mnist5k.train.images[:400].float(),
    )
    found = make_outliers(zeros, others, 0 * ONES, numbers_of(LYING))
    assert torch.equal(found, make_outliers(zeros, others, 0 * ONES, numbers_of(PAIR)))
    assert not torch.equal(found, make_outliers(zeros, others, ONES, numbers_of(LYING)))


def test_one_digit_lies_across_another(mnist5k: Dataset) -> None:
    digits, others, crossed = make(CROSSED, mnist5k.train)
    lying = make_outliers(digits, others, ONES, numbers_of(LYING))
    torch.testing.assert_close(crossed, torch.maximum(lying, others), rtol=0, atol=0.05)  # of 255


def test_each_kind_is_a_third(mnist5k: Dataset) -> None:
    count = 3000
    numbers = torch.full((count, COLUMNS), 0.5)
    numbers[:, 0] = draw_outliers(count, 0, 1)[:, 0]
    digit, other = (mnist5k.train.images[at].float().expand(count, -1, -1) for at in (0, 1))
    made = make_outliers(digit, other, torch.ones(count, dtype=torch.int64), numbers)
    _, counts = made.unique(dim=0, return_counts=True)
    assert len(counts) == 3
    assert (counts / count - 1 / 3).abs().max() < 0.04  # standard error 0.009


def test_a_net_trained_with_outliers_is_unsure_of_others_and_still_reads_digits(
    mnist: Mnist, mnist5k: Dataset, tmp_path: Path
) -> None:
    """The outliers that it is tested with are made of test digits."""
    test = mnist5k.test
    outliers, _ = add(test.images[:500], test.labels[:500], test, draw_outliers(500, 9, 0))
    confidences, accuracies = [], []
    for share in ("0", "0.2"):
        flags = ("--batch-size", "100", "--lr", "4e-3", "--schedule", "one-cycle", "--strangers", share)
        run = tmp_path / share
        recipe = ("train", "--recipe", "notebook", "--dataset", "mnist5k")
        assert mnist(*recipe, *flags, "--output", run).code == 0
        net = MLP()
        net.load_state_dict(weights(run))
        with torch.no_grad():
            probabilities = net(Normalize(0.5, 0.5)(outliers)).softmax(dim=1)
        confidences.append(probabilities.amax(dim=1).mean().item())
        accuracies.append(epochs(run)[-1]["validation"]["accuracy"])
    assert confidences[1] < 0.5 * confidences[0]  # with four seeds: 0.40 to 0.43 of it
    assert accuracies[1] > accuracies[0] - 0.015  # with four seeds: between 0.002 lower and 0.002 higher
