"""Pictures as people send them: digits drawn anew with hard edges on a canvas, with one fault each."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Fault = Callable[["Drawn", np.random.Generator], None]


@dataclass
class Drawn:
    """A drawing in the making: `ink` and `light`, float [H, W], 0 to 1, and where on it the digit lies.

    `paper` and `pen` are the brightness of the paper and of full ink, `noise` its standard deviation, 0 to 1.
    """

    ink: np.ndarray
    light: np.ndarray
    rows: slice
    columns: slice
    paper: float = 0.9
    pen: float = 0.15
    noise: float = 0.004

    def grey(self, rng: np.random.Generator) -> np.ndarray:
        """The picture, uint8 [H, W]."""
        level = (self.paper + (self.pen - self.paper) * self.ink) * self.light
        level += rng.normal(0, self.noise, level.shape)
        return (np.clip(level, 0, 1) * 255).round().astype(np.uint8)


def strokes(digit: np.ndarray, size: int) -> np.ndarray:
    """The strokes of a genuine `digit`, uint8 [28, 28]: bool [H, W], its longer side `size` pixels."""
    smooth = Image.fromarray(digit).resize((224, 224), Image.Resampling.BICUBIC)
    mask = Image.fromarray(np.asarray(smooth.filter(ImageFilter.GaussianBlur(4))) > 100)
    mask = mask.crop(mask.getbbox())
    width, height = (max(1, round(side * size / max(mask.size))) for side in mask.size)
    return np.asarray(mask.resize((width, height)))


def sketch(
    digit: np.ndarray,
    rng: np.random.Generator,
    canvas: tuple[int, int] = (300, 360),
    share: float = 0.5,
) -> Drawn:
    """`digit` on a `canvas` of height and width, `share` of the height long, at least 10 % from the edges."""
    drawn = strokes(digit, round(share * canvas[0]))
    top, left = (
        int(rng.integers(round(0.1 * side), round(0.9 * side) - long + 1))
        for side, long in zip(canvas, drawn.shape, strict=True)
    )
    rows, columns = slice(top, top + drawn.shape[0]), slice(left, left + drawn.shape[1])
    ink = np.zeros(canvas)
    ink[rows, columns] = drawn
    return Drawn(ink, np.ones(canvas), rows, columns)


def draw(picture: Drawn, paint: Callable[[ImageDraw.ImageDraw], object]) -> None:
    """Add what `paint` draws in white to the ink."""
    height, width = picture.ink.shape
    layer = Image.new("L", (width, height))
    paint(ImageDraw.Draw(layer))
    np.maximum(picture.ink, np.asarray(layer) / 255, out=picture.ink)


def faint(picture: Drawn, rng: np.random.Generator) -> None:
    picture.pen = picture.paper - rng.uniform(0.12, 0.17)


def noise(picture: Drawn, rng: np.random.Generator) -> None:
    picture.noise = rng.uniform(0.03, 0.08)


def gradient(picture: Drawn, rng: np.random.Generator) -> None:
    across = np.linspace(1, rng.uniform(0.35, 0.6), picture.light.shape[1])
    picture.light *= across if rng.random() < 0.5 else across[::-1]


def shadow(picture: Drawn, rng: np.random.Generator) -> None:
    """A slanted edge through the digit, sharp within a hundredth of the width."""
    height, width = picture.light.shape
    middle = (picture.columns.start + picture.columns.stop) / 2
    y, x = np.mgrid[:height, :width]
    beyond = (x - middle + rng.uniform(-0.3, 0.3) * (y - height / 2)) / (0.01 * width)
    picture.light *= 1 - rng.uniform(0.35, 0.5) / (1 + np.exp(-np.clip(beyond, -50, 50)))


def deep_shadow(picture: Drawn, rng: np.random.Generator) -> None:
    """The same with less than half of the light left, so that paper may be as dark as ink in the light."""
    height, width = picture.light.shape
    middle = (picture.columns.start + picture.columns.stop) / 2
    y, x = np.mgrid[:height, :width]
    picture.light[x + rng.uniform(-0.3, 0.3) * (y - height / 2) > middle] *= rng.uniform(0.3, 0.45)


def table(picture: Drawn, rng: np.random.Generator) -> None:
    """The sheet lies on a darker table, all of its edges in sight."""
    height, width = picture.light.shape
    top, left = 0.6 * picture.rows.start, 0.6 * picture.columns.start
    bottom, right = 0.4 * picture.rows.stop + 0.6 * height, 0.4 * picture.columns.stop + 0.6 * width
    y, x = np.mgrid[:height, :width]
    picture.light[(y < top) | (y > bottom) | (x < left) | (x > right)] = rng.uniform(0.15, 0.6)


def underline(picture: Drawn, rng: np.random.Generator) -> None:
    top, left = picture.rows.stop + rng.uniform(5, 15), picture.columns.start - 20
    draw(picture, lambda pen: pen.line((left, top, picture.columns.stop + 20, top), fill=255, width=6))


def specks(picture: Drawn, rng: np.random.Generator) -> None:
    """Dust of up to four pixels' radius all over the paper."""
    height, width = picture.ink.shape
    for x, y, radius in rng.uniform((0, 0, 1), (width, height, 4), (150, 3)):
        box = (x - radius, y - radius, x + radius, y + radius)
        draw(picture, functools.partial(ImageDraw.ImageDraw.ellipse, xy=box, fill=255))


def stray(picture: Drawn, rng: np.random.Generator) -> None:
    """A dash in the corner that is farthest from the digit."""
    height, width = picture.ink.shape
    left = 0.03 * width if picture.columns.start + picture.columns.stop > width else 0.85 * width
    top = 0.03 * height if picture.rows.start + picture.rows.stop > height else 0.9 * height
    draw(
        picture, lambda pen: pen.line((left, top, left + 0.1 * width, top + 0.05 * height), fill=255, width=4)
    )


def frame(picture: Drawn, rng: np.random.Generator) -> None:
    height, width = picture.ink.shape
    gap = int(rng.integers(0, round(0.04 * min(height, width))))
    box = (gap, gap, width - 1 - gap, height - 1 - gap)
    draw(picture, lambda pen: pen.rectangle(box, outline=255, width=int(rng.integers(2, 6))))


def bar(picture: Drawn, rng: np.random.Generator) -> None:
    side = np.rot90(picture.ink, int(rng.integers(4)))  # a view: what is written there is in the picture
    side[: rng.integers(3, 12)] = 1


def corner(picture: Drawn, rng: np.random.Generator) -> None:
    """A wedge along one edge, as of a page that lies askew in a scanner."""
    height, width = picture.ink.shape
    draw(picture, lambda pen: pen.polygon([(0, 0), (width - 1, 0), (0, 0.07 * height)], fill=255))


def untouched(picture: Drawn, rng: np.random.Generator) -> None:
    """Nothing is wrong."""


FAULTS: dict[str, Fault] = {
    "clean": untouched,
    "faint": faint,
    "noise": noise,
    "gradient": gradient,
    "shadow": shadow,
    "deep shadow": deep_shadow,
    "table": table,
    "underline": underline,
    "specks": specks,
    "stray": stray,
    "frame": frame,
    "bar": bar,
    "corner": corner,
    "small": untouched,
}
"""What may be wrong with a picture."""

PHYSICAL = ("deep shadow", "table")
"""What happens to dark ink on light paper alone."""

SMALL: dict[str, Any] = {"canvas": (1200, 1400), "share": 0.022}
"""How a small digit is sketched."""


def picture(digit: np.ndarray, fault: str, rng: np.random.Generator) -> np.ndarray:
    """A picture of `digit` with one fault, dark on light or light on dark: uint8 [H, W]."""
    drawn = sketch(digit, rng, **(SMALL if fault == "small" else {}))
    FAULTS[fault](drawn, rng)
    grey = drawn.grey(rng)
    return grey if rng.random() < 0.5 or fault in PHYSICAL else 255 - grey


POLYLINES = (
    ("30 11 02 04 15 35 44 42 31 30",),
    ("20 26",),
    ("01 10 30 41 42 06 46",),
    ("00 30 41 42 33 23 33 44 45 36 06",),
    ("30 04 44", "32 36"),
    ("40 00 03 33 44 45 36 06",),
    ("30 02 05 16 36 45 44 33 13 04",),
    ("00 40 16",),
    ("10 30 41 42 13 04 05 16 36 45 44 33 02 01 10",),
    ("41 30 10 01 02 13 33 41 46",),
)
"""The lines of each digit, from 0 to 9: places on a grid of 5 across and 7 down, column before row."""


def hairline(label: int, width: int = 1) -> np.ndarray:
    """The digit `label` in lines `width` pixels wide, 600 high, black on white: uint8 [1000, 1000]."""
    image = Image.new("L", (1000, 1000), 255)
    for line in POLYLINES[label]:
        places = [(300 + 100 * int(place[0]), 200 + 100 * int(place[1])) for place in line.split()]
        ImageDraw.Draw(image).line(places, fill=0, width=width, joint="curve")
    return np.asarray(image)
