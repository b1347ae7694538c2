"""The pictures of a run; importing this module costs the 0.4 s of matplotlib."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch import Tensor

from serve_cli.metrics import confidences, worst_mistakes
from serve_cli.spec import IMAGE_SIZE
from trainer.data import Split

if TYPE_CHECKING:
    from trainer.loop import Epoch

SAMPLES_SHOWN = 10
MISTAKES_SHOWN = 25
MISTAKES_IN_A_ROW = 5

PIXELS_PER_INCH = 22
TITLE_HEIGHT, GAP = 10, 4
CELL_HEIGHT, CELL_WIDTH = TITLE_HEIGHT + IMAGE_SIZE + GAP, GAP + IMAGE_SIZE + GAP
"""Of a small image with its title, in pixels of the image."""

LONGEST_CAPTION = 12
"""Characters of a label that fit above a small image, twice and with an arrow."""

WIDEST_CAPTION = 4
"""Characters of a label that fit below a cell of the confusion matrix; longer ones go there at a slant."""


def draw_samples(split: Split, labels: tuple[int | str, ...], path: Path) -> None:
    """Write the first training images with their labels as a PNG."""
    shown = min(SAMPLES_SHOWN, len(split))
    names = captions(labels)
    titles = [f"Label: {names[label]}" for label in split.labels[:shown].tolist()]
    _save(_grid(split.images[:shown], titles, columns=shown), path)


def draw_losses(epochs: list["Epoch"], validated_on: str, path: Path) -> None:
    """Write the training and validation loss of each epoch as a PNG."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    numbers = [epoch.number for epoch in epochs]
    axes.plot(numbers, [epoch.train_loss for epoch in epochs], marker="o", label="Training Loss")
    axes.plot(
        numbers,
        [epoch.validation.loss for epoch in epochs],
        marker="o",
        label=f"Validation Loss ({validated_on})",
    )
    axes.set_xlabel("Epoch")
    axes.set_ylabel("Loss")
    axes.set_title("Training and Validation Loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    _save(figure, path)


def draw_confusion(confusion: list[list[int]], labels: tuple[int | str, ...], path: Path) -> None:
    """Write the confusion matrix, rows the true class, as a PNG: only errors have a colour.

    The colour is the error's share of its true class. On the scale of the diagonal, 99 %, errors of 1 % would
    all look the same.
    """
    counts = np.array(confusion)
    is_error = ~np.eye(len(counts), dtype=bool)
    shares = is_error * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    scale = Normalize(0, shares.max() or 0.01)  # without errors any scale will do
    figure = Figure(figsize=(8, 7), layout="constrained")
    axes = figure.subplots()
    shown = axes.imshow(
        np.ma.masked_array(shares, ~is_error), cmap=colormaps["Reds"].with_extremes(bad="0.93"), norm=scale
    )
    for (true, predicted), count in np.ndenumerate(counts):
        colour = _ink(count, scale(shares[true, predicted])) if true != predicted else "0.45"
        axes.text(predicted, true, f"{count:,}", ha="center", va="center", color=colour, fontsize=9)
    names = captions(labels)
    axes.set_xticks(range(len(names)), names, parse_math=False)
    axes.set_yticks(range(len(names)), names, parse_math=False)
    if max(map(len, names)) > WIDEST_CAPTION:
        axes.tick_params(axis="x", labelrotation=45)
        for tick in axes.get_xticklabels():
            tick.set(ha="right", rotation_mode="anchor")
    axes.set_xlabel("Predicted")
    axes.set_ylabel("True")
    axes.set_title(f"Mistakes: {counts[is_error].sum():,} of {counts.sum():,} images")
    figure.colorbar(shown, label="Mistakes, share of the true class", format=PercentFormatter(1), shrink=0.8)
    _save(figure, path)


def draw_mistakes(
    images: Tensor, labels: Tensor, logits: Tensor, names: tuple[int | str, ...], path: Path
) -> None:
    """Write the mistakes that the net was surest of as a PNG: true label → predicted label, confidence.

    `images` are uint8 [N, 28, 28], `labels` int64 [N], `logits` float32 [N, 10], all on the CPU.
    """
    worst = worst_mistakes(labels.numpy(), logits.numpy(), MISTAKES_SHOWN).tolist()
    mistakes = int((logits.argmax(dim=1) != labels).sum())
    if mistakes == 0:
        figure = Figure(figsize=(8, 2))
        figure.text(0.5, 0.5, f"no mistakes in {len(labels):,} images", ha="center", va="center", fontsize=14)
        _save(figure, path)
        return
    short = captions(names)
    titles = [
        f"{short[int(labels[position])]} → {short[int(logits[position].argmax())]}\n{confidence:.1%}"
        for position, confidence in zip(worst, confidences(logits[worst].numpy()).tolist(), strict=True)
    ]
    head = f"Mistakes, the surest first: {len(worst)} of {mistakes:,}, in {len(labels):,} images"
    _save(_grid(images[worst], titles, columns=MISTAKES_IN_A_ROW, head=head), path)


def captions(labels: tuple[int | str, ...]) -> list[str]:
    """`labels` fit for a picture: long ones lose their middle, unprintable ones are the class's number."""
    font = get_font(findfont(FontProperties()))
    texts = []
    for number, label in enumerate(str(label) for label in labels):
        if not all(font.get_char_index(ord(character)) for character in label):
            texts.append(f"class {number}")  # instead of empty boxes, and of a warning for each
        elif len(label) > LONGEST_CAPTION:
            texts.append(f"{label[: LONGEST_CAPTION - 5]}…{label[-4:]}")
        else:
            texts.append(label)
    return texts


def _grid(images: Tensor, titles: list[str], *, columns: int, head: str = "") -> Figure:
    """A figure of `images`, uint8 [N, 28, 28], row by row with a title above each, and `head` above all.

    All of them are one picture in one pair of axes: with a pair for each it takes ten times as long.
    """
    rows = -(-len(images) // columns)
    canvas = np.full((rows, CELL_HEIGHT, columns, CELL_WIDTH), 255, np.uint8)
    for number, image in enumerate(images.numpy()):
        row, column = divmod(number, columns)
        canvas[row, TITLE_HEIGHT:-GAP, column, GAP:-GAP] = image
    height, width = rows * CELL_HEIGHT, columns * CELL_WIDTH
    head_height = TITLE_HEIGHT * bool(head)
    figure = Figure(figsize=(width / PIXELS_PER_INCH, (height + head_height) / PIXELS_PER_INCH))
    axes = figure.add_axes((0, 0, 1, height / (height + head_height)))
    axes.imshow(
        canvas.reshape(height, width), cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="auto"
    )
    axes.axis("off")
    for number, title in enumerate(titles):
        row, column = divmod(number, columns)
        axes.text(
            (column + 0.5) * CELL_WIDTH - 0.5,
            row * CELL_HEIGHT + TITLE_HEIGHT - 1.5,
            title,
            ha="center",
            va="bottom",
            fontsize=9,
            parse_math=False,  # a label may well be a $
        )
    if head:
        figure.suptitle(head)
    return figure


def _ink(count: int, strength: float) -> str:
    """The colour for a `count` on a cell of this `strength` of colour, 0 to 1; zeros step back."""
    if count == 0:
        return "0.75"
    return "white" if strength > 0.6 else "black"


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=120, format="png")  # whatever the name is while the file is not in its place
