"""From a person's picture to what MNIST would have stored: uint8 [28, 28], white ink on black.

The geometry is MNIST's own (LeCun, Cortes, Burges, http://yann.lecun.com/exdb/mnist/): the digit fits a
20x20 box with its aspect kept, and its centre of mass lies at the centre of 28x28.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from serve_cli.spec import IMAGE_SIZE

BOX = 20
"""Side of the box that MNIST fits a digit into, in pixels."""

FINE = 4
"""How much finer than the result strokes are looked at."""

THIN = 2.0
"""Stroke width in pixels of the result below which a stroke is widened to it: three quarters of MNIST's
training digits are wider."""

CENTRE = 14.0
"""Row and column, counted from 0, of a digit's centre of mass: the middle of what MNIST has."""

OFF_CENTRE = 0.52
"""How far the centre of mass of a genuine picture lies from CENTRE: measured on all 70,000 of MNIST."""

WORKING_SIZE = 512
"""Longest side that is looked at; ample for a digit that ends as 20 pixels."""

MIN_CONTRAST = 16
"""Grey levels (of 255) between ink and background below which a picture counts as blank."""

STROKE_SHARE = 0.02
"""Per cent of the pixels that even a small hairline covers: the weakest of them sets the strength of ink."""

FAINT = 0.2
"""Share of the strength of ink below which a pixel is paper: noise, shadows, the halo of JPEG."""

BOX_INK = 0.3
"""Ink above which a pixel belongs to the digit's box."""

PAPER_TOLERANCES = (64.0, 32.0, 16.0, 16.0)
"""Grey levels from the fitted paper within which a pixel counts as paper, in each round of the fit."""


@dataclass(frozen=True)
class Preprocessed:
    """What the net gets to see: `pixels` uint8 [28, 28], white ink on black; black for a blank picture.

    `refusal` says why they are no single digit, None where nothing speaks against it; `decisions` is what was
    found on the way, for the JSON answer.
    """

    pixels: np.ndarray
    refusal: str | None = None
    decisions: Mapping[str, Any] = field(default_factory=dict)


BLANK = Preprocessed(np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.uint8), "the picture is blank")


def to_mnist(grey: np.ndarray) -> Preprocessed:
    """Read the digit in grey levels `grey`, uint8 [H, W], of any size and polarity.

    A genuine 28x28 MNIST picture comes back bit for bit.
    """
    if is_mnist(grey):
        return Preprocessed(grey)
    ink = ink_of(shrink(grey))  # float32 [H, W], 0 to 1
    if ink is None:
        return BLANK
    digit = crop(ink)
    return Preprocessed(place(fit(digit)))


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
    """How much ink lies on each pixel, 0 to 1, whatever the polarity; None when there is none.

    Ink is what differs from the paper; of dark and light, the side with more contrast is the ink.
    """
    difference = grey.astype(np.float32) - paper_of(grey)
    strength = np.percentile(np.abs(difference), 100 - STROKE_SHARE)
    if strength < MIN_CONTRAST:
        return None
    far = difference[np.abs(difference) > strength / 2]
    ink = difference * (1 if far.sum() > 0 else -1) / strength
    return np.clip((ink - FAINT) / (1 - FAINT), 0, 1)


def paper_of(grey: np.ndarray) -> np.ndarray:
    """Brightness of the background under each pixel, float32 [H, W]: light that falls unevenly included.

    A quadratic surface is fitted to the picture by least squares, starting from the border's level and
    leaving out, round after round, what lies far from it: the strokes.
    """
    height, width = grey.shape
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1).reshape(-1, 6)
    levels = grey.reshape(-1).astype(np.float64)
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    surface = np.full(levels.shape, np.median(border))
    for tolerance in PAPER_TOLERANCES:
        near = np.abs(levels - surface) <= tolerance
        if near.any():
            surface = terms @ least_squares(terms[near], levels[near])
    return surface.reshape(height, width).astype(np.float32)


def least_squares(terms: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Coefficients of `terms` [N, K] that fit `values` [N] best, by the K x K normal equations."""
    return np.linalg.lstsq(terms.T @ terms, terms.T @ values, rcond=None)[0]


def crop(ink: np.ndarray) -> np.ndarray:
    """Cut to the bounding box of what is clearly ink."""
    rows, columns = extent(ink > BOX_INK)
    return ink[rows, columns]


def fit(ink: np.ndarray) -> np.ndarray:
    """Scale so that the longer side is 20 pixels, the aspect kept and hairlines not lost; uint8."""
    fine = resize(ink, BOX * FINE)
    drawn = resize(thicken(fine), BOX)
    return (drawn * (255 / drawn.max())).round().astype(np.uint8)


def resize(ink: np.ndarray, longest: int) -> np.ndarray:
    """Scale `ink` so that its longer side has `longest` pixels, averaging when it shrinks."""
    scale = longest / max(ink.shape)
    height, width = (max(1, round(side * scale)) for side in ink.shape)
    resampling = Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
    return np.clip(np.asarray(Image.fromarray(ink).resize((width, height), resampling)), 0, 1)


def thicken(fine: np.ndarray) -> np.ndarray:
    """Widen strokes that are thinner than MNIST's; `fine` has FINE pixels for each one of the result."""
    strength = np.percentile(fine[fine > 0], 90)
    fine = np.clip(fine / strength, 0, 1)
    radius = round((THIN * FINE - stroke_width(fine)) / 2)
    if radius <= 0:
        return fine
    padded = Image.fromarray(np.pad(fine, radius))
    levels = Image.fromarray((np.asarray(padded) * 255).astype(np.uint8))
    return np.asarray(levels.filter(ImageFilter.MaxFilter(2 * radius + 1)), dtype=np.float32) / 255


def stroke_width(ink: np.ndarray) -> float:
    """Mean width of the strokes in pixels: twice their area over the length of their outline."""
    padded = np.pad(ink, 1)
    outline = np.hypot(np.diff(padded, axis=0)[:, :-1], np.diff(padded, axis=1)[:-1]).sum()
    return float(2 * ink.sum() / outline)


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
