"""From a person's picture to what MNIST would have stored: uint8 [28, 28], white ink on black.

The geometry is MNIST's own (LeCun, Cortes, Burges, http://yann.lecun.com/exdb/mnist/): the digit fits a
20x20 box with its aspect kept, and its centre of mass lies at the centre of 28x28.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import mul
from typing import Any

import numpy as np
from PIL import Image

from serve_cli.marks import longer_side
from serve_cli.page import Page, grow, look
from serve_cli.spec import IMAGE_SIZE

BOX = 20
"""Side of the box that MNIST fits a digit into, in pixels."""

FINE = 4
"""How much finer than the result strokes are looked at."""

THIN = 2.4
"""Stroke width in pixels of the result below which a stroke is widened to it: the median of MNIST's training
digits."""

ROOM = math.ceil(THIN * FINE / 2)
"""Black pixels kept around the finer picture, into which strokes may be widened."""

BLOT = 7.0
"""Stroke width in pixels of the result above which it is none: of MNIST's digits one in 1,000 has 5.6."""

CENTRE = 14.0
"""Row and column, counted from 0, of a digit's centre of mass: the middle of what MNIST has."""

OFF_CENTRE = 0.52
"""How far the centre of mass of a genuine picture lies from CENTRE: measured on all 70,000 of MNIST."""

WIDEST = 2.0
"""Greatest width of a digit as a multiple of its height: that of MNIST's training digits."""

STRONGEST = 128
"""Grey level that a genuine picture reaches at least: all 70,000 of MNIST reach 254."""

DETAIL = 56
"""Pixels on the page below which a digit is looked at again, from closer."""

SURROUNDINGS = 0.25
"""Share of the digit's size that is seen around it from closer."""

FILLED, SHEET = 0.7, 0.15
"""Shares of its box and of the page that a sheet of paper on a table covers at least."""

SHEET_EDGE = 0.04
"""Share of a sheet's size that is cut off at each side, for it may lie askew."""

FAINT_CONTRAST = 48
"""The same, below which the answer mentions it."""

DARK, LIGHT = "dark on light", "light on dark"


@dataclass(frozen=True)
class Preprocessed:
    """What the net gets to see: `pixels` uint8 [28, 28], white ink on black; black for a blank picture.

    `refusal` says why they are no single digit, None where nothing speaks against it. `decisions` is what was
    found on the way, for the JSON answer: `polarity`; `box`, [left, top, right, bottom] as shares of the
    picture's width and height; `stroke_width` in pixels of the result, before thin strokes are widened; and
    `warnings`.
    """

    pixels: np.ndarray
    refusal: str | None = None
    decisions: Mapping[str, Any] = field(default_factory=dict)


BLANK = Preprocessed(np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.uint8), "the picture is blank")


def to_mnist(grey: np.ndarray) -> Preprocessed:
    """Read the digit in grey levels `grey`, uint8 [H, W], of any size and polarity.

    A genuine 28x28 MNIST picture comes back bit for bit.
    """
    box = genuine(grey)
    if box is not None:
        return Preprocessed(
            grey, None, decide(grey.shape, box, LIGHT, stroke_width(grey / np.float32(255)), [])
        )
    window = whole(grey)
    page = look(grey)
    if page is None:
        return BLANK
    if is_sheet(page):
        sheet = part(window, page, -SHEET_EDGE)
        inner = look(grey[sheet])
        if inner is not None and inner.dark != page.dark and not is_at_edge(inner):
            window, page = sheet, inner
    fine = magnify(crop(closer(grey, window, page)))
    width = stroke_width(fine) / FINE
    polarity = DARK if page.dark else LIGHT
    found = decide(grey.shape, part(window, page, 0.0), polarity, width, warnings(page))
    return Preprocessed(place(fit(fine, width)), refuse(page, width), found)


def decide(
    shape: tuple[int, ...], box: tuple[slice, slice], polarity: str, width: float, notes: list[str]
) -> dict[str, Any]:
    """What was found, for the JSON answer; `shape` and `box` are in the same pixels, `width` as there."""
    (height, breadth), (rows, columns) = shape, box
    shares = (columns.start / breadth, rows.start / height, columns.stop / breadth, rows.stop / height)
    return {
        "polarity": polarity,
        "box": [round(share, 4) for share in shares],
        "stroke_width": round(width, 2),
        "warnings": notes,
    }


def warnings(page: Page) -> list[str]:
    """What a person should know who wonders about an answer."""
    strays = int(page.choice.stray.sum())
    notes = {
        "the ink is faint": page.contrast < FAINT_CONTRAST,
        "the light is uneven": not page.even,
        "a frame or a bar at the edge was left out": page.choice.frame.any(),
        f"{strays} stray mark{'s' * (strays > 1)} left out": strays > 0,
        "the digit touches the edge of the picture": is_at_edge(page),
    }
    return [note for note, holds in notes.items() if holds]


def refuse(page: Page, width: float) -> str | None:
    """Why the page holds no single digit, strokes being `width` pixels of the result wide; None if it may."""
    rows, columns = page.box
    if page.choice.rival.any():
        return "the picture holds more than one digit"
    if columns.stop - columns.start > WIDEST * (rows.stop - rows.start):
        return "what the picture holds is too wide for one digit"
    if width > BLOT:
        return "the picture holds a blot, not the strokes of a pen"
    return None


def genuine(grey: np.ndarray) -> tuple[slice, slice] | None:
    """The box of the digit if `grey` has MNIST's geometry: 28x28, black around a 20x20 box, centred by mass.

    None if not.
    """
    if grey.shape != (IMAGE_SIZE, IMAGE_SIZE) or grey.max() < STRONGEST:
        return None
    sums = _sums(grey)
    if max(abs(_mean_place(side) - CENTRE) for side in sums) > OFF_CENTRE:
        return None
    box = _span(sums[0]), _span(sums[1])
    return box if longer_side(box) <= BOX else None


def is_sheet(page: Page) -> bool:
    """Whether what was taken for the digit may be a sheet of paper: large, no strip, and mostly filled."""
    sides = [side.stop - side.start for side in page.box]
    area = page.marks.area[page.choice.digit].sum()
    return bool(min(sides) > max(sides) / 2 and area >= max(FILLED * math.prod(sides), SHEET * page.ink.size))


def is_at_edge(page: Page) -> bool:
    """Whether the digit touches the edge of the page."""
    return bool(page.marks.at_edge[page.choice.digit].any())


def whole(grey: np.ndarray) -> tuple[slice, slice]:
    """All rows and columns of `grey`."""
    return slice(0, grey.shape[0]), slice(0, grey.shape[1])


def part(window: tuple[slice, slice], page: Page, margin: float) -> tuple[slice, slice]:
    """Rows and columns of the picture that the digit of `page` covers, which shows its `window`.

    `margin` is what is added at each side, as a share of the digit's size; below 0 it is cut off.
    """
    more = margin * longer_side(page.box)
    rows, columns = (
        slice(
            max(seen.start, math.floor(seen.start + (side.start - more) * (seen.stop - seen.start) / length)),
            min(seen.stop, math.ceil(seen.start + (side.stop + more) * (seen.stop - seen.start) / length)),
        )
        for seen, side, length in zip(window, page.box, page.ink.shape, strict=True)
    )
    return rows, columns


def closer(grey: np.ndarray, window: tuple[slice, slice], page: Page) -> Page:
    """`page`, which shows `window` of `grey`; where the digit is small on it, its surroundings in detail."""
    if longer_side(page.box) >= DETAIL or page.ink.shape == grey[window].shape:
        return page
    return look(grey[part(window, page, SURROUNDINGS)]) or page


def crop(page: Page) -> np.ndarray:
    """The digit's ink alone, cut to its box."""
    return page.ink[page.box] * page.marks.mask(page.choice.digit)[page.box]


def magnify(ink: np.ndarray) -> np.ndarray:
    """Scale `ink` to FINE pixels for each one of the box, with ROOM around it, strong ink to 1."""
    fine = resize(ink, BOX * FINE)
    height, width = fine.shape
    roomy = np.zeros((height + 2 * ROOM, width + 2 * ROOM), np.float32)
    inked = fine[fine > 0]
    rank = len(inked) * 9 // 10
    np.minimum(fine / np.partition(inked, rank)[rank], 1, out=roomy[ROOM:-ROOM, ROOM:-ROOM])
    return roomy


def fit(fine: np.ndarray, width: float) -> np.ndarray:
    """Scale to the box, strokes of `width` pixels of the result widened if they are thinner than MNIST's.

    `fine` is float32 with FINE pixels for each one of the result, which is uint8, and ROOM around.
    """
    radius = max(0.0, (THIN - width) * FINE / 2)
    drawn = resize(thicken(fine, radius), BOX, ROOM - radius)
    return (drawn * (255 / drawn.max())).round().astype(np.uint8)


def resize(ink: np.ndarray, longest: int, inset: float = 0.0) -> np.ndarray:
    """Scale `ink`, less `inset` pixels at each edge, so that its longer side has `longest` pixels.

    It averages when it shrinks.
    """
    height, width = (side - 2 * inset for side in ink.shape)
    scale = longest / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    resampling = Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
    box = (inset, inset, inset + width, inset + height)
    return np.clip(np.asarray(Image.fromarray(ink).resize(size, resampling, box)), 0, 1)


def thicken(ink: np.ndarray, radius: float) -> np.ndarray:
    """Widen strokes by `radius` pixels to each side.

    A part of a pixel blends the two whole widths, so that strokes of nearly one width come out alike.
    """
    whole = int(radius)
    narrow = grow(ink, whole)
    return narrow + (radius - whole) * (grow(narrow, 1) - narrow)


def stroke_width(ink: np.ndarray) -> float:
    """Mean width in pixels of strokes on black: twice their area over the length of their outline."""
    here = ink[:-1, :-1]
    outline = np.hypot(ink[1:, :-1] - here, ink[:-1, 1:] - here).sum()
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


def centre_of_mass(levels: np.ndarray) -> tuple[float, float]:
    """Mean row and column, weighted by `levels`."""
    row, column = (_mean_place(sums) for sums in _sums(levels))
    return row, column


def _sums(levels: np.ndarray) -> tuple[list[int], list[int]]:
    """The sum of each row and of each column."""
    return levels.sum(axis=1).tolist(), levels.sum(axis=0).tolist()


def _span(sums: list[int]) -> slice:
    inked = [place for place, total in enumerate(sums) if total]
    return slice(inked[0], inked[-1] + 1)


def _mean_place(sums: list[int]) -> float:
    return sum(map(mul, sums, range(len(sums)))) / sum(sums)
