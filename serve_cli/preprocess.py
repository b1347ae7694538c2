"""From a person's picture to what MNIST would have stored: uint8 [28, 28], white ink on black.

The geometry is MNIST's own (LeCun, Cortes, Burges, http://yann.lecun.com/exdb/mnist/): the digit fits a
20x20 box with its aspect kept, and its centre of mass lies at the centre of 28x28.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from serve_cli.spec import IMAGE_SIZE

BOX = 20
"""Side of the box that MNIST fits a digit into, in pixels."""

CENTRE = 14.0
"""Row and column, counted from 0, of a digit's centre of mass: the middle of what MNIST has."""

OFF_CENTRE = 0.52
"""How far the centre of mass of a genuine picture lies from CENTRE: measured on all 70,000 of MNIST."""

WORKING_SIZE = 512
"""Longest side that is looked at; ample for a digit that ends as 20 pixels."""

MIN_CONTRAST = 16
"""Grey levels (of 255) between ink and background below which a picture counts as blank."""

INK_THRESHOLD = 0.35
"""Share of the strongest ink above which a pixel belongs to the digit's box."""


@dataclass(frozen=True)
class Preprocessed:
    """`pixels` uint8 [28, 28]; `found` is False when the picture holds no ink (then it is black)."""

    pixels: np.ndarray
    found: bool


BLANK = Preprocessed(np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.uint8), found=False)


def to_mnist(grey: np.ndarray) -> Preprocessed:
    """Read the digit in grey levels `grey`, uint8 [H, W], of any size and polarity.

    A genuine 28x28 MNIST picture comes back bit for bit.
    """
    if is_mnist(grey):
        return Preprocessed(grey, found=True)
    ink = ink_of(shrink(grey))  # float32 [H, W], 0 to 1
    if ink is None:
        return BLANK
    digit = crop(ink)
    return Preprocessed(place(fit(digit)), found=True)


def is_mnist(grey: np.ndarray) -> bool:
    """Whether `grey` already has MNIST's geometry: 28x28, black around a 20x20 box, centred by mass."""
    if grey.shape != (IMAGE_SIZE, IMAGE_SIZE) or not grey.any():
        return False
    rows, columns = extent(grey > 0)
    box = max(rows.stop - rows.start, columns.stop - columns.start)
    off_centre = max(abs(centre - CENTRE) for centre in centre_of_mass(grey))
    return box <= BOX and off_centre <= OFF_CENTRE


def shrink(grey: np.ndarray) -> np.ndarray:
    """Reduce to at most WORKING_SIZE pixels a side by averaging."""
    longest = max(grey.shape)
    if longest <= WORKING_SIZE:
        return grey
    return np.asarray(Image.fromarray(grey).reduce(-(-longest // WORKING_SIZE)))


def ink_of(grey: np.ndarray) -> np.ndarray | None:
    """Distance of each pixel from the background, 0 to 1, whatever the polarity; None when there is no ink.

    The background is the median of the picture's border.
    """
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    distance = np.abs(grey.astype(np.float32) - np.median(border).astype(np.float32))
    strongest = np.percentile(distance[distance > MIN_CONTRAST / 2], 95) if (distance > MIN_CONTRAST).any() else 0
    if strongest <= MIN_CONTRAST:
        return None
    ink = np.clip(distance / strongest, 0, 1)
    return np.asarray(np.where(ink < INK_THRESHOLD / 2, 0, ink), dtype=np.float32)


def crop(ink: np.ndarray) -> np.ndarray:
    """Cut to the bounding box of what is clearly ink."""
    rows, columns = extent(ink > INK_THRESHOLD)
    return ink[rows, columns]


def fit(ink: np.ndarray) -> np.ndarray:
    """Scale so that the longer side is 20 pixels, the aspect kept; the strongest ink becomes 255."""
    scale = BOX / max(ink.shape)
    height, width = (max(1, round(side * scale)) for side in ink.shape)
    image = Image.fromarray(ink).resize((width, height), Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC)
    levels = np.clip(np.asarray(image), 0, None)
    return np.clip(levels * (255 / levels.max()), 0, 255).round().astype(np.uint8)


def place(digit: np.ndarray) -> np.ndarray:
    """Put a digit of at most 20x20 on a black 28x28 with its centre of mass at the centre."""
    pixels = np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    corner = [
        min(max(round(CENTRE - centre), 0), IMAGE_SIZE - side)
        for centre, side in zip(centre_of_mass(digit), digit.shape, strict=True)
    ]
    top, left = corner
    pixels[top : top + digit.shape[0], left : left + digit.shape[1]] = digit
    return pixels


def extent(mask: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of the smallest box around the True values of `mask`; there must be one."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def centre_of_mass(levels: np.ndarray) -> tuple[float, float]:
    """Mean row and column, weighted by `levels`."""
    weight = levels.astype(np.float64)
    rows, columns = np.indices(levels.shape)
    return float((rows * weight).sum() / weight.sum()), float((columns * weight).sum() / weight.sum())
