"""The pictures of a run. Pillow draws them: importing matplotlib takes longer than training an epoch."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from serve_cli.metrics import confidences, worst_mistakes
from serve_cli.spec import IMAGE_SIZE
from trainer.atomic import replace_file

if TYPE_CHECKING:
    from trainer.train import EpochMetrics

SAMPLES_SHOWN = 10
MISTAKES_SHOWN, MISTAKES_PER_ROW = 25, 5

SCALE = 5
"""Pixels of a picture for each pixel of an image."""

FONT_SIZE = 16
TITLE_HEIGHT, GAP = 46, 14
CELL_WIDTH, CELL_HEIGHT = IMAGE_SIZE * SCALE + 2 * GAP, TITLE_HEIGHT + IMAGE_SIZE * SCALE + GAP
"""Of a small image with its title of up to two lines."""

LONGEST_CAPTION = 12
"""Characters of a label that fit above a small image, twice."""

MISSING_GLYPH = "\uffff"

TRAIN_COLOUR, VALIDATION_COLOUR, GRID_COLOUR = "#1f77b4", "#ff7f0e", "#d9d9d9"
DIAGONAL_COLOUR, MISTAKE_COLOUR = (235, 235, 235), (165, 15, 21)


def draw_samples(images: np.ndarray, labels: np.ndarray, names: Sequence[int | str], path: Path) -> None:
    """Write the first of the training `images`, uint8 [N, 28, 28], with their `labels`, int64 [N], as a PNG.

    `names` has the label of each class.
    """
    shown = captions(names)
    titles = [f"Label: {shown[label]}" for label in labels[:SAMPLES_SHOWN].tolist()]
    _save(_grid(images[:SAMPLES_SHOWN], titles, columns=len(titles)), path)


def draw_mistakes(
    images: np.ndarray, labels: np.ndarray, logits: np.ndarray, names: Sequence[int | str], path: Path
) -> None:
    """Write the mistakes that the net was surest of as a PNG: true label, predicted label, confidence.

    `images` are uint8 [N, 28, 28], `labels` int64 [N], `logits` float32 [N, 10]; `names` the classes' labels.
    """
    worst = worst_mistakes(labels, logits, MISTAKES_SHOWN)
    count = int((logits.argmax(axis=1) != labels).sum())
    shown = captions(names)
    titles = [
        f"{shown[int(labels[position])]} as {shown[int(logits[position].argmax())]}\n{confidence:.1%}"
        for position, confidence in zip(worst.tolist(), confidences(logits[worst]).tolist(), strict=True)
    ]
    head = f"Mistakes, the surest first: {len(worst)} of {count:,}, in {len(labels):,} images"
    if count == 0:
        head = f"No mistakes in {len(labels):,} images"
    _save(_grid(images[worst], titles, columns=MISTAKES_PER_ROW, head=head), path)


def draw_losses(epochs: "list[EpochMetrics]", validated_on: str, path: Path) -> None:
    """Write the training and validation loss of each epoch as a PNG."""
    lines = {
        ("Training Loss", TRAIN_COLOUR): [epoch.train_loss for epoch in epochs],
        (f"Validation Loss ({validated_on})", VALIDATION_COLOUR): [epoch.validation.loss for epoch in epochs],
    }
    left, top, right, bottom = 80, 50, 700, 420
    picture, draw = _blank(720, 480)
    y_ticks = _ticks(max(map(max, lines.values())))
    x_ticks = [tick for tick in _ticks(len(epochs)) if tick == int(tick) and tick <= len(epochs)]

    def place(epoch: float, loss: float) -> tuple[float, float]:
        share = (epoch - 1) / max(len(epochs) - 1, 1)
        return left + 20 + share * (right - left - 40), bottom - loss / y_ticks[-1] * (bottom - top)

    for tick in y_ticks:
        y = place(1, tick)[1]
        draw.line((left, y, right, y), GRID_COLOUR)
        draw.text((left - 8, y), f"{tick:.4g}", "black", _font(), anchor="rm")
    for tick in sorted({1, *x_ticks} - {0}):
        x = place(tick, 0)[0]
        draw.line((x, bottom, x, bottom + 5), "black")
        draw.text((x, bottom + 8), f"{tick:g}", "black", _font(), anchor="mt")
    draw.rectangle((left, top, right, bottom), outline="black")
    for row, ((name, colour), losses) in enumerate(lines.items()):
        points = [place(epoch, loss) for epoch, loss in enumerate(losses, 1)]
        draw.line(points, colour, width=2)
        for point in points:
            draw.circle(point, 4, colour)
        draw.line((right - 290, top + 20 + 24 * row, right - 260, top + 20 + 24 * row), colour, width=3)
        draw.text((right - 250, top + 20 + 24 * row), name, "black", _font(), anchor="lm")
    draw.text((360, 24), "Training and Validation Loss", "black", _font(18), anchor="mm")
    draw.text((390, 462), "Epoch", "black", _font(), anchor="mm")
    draw.text((left - 8, top - 26), "Loss", "black", _font(), anchor="rm")
    _save(picture, path)


def draw_confusion(confusion: list[list[int]], names: Sequence[int | str], path: Path) -> None:
    """Write the confusion matrix, rows the true class, as a PNG: only mistakes have a colour.

    The colour is the mistakes' share of their true class. On the scale of the diagonal, 99 %, mistakes of 1 %
    would all look the same.
    """
    counts = np.array(confusion)
    is_mistake = ~np.eye(len(counts), dtype=bool)
    shares = is_mistake * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    strengths = shares / (shares.max() or 1)
    shown = captions(names)
    label_width = max(int(_font().getlength(name)) for name in shown)
    left, top, side = label_width + 60, 60, 64
    size = side * len(counts)
    picture, draw = _blank(left + size + 20, top + size + 60 + max(0, label_width - 40))
    white = np.array([255, 255, 255])
    for (true, predicted), count in np.ndenumerate(counts):
        strength = strengths[true, predicted]
        colour = white + strength * (np.array(MISTAKE_COLOUR) - white)
        fill = tuple(colour.astype(int).tolist()) if is_mistake[true, predicted] else DIAGONAL_COLOUR
        x, y = left + predicted * side, top + true * side
        draw.rectangle((x, y, x + side - 1, y + side - 1), fill=fill)
        if count:
            ink = "white" if strength > 0.5 else "black" if is_mistake[true, predicted] else "#707070"
            draw.text((x + side / 2, y + side / 2), f"{count:,}", ink, _font(), anchor="mm")
    for number, name in enumerate(shown):
        middle = number * side + side / 2
        draw.text((left - 10, top + middle), name, "black", _font(), anchor="rm")
        _draw_below(picture, name, left + int(middle), top + size + 6, slanted=label_width > side)
    draw.rectangle((left - 1, top - 1, left + size, top + size), outline="black")
    title = (
        f"Mistakes: {counts[is_mistake].sum():,} of {counts.sum():,} images. Colour: share of the true class"
    )
    draw.text((left + size / 2, 24), title, "black", _font(), anchor="mm")
    draw.text((left - 10, top - 14), "True", "black", _font(), anchor="rm")
    draw.text((left + size / 2, picture.height - 16), "Predicted", "black", _font(), anchor="mm")
    _save(picture, path)


def captions(names: Sequence[int | str]) -> list[str]:
    """Labels fit for a picture: shortened, and the class's number where the font lacks a character."""
    missing = bytes(_font().getmask(MISSING_GLYPH))
    texts = []
    for number, name in enumerate(map(str, names)):
        if any(bytes(_font().getmask(character)) == missing for character in name):
            texts.append(f"class {number}")  # instead of empty boxes
        elif len(name) > LONGEST_CAPTION:
            texts.append(f"{name[: LONGEST_CAPTION - 6]}..{name[-4:]}")
        else:
            texts.append(name)
    return texts


def _grid(images: np.ndarray, titles: list[str], *, columns: int, head: str = "") -> Image.Image:
    """A picture of `images`, uint8 [N, 28, 28], row by row with a title above each, and `head` above all."""
    rows = math.ceil(len(images) / columns) if len(images) else 0
    top = TITLE_HEIGHT if head else 0
    widest = max((_font().getlength(line) for title in titles for line in title.splitlines()), default=0)
    font = _font(FONT_SIZE if widest <= CELL_WIDTH else FONT_SIZE * 3 // 4)
    picture, draw = _blank(columns * CELL_WIDTH, max(top + rows * CELL_HEIGHT, CELL_HEIGHT))
    draw.text((picture.width / 2, TITLE_HEIGHT / 2), head, "black", _font(18), anchor="mm")
    for number, (image, title) in enumerate(zip(images, titles, strict=True)):
        row, column = divmod(number, columns)
        x, y = column * CELL_WIDTH + GAP, top + row * CELL_HEIGHT + TITLE_HEIGHT
        enlarged = Image.fromarray(image).resize((IMAGE_SIZE * SCALE,) * 2, Image.Resampling.NEAREST)
        picture.paste(enlarged, (x, y))
        middle = x + IMAGE_SIZE * SCALE / 2
        draw.multiline_text((middle, y - 6), title, "black", font, anchor="md", align="center", spacing=2)
    return picture


def _draw_below(picture: Image.Image, name: str, x: int, y: int, *, slanted: bool) -> None:
    """Write `name` below the point (x, y); long names stand upright."""
    if not slanted:
        ImageDraw.Draw(picture).text((x, y), name, "black", _font(), anchor="mt")
        return
    text = Image.new("L", (int(_font().getlength(name)) + 2, FONT_SIZE + 6), 255)
    ImageDraw.Draw(text).text((0, 0), name, 0, _font())
    upright = text.rotate(90, expand=True)
    picture.paste(upright, (x - upright.width // 2, y))


def _blank(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    picture = Image.new("RGB", (width, height), "white")
    return picture, ImageDraw.Draw(picture)


def _font(size: int = FONT_SIZE) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, which is there on every machine."""
    return ImageFont.load_default(size)


def _ticks(top: float) -> list[float]:
    """Three to six round numbers from 0 to `top` or a little above it."""
    rough = top / 5 if top > 0 else 1
    unit = 10 ** math.floor(math.log10(rough))
    step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= rough)
    return [number * step for number in range(math.ceil(top / step) + 1)] if top > 0 else [0, 1]


def _save(picture: Image.Image, path: Path) -> None:
    replace_file(path, lambda temporary: picture.save(temporary, format="PNG"))
