"""Strangers: decided by numbers alone, row by row; no digits any more, and the net learns to doubt them."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from tests.trainer.world import fit
from trainer.augment import draw
from trainer.config import TrainConfig
from trainer.data import Dataset, Split
from trainer.model import Normalize
from trainer.outliers import COLUMNS, draw_strangers, make_strangers, mix_in

PAIR, CROSSED, LYING = 0.1, 0.5, 0.9
"""Kinds, as the number in the first column asks for them."""


def numbers_of(kind: float, count: int, middle: bool = False) -> Tensor:
    """Random numbers for strangers of one kind; from the turn on all in the middle, if so asked."""
    numbers = draw_strangers(count, 0, 1)
    numbers[:, 0] = kind
    if middle:
        numbers[:, [4, 7]] = 0.5
    return numbers


def make(kind: float, split: Split, middle: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """400 digits, 400 others, and the strangers of one kind that they become; no label is 0."""
    digits, others = split.images[:400].float(), split.images[400:800].float()
    labels = torch.ones(400, dtype=torch.int64)
    return digits, others, make_strangers(digits, others, labels, numbers_of(kind, 400, middle))


def moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """Centre of mass (x, y) of each image and its standard deviations, in pixels, [B, 2] each."""
    total = images.sum((1, 2))[:, None]
    profiles = torch.stack([images.sum(1), images.sum(2)], dim=1)  # [B, 2, pixels along the axis]
    axes = torch.stack([torch.arange(28.0), torch.arange(28.0)])
    centres = (profiles * axes).sum(2) / total
    variances = (profiles * (axes - centres[:, :, None]) ** 2).sum(2) / total
    return centres, variances.sqrt()


def test_the_numbers_depend_on_seed_and_step_alone() -> None:
    numbers = draw_strangers(64, 3, 7)
    assert numbers.shape == (64, COLUMNS)
    assert numbers.dtype == torch.float32
    torch.rand(5)  # the global generator has no say
    assert torch.equal(draw_strangers(64, 3, 7), numbers)
    for seed, step in ((3, 8), (4, 7), (7, 3)):
        assert not torch.isclose(draw_strangers(64, seed, step), numbers).any(dim=1).all()


def test_the_numbers_are_not_those_of_the_distortions() -> None:
    theirs = (draw(1, 3, 7)[0, :COLUMNS] + 1) / 2
    assert not torch.isclose(draw_strangers(1, 3, 7)[0], theirs, atol=1e-5).any()


def test_the_numbers_fill_their_range_row_by_row() -> None:
    numbers = draw_strangers(4096, 0, 1)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert (numbers.mean(dim=0) - 0.5).abs().max() < 0.02  # standard error 0.0045
    assert len(numbers.unique(dim=0)) == 4096
    correlations = torch.corrcoef(torch.cat([numbers[:-1], numbers[1:]], dim=1).T)  # of neighbours, too
    assert (correlations - torch.eye(2 * COLUMNS)).abs().max() < 0.08  # standard error 0.016


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 30])
def test_each_share_of_a_batch_has_the_rows_of_the_whole(mnist5k: Dataset, parts: int) -> None:
    """20 strangers among 50: in 30 parts some have no stranger, in 3 not all have as many."""
    images, labels, train = mnist5k.train.images[:50], mnist5k.train.labels[:50], mnist5k.train
    numbers = draw_strangers(20, 0, 1)
    pictures, targets = mix_in(images, labels, train, numbers)
    for part in range(parts):
        ours = slice(part, None, parts)
        share = mix_in(images[ours], labels[ours], train, numbers[ours])
        torch.testing.assert_close(share[0], pictures[ours], rtol=0, atol=0.05)  # of 255
        assert torch.equal(share[1], targets[ours])


def test_a_stranger_depends_on_its_row_alone(mnist5k: Dataset) -> None:
    images, labels, train = mnist5k.train.images[:50], mnist5k.train.labels[:50], mnist5k.train
    before, _ = mix_in(images, labels, train, draw_strangers(50, 0, 1))
    numbers, others, other_labels = draw_strangers(50, 0, 2), images.flip(0), labels.flip(0)
    numbers[7], others[7], other_labels[7] = draw_strangers(50, 0, 1)[7], images[7], labels[7]
    after, _ = mix_in(others, other_labels, train, numbers)
    changed = (after - before).abs().amax((1, 2)) > 1
    assert changed.nonzero().flatten().tolist() == [row for row in range(50) if row != 7]


def test_the_first_rows_become_strangers_and_the_rest_stays(mnist5k: Dataset) -> None:
    images, labels = mnist5k.train.images[:100], mnist5k.train.labels[:100]
    numbers = draw_strangers(30, 0, 1)
    pictures, targets = mix_in(images, labels, mnist5k.train, numbers)
    assert (pictures.dtype, targets.dtype) == (torch.float32, torch.float32)
    assert torch.equal(pictures[30:], images[30:].float())
    partners = mnist5k.train.images[(numbers[:, 1] * len(mnist5k.train)).long()]
    expected = make_strangers(images[:30].float(), partners.float(), labels[:30], numbers)
    assert torch.equal(pictures[:30], expected)
    assert (pictures[:30] - images[:30]).abs().amax((1, 2)).min() > 100


def test_a_stranger_is_every_digit_alike_and_a_digit_is_itself(mnist5k: Dataset) -> None:
    images, labels = mnist5k.train.images[:100], mnist5k.train.labels[:100]
    _, targets = mix_in(images, labels, mnist5k.train, draw_strangers(30, 0, 1))
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(100))
    assert targets[:30].eq(torch.tensor(0.1)).all()
    assert torch.equal(targets[30:].argmax(dim=1), labels[30:])
    assert targets[30:].amax(dim=1).eq(1).all()


def test_bytes_and_floats_give_the_same_and_are_left_alone(mnist5k: Dataset) -> None:
    images, labels = mnist5k.train.images[:100], mnist5k.train.labels[:100].clone()
    floats, numbers = images.float(), draw_strangers(30, 0, 1)
    of_bytes, of_floats = (mix_in(each, labels, mnist5k.train, numbers)[0] for each in (images, floats))
    assert torch.equal(of_bytes, of_floats)
    assert torch.equal(floats, images.float())
    assert torch.equal(labels, mnist5k.train.labels[:100])


@pytest.mark.parametrize("samples", [0, 5])
def test_a_batch_without_strangers_stays_as_it_is(mnist5k: Dataset, samples: int) -> None:
    images, labels = mnist5k.train.images[:samples], mnist5k.train.labels[:samples]
    pictures, targets = mix_in(images, labels, mnist5k.train, draw_strangers(0, 0, 1))
    assert torch.equal(pictures, images.float())
    assert targets.shape == (samples, 10)
    assert torch.equal(targets.argmax(dim=1), labels) or samples == 0


def test_ink_stays_white_on_black_and_is_not_lost(mnist5k: Dataset) -> None:
    pictures, _ = mix_in(
        mnist5k.train.images, mnist5k.train.labels, mnist5k.train, draw_strangers(4000, 0, 1)
    )
    assert pictures.min() >= 0
    assert pictures.max() < 255.01  # rounding
    assert pictures.amax((1, 2)).min() > 150
    kept = pictures.sum((1, 2)) / mnist5k.train.images.sum((1, 2))
    assert 0.7 < kept.mean() < 1.7
    assert kept.min() > 0.2


def test_a_pair_has_one_digit_on_each_side(mnist5k: Dataset) -> None:
    digits, others, pairs = make(PAIR, mnist5k.train)
    ink = digits.sum((1, 2)) + others.sum((1, 2))
    for half in (pairs[:, :, :14], pairs[:, :, 14:]):
        assert (half.sum((1, 2)) / ink).min() > 0.03  # a digit of half its size has a quarter of its ink
        assert half.amax((1, 2)).min() > 100
    assert (pairs.sum((1, 2)) / ink).max() < 0.6


def test_the_digits_of_a_pair_keep_their_aspect_and_a_gap(mnist5k: Dataset) -> None:
    """At half its size and a quarter of the picture's width from the middle, each is whole and alone."""
    digits, others = mnist5k.train.images[:400].float(), mnist5k.train.images[400:800].float()
    numbers = numbers_of(PAIR, 400)
    numbers[:, 2], numbers[:, 3] = 0, (0.25 - 0.18) / (0.38 - 0.18)
    pairs = make_strangers(digits, others, torch.ones(400, dtype=torch.int64), numbers)
    assert (pairs[:, :, 13:15].sum((1, 2)) == 0).float().mean() > 0.9
    for alone, half, middle in ((digits, slice(14), 6.5), (others, slice(14, 28), 20.5)):
        part = torch.zeros_like(pairs)
        part[:, :, half] = pairs[:, :, half]
        (centre, spread), (place, size) = moments(part), moments(alone)
        expected = torch.tensor([middle, 13.5]) + (place - 13.5) / 2
        assert (centre - expected).abs().max() < 0.6
        ratio = spread / size
        assert (ratio.median(dim=0).values - 0.5).abs().max() < 0.05
        assert (ratio[:, 0] / ratio[:, 1] - 1).abs().quantile(0.9) < 0.15


@pytest.mark.parametrize(("side", "mirrored"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_a_lying_digit_is_a_quarter_turn(mnist5k: Dataset, side: int, mirrored: int) -> None:
    digits = mnist5k.train.images[:400].float()
    numbers = numbers_of(LYING, 400, middle=True)
    numbers[:, 5], numbers[:, 6] = (0.75, 0.25)[side], (0.25, 0.75)[mirrored]
    lying = make_strangers(digits, digits.flip(0), torch.ones(400, dtype=torch.int64), numbers)
    expected = np.rot90(digits.numpy(), (3, 1)[side], axes=(1, 2)).copy()
    if mirrored:
        expected = expected[:, :, ::-1].copy()
    torch.testing.assert_close(lying, torch.from_numpy(expected), rtol=0, atol=0.05)  # of 255


def test_a_lying_digit_is_tilted_and_shifted_within_bounds() -> None:
    """Where three dots go: the middle, one to its right, one below."""
    dots = torch.zeros(3, 28, 28)
    for dot, (row, column) in zip(dots, ((13, 13), (13, 19), (19, 13)), strict=True):
        dot[row : row + 2, column : column + 2] = 255
    numbers, labels = numbers_of(LYING, 500), torch.ones(500, dtype=torch.int64)
    middle, right, below = (
        moments(make_strangers(each, each, labels, numbers))[0]
        for each in dots[:, None].expand(3, 500, 28, 28)
    )
    assert (middle - 13.5).norm(dim=1).max() < 4.2
    (right_x, right_y), (below_x, below_y) = (right - middle).T, (below - middle).T
    for length, along in ((right - middle, right_y), (below - middle, below_x)):
        assert (length.norm(dim=1) - 6).abs().max() < 0.5
        tilt = (along.abs() / length.norm(dim=1)).clamp(max=1).acos()
        assert 0.4 < tilt.max() < 0.6
        assert 0.3 < (along > 0).float().mean() < 0.7  # to both sides
    turned = right_x * below_y - right_y * below_x
    assert 0.3 < (turned > 0).float().mean() < 0.7  # mirrored or not


def test_a_ring_never_lies_alone(mnist5k: Dataset) -> None:
    rings = mnist5k.train.images[mnist5k.train.labels == 0][:100].float()
    others = mnist5k.train.images[:100].float()
    zeros, ones = torch.zeros(100, dtype=torch.int64), torch.ones(100, dtype=torch.int64)
    found = make_strangers(rings, others, zeros, numbers_of(LYING, 100))
    assert torch.equal(found, make_strangers(rings, others, zeros, numbers_of(PAIR, 100)))
    assert not torch.equal(found, make_strangers(rings, others, ones, numbers_of(LYING, 100)))


def test_one_digit_lies_across_another(mnist5k: Dataset) -> None:
    digits, others, crossed = make(CROSSED, mnist5k.train)
    lying = make_strangers(digits, others, torch.ones(400, dtype=torch.int64), numbers_of(LYING, 400))
    torch.testing.assert_close(crossed, torch.maximum(lying, others), rtol=0, atol=0.05)  # of 255


def test_each_kind_is_a_third(mnist5k: Dataset) -> None:
    count = 3000
    digits, others = mnist5k.train.images[:1].float(), mnist5k.train.images[1:2].float()
    numbers = torch.full((count, COLUMNS), 0.5)
    numbers[:, 0] = draw_strangers(count, 0, 1)[:, 0]
    made = make_strangers(
        digits.expand(count, -1, -1),
        others.expand(count, -1, -1),
        torch.ones(count, dtype=torch.int64),
        numbers,
    )
    _, counts = made.unique(dim=0, return_counts=True)
    assert len(counts) == 3
    assert (counts / count - 1 / 3).abs().max() < 0.04  # standard error 0.009


def test_a_net_that_has_seen_strangers_doubts_others_and_still_reads_digits(mnist5k: Dataset) -> None:
    """The strangers that are asked about are made of test digits."""
    test, accelerator, normalize = mnist5k.test, Accelerator(cpu=True), Normalize(0.5, 0.5)
    strangers, _ = mix_in(test.images[:500], test.labels[:500], test, draw_strangers(500, 9, 0))
    confidences, accuracies = [], []
    for share in (0.0, 0.2):
        config = TrainConfig(epochs=5, batch_size=100, lr=4e-3, schedule="one-cycle", strangers=share)
        learner, course, _ = fit(config, mnist5k.train, test, accelerator)
        with torch.no_grad():
            probabilities = learner.net(normalize(strangers)).softmax(dim=1)
        confidences.append(probabilities.amax(dim=1).mean().item())
        accuracies.append(course.epochs[-1].validation.accuracy)
    assert confidences[1] < 0.5 * confidences[0]  # with four seeds: 0.40 to 0.43 of it
    assert accuracies[1] > accuracies[0] - 0.015  # with four seeds: between 0.002 lower and 0.002 higher
