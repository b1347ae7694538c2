"""Random distortions of digits, as hands and pens make them: batched, on the device of the images."""

import functools
import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate, pad

from serve_cli.spec import IMAGE_SIZE

ROTATION = math.radians(15)
"""Greatest rotation to either side; this and the amplitudes below were tuned on held-out digits (LOG.md)."""

SHEAR = 0.15
"""Greatest slant: pixels sideways for each pixel down."""

LOG_SCALE = 0.12
"""Greatest natural logarithm of the factor of width, and apart from it of height."""

SHIFT = 1.5
"""Greatest shift along each axis, in pixels."""

BEND = 1.5
"""Greatest displacement of a knot of the elastic field along each axis, in pixels."""

THICKEN, THIN = 0.6, 0.5
"""Greatest share of a stroke dilated, and of one eroded, by one pixel to each side."""

HARDEN = 2.0
"""Greatest gain that is added to 1 about middle grey: 3 makes the edges of a stroke nearly black or white."""

KNOTS = 5
"""Knots of the elastic field along each axis, 6.75 pixels apart: whole strokes bend, not their edges."""

POSE, PEN = 6, 2
COLUMNS = 1 + POSE + 2 * KNOTS**2 + PEN
"""Dose; rotation, slant, width, height, shift x and y; bends in x, then in y; thickness, hardness."""

STREAM = 1
"""Parts these numbers from the order of the samples. Not 0: SeedSequence([a, b]) equals ([a, b, 0])."""


def draw_distortions(samples: int, seed: int, step: int) -> Tensor:
    """All random numbers of one global batch: float32 [samples, COLUMNS] on the CPU, uniform in [-1, 1).

    They depend on seed and step alone, and row i decides alone how sample i is distorted.
    """
    return torch.rand(samples, COLUMNS, generator=generator(seed, step, STREAM)) * 2 - 1


def generator(*key: int) -> torch.Generator:
    """A generator on the CPU whose numbers depend on all parts of `key`, each at least 0.

    Resuming needs no random state for that.
    """
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> 1))


def distort(images: Tensor, numbers: Tensor, strength: float) -> Tensor:
    """Distort uint8 `images` [B, 28, 28] by `numbers` [B, COLUMNS]: float32 [B, 28, 28], 0 to 255.

    `strength` scales all distortions: 1 is the tuned mixture, 0 leaves the images as they are. In the mixture
    each sample has its own dose from 0 to 1, with density 2 * dose, so that light distortions occur too.
    """
    ink = images.to(torch.float32)
    if strength == 0:
        return ink
    dose = strength * ((1 + numbers[:, :1]) / 2).sqrt()  # [B, 1]
    pose, bend, pen = (dose * numbers[:, 1:]).split((POSE, 2 * KNOTS**2, PEN), dim=1)
    ink = grid_sample(ink[:, None], _grid(pose, bend), align_corners=False)[:, 0]
    thickness, hardness = pen[:, :, None, None].unbind(dim=1)  # each [B, 1, 1]
    return _harden(_thicken(ink, thickness), hardness)


def _grid(pose: Tensor, bend: Tensor) -> Tensor:
    """Where each pixel comes from, [B, 28, 28, 2], in grid_sample's units: half an image is 1.

    Rotation by a, slant k and the scales sx, sy give x' = sx * (cos a * x + (k * cos a - sin a) * y) and
    y' = sy * (sin a * x + (k * sin a + cos a) * y). The determinant is sx * sy: never a mirror image.
    """
    angle, slant = ROTATION * pose[:, 0], SHEAR * pose[:, 1]
    width, height = (LOG_SCALE * pose[:, 2:4]).exp().unbind(dim=1)
    shift_x, shift_y = (SHIFT / (IMAGE_SIZE / 2) * pose[:, 4:6]).unbind(dim=1)
    bend_x, bend_y = (BEND / (IMAGE_SIZE / 2) * bend).chunk(2, dim=1)
    cos, sin = angle.cos(), angle.sin()
    x = torch.stack([shift_x, width * cos, width * (slant * cos - sin)], dim=1)
    y = torch.stack([shift_y, height * sin, height * (slant * sin + cos)], dim=1)
    weights = torch.stack([torch.cat([x, bend_x], dim=1), torch.cat([y, bend_y], dim=1)])  # [2, B, 28]
    return (weights @ _fields(pose.device)).permute(1, 2, 0).unflatten(1, (IMAGE_SIZE, IMAGE_SIZE))


@functools.cache
def _fields(device: torch.device) -> Tensor:
    """What a map is a weighted sum of, float32 [3 + KNOTS**2, 784]: 1, x, y, and the bump of each knot.

    The bumps make bicubic interpolation between the knots, whose outermost lie on the outermost pixels.
    """
    axis = (torch.arange(IMAGE_SIZE) + 0.5) / (IMAGE_SIZE / 2) - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    knots = torch.eye(KNOTS**2).view(KNOTS**2, 1, KNOTS, KNOTS)
    bumps = interpolate(knots, (IMAGE_SIZE, IMAGE_SIZE), mode="bicubic", align_corners=True)
    return torch.cat([torch.stack([torch.ones_like(x), x, y]), bumps[:, 0]]).flatten(1).to(device)


def _thicken(ink: Tensor, thickness: Tensor) -> Tensor:
    """Blend `ink` [B, 28, 28] with its dilation, or its erosion where `thickness` [B, 1, 1] is below 0.

    Erosion is the dilation of the negative, so that one pass serves both.
    """
    sign = torch.where(thickness < 0, -1.0, 1.0)
    share = torch.where(thickness < 0, -THIN, THICKEN) * thickness
    return torch.lerp(ink, sign * _greatest_nearby(sign * ink), share)


def _greatest_nearby(ink: Tensor) -> Tensor:
    """The maximum over 3x3 pixels of `ink` [B, 28, 28] within -255 to 255; 7 times as fast as max_pool2d."""
    ink = pad(ink, (1, 1, 1, 1), value=-255.0)
    rows = torch.maximum(torch.maximum(ink[:, :-2], ink[:, 1:-1]), ink[:, 2:])
    return torch.maximum(torch.maximum(rows[..., :-2], rows[..., 1:-1]), rows[..., 2:])


def _harden(ink: Tensor, hardness: Tensor) -> Tensor:
    """Steepen the edges in `ink` [B, 28, 28] where `hardness` [B, 1, 1] is above 0, within 0 to 255."""
    return torch.addcmul(ink, HARDEN * hardness.clamp(min=0), ink - 127.5).clamp(0, 255)
