"""Distortions: decided by numbers alone, sample by sample, and still digits."""

import pytest
import torch
from torch import Tensor

from trainer.augment import COLUMNS, distort, draw_distortions
from trainer.data import Dataset
from trainer.outliers import COLUMNS as OUTLIER_COLUMNS
from trainer.outliers import draw_outliers


def centres(images: Tensor) -> Tensor:
    """Centre of mass (x, y) of each image, in pixels, [B, 2]."""
    axis = torch.arange(28.0)
    return torch.stack([images.sum(1) @ axis, images.sum(2) @ axis], dim=1) / images.sum((1, 2))[:, None]


@pytest.mark.parametrize(
    ("draw", "columns", "low"), [(draw_distortions, COLUMNS, -1), (draw_outliers, OUTLIER_COLUMNS, 0)]
)
def test_the_random_numbers_depend_on_seed_and_step_alone_and_fill_their_range(draw, columns, low) -> None:  # type: ignore[no-untyped-def]
    numbers = draw(64, 3, 7)
    assert (numbers.shape, numbers.dtype) == ((64, columns), torch.float32)
    torch.rand(5)  # the global generator does not matter
    assert torch.equal(draw(64, 3, 7), numbers)
    for seed, step in ((3, 8), (4, 7), (7, 3)):
        assert not torch.isclose(draw(64, seed, step), numbers).any(dim=1).all()

    numbers = (draw(4096, 0, 1) - low) / (1 - low)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert (numbers.mean(dim=0) - 0.5).abs().max() < 0.02  # standard error 0.0045
    assert (numbers.std(dim=0) - 12**-0.5).abs().max() < 0.015
    assert len(numbers.unique(dim=0)) == 4096
    neighbours = torch.corrcoef(torch.cat([numbers[:-1], numbers[1:]], dim=1).T)
    assert (neighbours - torch.eye(2 * columns)).abs().max() < 0.09  # standard error 0.016


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_distort_their_samples_as_one_process_would(mnist5k: Dataset, processes: int) -> None:
    images, numbers = mnist5k.train.images[:50], draw_distortions(50, 0, 1)
    whole = distort(images, numbers, 1.0)
    for rank in range(processes):
        part = distort(images[rank::processes], numbers[rank::processes], 1.0)
        torch.testing.assert_close(part, whole[rank::processes], rtol=0, atol=0.05)  # of 255


def test_strength_scales_the_distortion_from_nothing(mnist5k: Dataset) -> None:
    images, numbers = mnist5k.train.images[:200], draw_distortions(200, 0, 1)
    before = images.clone()
    changes = [
        (distort(images, numbers, strength) - images).abs().mean().item()
        for strength in (0, 1e-6, 0.3, 0.6, 1)
    ]
    assert changes[0] == 0
    assert changes[1] < 0.01
    assert changes == sorted(changes)
    assert changes[-1] > 10
    assert torch.equal(images, before)


def test_digits_keep_their_ink_and_their_place(mnist5k: Dataset) -> None:
    images = mnist5k.train.images[::4]
    result = distort(images, draw_distortions(len(images), 0, 1), 1.0)
    assert result.min() >= 0
    assert result.max() <= 255
    assert result.amax((1, 2)).min() > 100
    assert (result[:, [0, 0, -1, -1], [0, -1, 0, -1]] == 0).float().mean() > 0.99
    kept = result.sum((1, 2)) / images.sum((1, 2))
    assert 0.25 < kept.min() <= kept.max() < 2.5
    assert 0.9 < kept.mean() < 1.25
    moved = centres(result) - centres(images.to(torch.float32))
    assert moved.abs().max() < 3
    assert (moved.std(dim=0) > 0.3).all()
    assert moved.mean(dim=0).abs().max() < 0.15


def dot(row: int, column: int) -> Tensor:
    """One image with a dot that survives thinning, uint8 [1, 28, 28]."""
    image = torch.zeros(1, 28, 28, dtype=torch.uint8)
    image[:, row - 1 : row + 2, column - 1 : column + 2] = 255
    return image


def test_no_distortion_mirrors() -> None:
    numbers = draw_distortions(500, 0, 1).sign()  # every distortion at one of its ends
    numbers[:, 0] = 1
    corner, right, below = (
        centres(distort(dot(*at).expand(500, -1, -1), numbers, 1.0)) for at in ((9, 9), (9, 18), (18, 9))
    )
    (right_x, right_y), (below_x, below_y) = (right - corner).T, (below - corner).T
    assert (right_x * below_y - right_y * below_x).min() > 20  # 81 where nothing moves
    assert right_x.min() > 4
    assert below_y.min() > 4


def test_pens_are_thicker_thinner_and_harder(mnist5k: Dataset) -> None:
    images = mnist5k.train.images[::40]

    def with_pen(thickness: float, hardness: float) -> Tensor:
        numbers = torch.zeros(len(images), COLUMNS)
        numbers[:, 0], numbers[:, -2], numbers[:, -1] = 1, thickness, hardness
        return distort(images, numbers, 1.0)

    def grey(images: Tensor) -> Tensor:
        """Pixels of each image that are neither black nor white, [B]."""
        return ((images > 0) & (images < 255)).sum((1, 2))

    ink = images.sum((1, 2))
    assert 1.2 < (with_pen(1, 0).sum((1, 2)) / ink).median() < 2
    assert 0.4 < (with_pen(-1, 0).sum((1, 2)) / ink).median() < 0.85
    assert (grey(with_pen(0, 1)) / grey(images)).median() < 0.6
