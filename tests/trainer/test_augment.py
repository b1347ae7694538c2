"""Distortions: decided by numbers alone, sample by sample, and still digits."""

import pytest
import torch
from torch import Tensor

from trainer.augment import COLUMNS, distort, draw
from trainer.data import Dataset


def centres(images: Tensor) -> Tensor:
    """Centre of mass (x, y) of each image, in pixels, [B, 2]."""
    total = images.sum((1, 2))
    axis = torch.arange(28.0)
    return torch.stack([images.sum(1) @ axis, images.sum(2) @ axis], dim=1) / total[:, None]


def dot(row: int, column: int) -> Tensor:
    """One image with a dot that survives thinning, uint8 [1, 28, 28]."""
    image = torch.zeros(1, 28, 28, dtype=torch.uint8)
    image[:, row - 1 : row + 2, column - 1 : column + 2] = 255
    return image


def test_the_numbers_depend_on_seed_and_step_alone() -> None:
    numbers = draw(64, 3, 7)
    assert numbers.shape == (64, COLUMNS)
    assert numbers.dtype == torch.float32
    torch.rand(5)  # the global generator has no say
    assert torch.equal(draw(64, 3, 7), numbers)
    for seed, step in ((3, 8), (4, 7), (7, 3)):
        assert not torch.isclose(draw(64, seed, step), numbers).any(dim=1).all()


def test_the_numbers_fill_their_range() -> None:
    numbers = draw(2048, 0, 1)
    assert numbers.min() >= -1
    assert numbers.max() < 1
    assert numbers.mean(dim=0).abs().max() < 0.06  # standard error 0.013
    assert (numbers.std(dim=0) - 3**-0.5).abs().max() < 0.03


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_distort_their_rows_as_one_process_would(mnist5k: Dataset, world: int) -> None:
    images, numbers = mnist5k.train.images[:50], draw(50, 0, 1)
    whole = distort(images, numbers, 1.0)
    for rank in range(world):
        part = distort(images[rank::world], numbers[rank::world], 1.0)
        torch.testing.assert_close(part, whole[rank::world], rtol=0, atol=0.05)  # of 255


def test_strength_0_leaves_the_images_as_they_are(mnist5k: Dataset) -> None:
    images = mnist5k.train.images[:50]
    result = distort(images, draw(50, 0, 1), 0.0)
    assert result.dtype == torch.float32
    assert torch.equal(result, images.to(torch.float32))


def test_strength_scales_the_distortion_from_nothing(mnist5k: Dataset) -> None:
    images, numbers = mnist5k.train.images[:200], draw(200, 0, 1)
    changes = [
        (distort(images, numbers, strength) - images).abs().mean().item() for strength in (1e-6, 0.3, 0.6, 1)
    ]
    assert changes[0] < 0.01
    assert changes == sorted(changes)
    assert changes[-1] > 10


def test_the_input_is_left_alone(mnist5k: Dataset) -> None:
    images = mnist5k.train.images[:20].to(torch.float32)
    before = images.clone()
    distort(images, draw(20, 0, 1), 1.0)
    assert torch.equal(images, before)


def test_an_empty_batch_stays_empty() -> None:
    result = distort(torch.zeros(0, 28, 28, dtype=torch.uint8), draw(0, 0, 1), 1.0)
    assert result.shape == (0, 28, 28)
    assert result.dtype == torch.float32


def test_ink_stays_white_on_black_and_is_not_lost(mnist5k: Dataset) -> None:
    images = mnist5k.train.images[::4]
    result = distort(images, draw(len(images), 0, 1), 1.0)
    assert result.min() >= 0
    assert result.max() <= 255
    assert result.amax((1, 2)).min() > 100
    corners = result[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == 0).float().mean() > 0.99
    kept = result.sum((1, 2)) / images.sum((1, 2))
    assert kept.min() > 0.25
    assert kept.max() < 2.5
    assert 0.9 < kept.mean() < 1.25


def test_digits_stay_within_three_pixels_of_their_place(mnist5k: Dataset) -> None:
    images = mnist5k.train.images[::4]
    result = distort(images, draw(len(images), 0, 1), 1.0)
    moved = centres(result) - centres(images.to(torch.float32))
    assert moved.abs().max() < 3
    assert (moved.std(dim=0) > 0.3).all()
    assert moved.mean(dim=0).abs().max() < 0.15


@pytest.mark.parametrize("most", [False, True])
def test_no_distortion_mirrors(most: bool) -> None:
    numbers = draw(500, 0, 1)
    if most:
        numbers = numbers.sign()  # every distortion at one of its ends
        numbers[:, 0] = 1
    corner, right, below = (
        centres(distort(dot(*at).expand(500, -1, -1), numbers, 1.0)) for at in ((9, 9), (9, 18), (18, 9))
    )
    (right_x, right_y), (below_x, below_y) = (right - corner).T, (below - corner).T
    assert (right_x * below_y - right_y * below_x).min() > 20  # 81 where nothing moves
    assert right_x.min() > 4
    assert below_y.min() > 4


@pytest.mark.parametrize(("column", "value", "least", "most"), [(-2, 1, 1.2, 2), (-2, -1, 0.4, 0.85)])
def test_pens_are_thicker_and_thinner(
    mnist5k: Dataset, column: int, value: float, least: float, most: float
) -> None:
    images = mnist5k.train.images[::40]
    numbers = torch.zeros(len(images), COLUMNS)
    numbers[:, 0], numbers[:, column] = 1, value
    kept = distort(images, numbers, 1.0).sum((1, 2)) / images.sum((1, 2))
    assert least < kept.median() < most


def test_hard_pens_have_fewer_grey_pixels(mnist5k: Dataset) -> None:
    images = mnist5k.train.images[::40]
    numbers = torch.zeros(len(images), COLUMNS)
    numbers[:, 0], numbers[:, -1] = 1, 1
    result = distort(images, numbers, 1.0)
    assert (grey(result) / grey(images)).median() < 0.6


def grey(images: Tensor) -> Tensor:
    """Pixels of each image that are neither black nor white, [B]."""
    return ((images > 0) & (images < 255)).sum((1, 2))
