"""Outliers: pictures of no digit, made of digits, from which the net learns to be unsure.

Training with outliers and a uniform target: Hendrycks, Mazeika, Dietterich, "Deep Anomaly Detection with
Outlier Exposure", ICLR 2019. Letters, crosses, scribbles and two digits in one picture look like these.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from serve_cli.spec import CLASSES, IMAGE_SIZE
from trainer.augment import generator
from trainer.data import Split

SIDE_BY_SIDE, ACROSS, LYING = range(3)
"""Two digits next to each other, one across another, one that lies on its side."""

KINDS = 3
COLUMNS = 8
"""Kind; partner; size and distance of a pair; turn, to which side, mirrored or not; shift."""

SMALLEST, LARGEST = 0.5, 0.75
"""Size of each digit of a pair, as a share of its own."""

NEAREST, FARTHEST = 0.18, 0.38
"""Distance of each digit of a pair from the middle, as a share of the picture's width."""

TILT = 0.5
"""Greatest deviation from a quarter turn, in radians."""

OFF = 0.2
"""Greatest shift of a turned digit along each axis, as a share of half the picture's width."""

RING = 0
"""The digit that looks the same when it lies on its side."""

STREAM = 2
"""Parts these numbers from those of the distortions and the order of the samples."""


def draw_outliers(samples: int, seed: int, step: int) -> Tensor:
    """All random numbers of one step: float32 [samples, COLUMNS] on the CPU, uniform in [0, 1)."""
    return torch.rand(samples, COLUMNS, generator=generator(seed, step, STREAM))


def add_outliers(
    images: Tensor, labels: Tensor, targets: Tensor, train: Split, numbers: Tensor
) -> tuple[Tensor, Tensor]:
    """Turn the first S of `images`, [B, 28, 28], into outliers; S is the length of `numbers` [S, COLUMNS].

    `labels` are int64 [B], `targets` float32 [B, 10]; the second digit of a pair is from `train`. Returns
    float32 [B, 28, 28], and the targets [B, 10], which are all the same for an outlier.
    """
    count = len(numbers)
    others = train.images.index_select(0, (numbers[:, 1] * len(train)).long())
    ink = images.to(torch.float32)
    outliers = make_outliers(ink[:count], others.to(torch.float32), labels[:count], numbers)
    uniform = torch.full_like(targets[:count], 1 / CLASSES)
    return torch.cat([outliers, ink[count:]]), torch.cat([uniform, targets[count:]])


def make_outliers(images: Tensor, others: Tensor, labels: Tensor, numbers: Tensor) -> Tensor:
    """Make of `images` and `others`, each float32 [S, 28, 28], pictures that are no digits: the same.

    `labels`, int64 [S], are those of `images`; `numbers` [S, COLUMNS] are those of `draw_outliers`.
    """
    kind = (numbers[:, 0] * KINDS).long()
    kind = torch.where((kind == LYING) & (labels == RING), SIDE_BY_SIDE, kind)
    is_pair = (kind == SIDE_BY_SIDE)[:, None, None]
    left, right = _pair(numbers)
    first = _moved(images, torch.where(is_pair, left, _turned(numbers)))
    unmoved = torch.eye(2, 3, device=images.device)
    second = _moved(others, torch.where(is_pair, right, unmoved))
    return torch.maximum(first, second * (kind != LYING)[:, None, None])


def _pair(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """The maps of the left and of the right one of a pair, [S, 2, 3] each."""
    scale = 1 / (SMALLEST + (LARGEST - SMALLEST) * numbers[:, 2])
    distance = 2 * (NEAREST + (FARTHEST - NEAREST) * numbers[:, 3])
    zero = torch.zeros_like(scale)
    left, right = (
        torch.stack([scale, zero, side * scale * distance, zero, scale, zero], dim=1) for side in (1, -1)
    )
    return left.view(-1, 2, 3), right.view(-1, 2, 3)


def _turned(numbers: Tensor) -> Tensor:
    """The map of a digit that lies on one side or the other, mirrored or not, [S, 2, 3]."""
    side, mirror = (torch.where(column < 0.5, 1.0, -1.0) for column in numbers[:, 5:7].unbind(dim=1))
    angle = side * math.pi / 2 + TILT * (2 * numbers[:, 4] - 1)
    shift = OFF * (2 * numbers[:, 7] - 1)
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([mirror * cos, -sin, shift, mirror * sin, cos, -shift], dim=1).view(-1, 2, 3)


def _moved(images: Tensor, maps: Tensor) -> Tensor:
    """Each of `images` [S, 28, 28] as its map [S, 2, 3] moves it, in affine_grid's units."""
    if len(images) == 0:  # a share of a batch may hold none, and affine_grid refuses that
        return images
    grid = affine_grid(maps, [len(images), 1, IMAGE_SIZE, IMAGE_SIZE], align_corners=False)
    return grid_sample(images[:, None], grid, align_corners=False)[:, 0]
