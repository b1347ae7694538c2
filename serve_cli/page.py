"""A picture as a page: paper, ink on it, and the marks that the ink makes."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from serve_cli.marks import Choice, Marks, choose, find_marks

WORKING_SIZE = 192
"""Longest side of the page that is looked at, in pixels."""

MIN_CONTRAST = 16
"""Grey levels (of 255) between ink and background below which a picture counts as blank."""

STROKE_SHARE = 2e-4
"""Share of the pixels that even a small hairline covers: the weakest of them sets the strength of ink."""

FAINT = 0.2
"""Share of the strength of ink below which a pixel is paper: noise, shadows, the halo of JPEG."""

CLEAR = 0.3
"""Ink from which on a pixel counts for the digit's box."""

SAMPLES = 33
"""Side of the grid of pixels that the paper is fitted to; odd, so that their median is one of them."""

PAPER_TOLERANCES = (64.0, 32.0, 16.0, 16.0)
"""Grey levels from the fitted paper within which a pixel counts as paper, in each round of the fit."""

UNEVEN = 0.1
"""Share of the page's edge that ink other than frames covers if it is really a shadow."""

WIDE_STROKE = 0.08
"""Half the width of the widest stroke, as a share of the page's shorter side, where the light is uneven."""

HEAVIEST = 0.06
"""Share of the pixels, the ones with the strongest contrast, that decide on dark or light ink there."""

DARKEST = 16
"""Grey levels added to all, so that the ratios of dark ones are not all noise."""


@dataclass(frozen=True)
class Page:
    """A picture as it is looked at: `ink` float32 [H, W], 0 to 1, its marks, and which of them are what.

    `contrast` is that of strong ink with the paper, in grey levels; `even` says whether the light is.
    """

    ink: np.ndarray
    dark: bool
    contrast: float
    even: bool
    marks: Marks
    choice: Choice

    @property
    def box(self) -> tuple[slice, slice]:
        """Rows and columns of the digit."""
        return self.marks.box(self.choice.digit)


def look(grey: np.ndarray) -> Page | None:
    """Find paper, ink and marks in `grey`, uint8 [H, W], made smaller if need be; None when there is no ink.

    Where ink seems to cover much of the page's edge, it is the light that is uneven, and the paper is
    estimated locally.
    """
    grey = shrink(grey)
    page = _page(grey - paper_surface(grey), even=True)
    if page is None or edge_share(page) < UNEVEN:
        return page
    return _page(local_difference(grey), even=False) or page


def _page(difference: np.ndarray, *, even: bool) -> Page | None:
    """The page whose brightness differs from its paper's by `difference`, float32 [H, W]."""
    distance = np.abs(difference)
    contrast = strength(distance)
    if contrast < MIN_CONTRAST:
        return None
    dark = bool(difference[distance > contrast / 2].sum() < 0)
    ink = (difference * ((-1 if dark else 1) / contrast) - FAINT) * (1 / (1 - FAINT))
    np.clip(ink, 0, 1, out=ink)
    clear = ink > CLEAR
    if not clear.any():
        return None
    marks = find_marks(ink > 0, clear)
    return Page(ink, dark, contrast, even, marks, choose(marks))


def shrink(grey: np.ndarray) -> np.ndarray:
    """Reduce to at most WORKING_SIZE pixels a side by averaging."""
    longest = max(grey.shape)
    if longest <= WORKING_SIZE:
        return grey
    return np.asarray(Image.fromarray(grey).reduce(-(-longest // WORKING_SIZE)))


def strength(contrast: np.ndarray) -> int:
    """The whole grey levels of contrast that only STROKE_SHARE of the pixels of `contrast` [H, W] exceed."""
    rank = round(contrast.size * (1 - STROKE_SHARE)) - 1
    return int(np.partition(np.minimum(contrast + 0.5, 255).astype(np.uint8), rank, axis=None)[rank])


def edge_share(page: Page) -> float:
    """The share of the page's edge that clear ink covers, frames and bars left out."""
    ink = (page.ink > CLEAR) & ~page.marks.mask(page.choice.frame)
    return float(np.concatenate([ink[0], ink[-1], ink[:, 0], ink[:, -1]]).mean())


def _powers(count: int) -> np.ndarray:
    """1, t and t squared at `count` places t from -1 to 1, float32 [count, 3]."""
    t = np.linspace(-1, 1, count, dtype=np.float32)
    return np.stack([np.ones_like(t), t, t * t], axis=1)


DOWN, ACROSS = np.array([(0, 0), (0, 1), (1, 0), (0, 2), (1, 1), (2, 0)]).T
"""The powers of y and of x in each of the six terms of a quadratic surface."""

TERMS = (_powers(SAMPLES)[:, None, DOWN] * _powers(SAMPLES)[:, ACROSS]).reshape(-1, 6).T.astype(float)
"""The terms at each sample, float64 [6, SAMPLES * SAMPLES]."""

RIDGE = 1e-6 * np.eye(6)
"""Keeps the fit solvable where too few samples are paper."""


def paper_surface(grey: np.ndarray) -> np.ndarray:
    """Brightness of the paper under each pixel, float32 [H, W]: light that falls off smoothly included.

    A quadratic surface is fitted by least squares, starting from the median and leaving out, round after
    round, what lies far from it: the strokes.
    """
    rows, columns = (np.linspace(0, side - 1, SAMPLES).round().astype(int) for side in grey.shape)
    levels = grey[rows[:, None], columns].reshape(-1).astype(float)
    surface = np.full(levels.shape, np.sort(levels)[len(levels) // 2])
    fitted_to = np.zeros(levels.shape, bool)
    for tolerance in PAPER_TOLERANCES:
        near = np.abs(levels - surface) <= tolerance
        if near.any() and (near != fitted_to).any():
            terms = TERMS * near
            fitted = np.linalg.solve(terms @ TERMS.T + RIDGE, terms @ levels)
            surface, fitted_to = fitted @ TERMS, near
    coefficients = np.zeros((3, 3), np.float32)
    coefficients[DOWN, ACROSS] = fitted
    height, width = grey.shape
    return _powers(height) @ coefficients @ _powers(width).T


def local_difference(grey: np.ndarray) -> np.ndarray:
    """How much brighter each pixel is than its paper, float32 [H, W], where the light is uneven.

    A morphological closing fills dark strokes with the paper around them and leaves shadows as they are, an
    opening does so with light ones (Serra, "Image Analysis and Mathematical Morphology", 1982). The ink is on
    the side on which the strongest ratios are larger, for a shadow dims paper and ink alike; what is dark
    counts as if all of the paper had the light of the brightest.
    """
    levels = grey + np.float32(DARKEST)
    radius = 1 + round(WIDE_STROKE * min(grey.shape))
    closed = -grow(-grow(levels, radius), radius)
    opened = grow(-grow(-levels, radius), radius)
    darker, lighter = (
        np.sort(ratio, axis=None)[-round(HEAVIEST * ratio.size) :].sum()
        for ratio in (np.log(closed / levels), np.log(levels / opened))
    )
    if lighter > darker:
        return levels - opened
    return (levels / closed - 1) * closed.max()


def grow(levels: np.ndarray, radius: int) -> np.ndarray:
    """The greatest of `levels` [H, W] in the square that reaches `radius` pixels to each side."""
    for _ in range(2 * radius):  # along the rows and along the columns by turns
        greatest = levels.copy()
        np.maximum(greatest[1:], levels[:-1], out=greatest[1:])
        np.maximum(greatest[:-1], levels[1:], out=greatest[:-1])
        levels = greatest.T
    return levels
