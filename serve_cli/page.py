"""A picture as a page: paper, ink on it, and the marks that the ink makes."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

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

PAPER_SIZE = 48
"""Longest side of the grid on which the paper is estimated, in pixels."""

PAPER_TOLERANCES = (64.0, 32.0, 16.0, 16.0)
"""Grey levels from the fitted paper within which a pixel counts as paper, in each round of the fit."""

UNEVEN = 0.1
"""Share of the page's edge that ink other than frames covers if it is really a shadow."""

WIDE_STROKE = 9
"""Odd side of the window, in pixels of the grid of PAPER_SIZE, that is wider than any stroke."""

HEAVIEST = 150
"""Pixels of that grid, the ones with the strongest contrast, that decide on dark or light ink."""


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
    difference = grey - paper_surface(grey)
    page = _page(difference, is_dark(difference), even=True)
    if page is None or edge_share(page) < UNEVEN:
        return page
    dark, paper = local_paper(grey)
    return _page(grey - paper, dark, even=False) or page


def _page(difference: np.ndarray, dark: bool, *, even: bool) -> Page | None:
    """The page whose brightness differs from its paper's by `difference`, float32 [H, W]."""
    contrast = strength(np.abs(difference))
    if contrast < MIN_CONTRAST:
        return None
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


def strength(contrast: np.ndarray) -> float:
    """The contrast, in grey levels, that only STROKE_SHARE of the pixels of `contrast` [H, W] exceed."""
    rank = round(contrast.size * (1 - STROKE_SHARE)) - 1
    return float(np.partition(contrast, rank, axis=None)[rank])


def is_dark(difference: np.ndarray) -> bool:
    """Whether what differs most from the paper is darker than it; `difference` is float32 [H, W]."""
    contrast = np.abs(difference)
    return bool(difference[contrast > strength(contrast) / 2].sum() < 0)


def edge_share(page: Page) -> float:
    """The share of the page's edge that clear ink covers, frames and bars left out."""
    ink = (page.ink > CLEAR) & ~page.marks.mask(page.choice.frame)
    return float(np.concatenate([ink[0], ink[-1], ink[:, 0], ink[:, -1]]).mean())


def paper_surface(grey: np.ndarray) -> np.ndarray:
    """Brightness of the paper under each pixel, float32 [H, W]: light that falls off smoothly included.

    A quadratic surface is fitted by least squares, starting from the median and leaving out, round after
    round, what lies far from it: the strokes.
    """
    height, width = grey.shape
    step = -(-max(height, width) // PAPER_SIZE)
    y, x = np.linspace(-1, 1, height, dtype=np.float32)[:, None], np.linspace(-1, 1, width, dtype=np.float32)
    terms = np.stack(np.broadcast_arrays(*_quadratic(y[::step], x[::step])), axis=-1).reshape(-1, 6)
    levels = grey[::step, ::step].reshape(-1).astype(np.float64)
    surface = np.full(levels.shape, np.sort(levels)[len(levels) // 2])  # a level that occurs
    for tolerance in PAPER_TOLERANCES:
        near = np.abs(levels - surface) <= tolerance
        if near.any():
            coefficients = least_squares(terms[near], levels[near])
            surface = terms @ coefficients
    one, *rest = coefficients.astype(np.float32)
    return sum((k * term for k, term in zip(rest, _quadratic(y, x)[1:], strict=True)), one)


def _quadratic(y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, ...]:
    return np.ones_like(x), x, y, x * x, x * y, y * y


def least_squares(terms: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Coefficients of `terms` [N, K] that fit `values` [N] best, by the K x K normal equations."""
    return np.linalg.lstsq(terms.T @ terms, terms.T @ values, rcond=None)[0]


def local_paper(grey: np.ndarray) -> tuple[bool, np.ndarray]:
    """Whether the ink is dark, and the brightness of the paper under each pixel, float32 [H, W].

    A morphological closing fills dark strokes with the paper around them and leaves shadows as they are, an
    opening does so with light ones (Serra, "Image Analysis and Mathematical Morphology", 1982). The ink is on
    the side on which the strongest differences are larger.
    """
    height, width = grey.shape
    grid = Image.fromarray(grey).resize((PAPER_SIZE, PAPER_SIZE), Image.Resampling.BOX)
    greatest, least = ImageFilter.MaxFilter(WIDE_STROKE), ImageFilter.MinFilter(WIDE_STROKE)
    closed, opened = grid.filter(greatest).filter(least), grid.filter(least).filter(greatest)
    levels = np.asarray(grid, dtype=np.float32)
    darker, lighter = (np.sort(np.abs(np.asarray(paper) - levels), axis=None) for paper in (closed, opened))
    dark = bool(darker[-HEAVIEST:].sum() > lighter[-HEAVIEST:].sum())
    paper = (closed if dark else opened).resize((width, height), Image.Resampling.BILINEAR)
    return dark, np.asarray(paper, dtype=np.float32)
