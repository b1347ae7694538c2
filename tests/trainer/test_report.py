"""report.json's content, and the pictures, whose figures are caught as they are saved."""

import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torch.nn.functional import one_hot

from trainer import plots
from trainer.data import DIGITS, SOURCES, Dataset, Split
from trainer.evaluate import Evaluation
from trainer.loop import Epoch
from trainer.model import MLP
from trainer.report import build_report

FASHION = SOURCES["fashion-mnist"].labels

EPOCHS = [
    Epoch(
        number=number,
        step=10 * number,
        train_loss=1 / number,
        validation=Evaluation(loss=1.5 / number, accuracy=0.5, samples=10),
        learning_rate=0.1,
        seconds=2.0,
    )
    for number in (1, 2, 3)
]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved."""
    caught: list[Figure] = []
    save = Figure.savefig

    def catch(figure: Figure, *arguments: Any, **options: Any) -> None:
        caught.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", catch)
    return caught


def assert_picture(path: Path) -> None:
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert min(image.size) > 100
        assert len(image.convert("L").getcolors(256) or []) > 10
    assert list(path.parent.iterdir()) == [path]


def cells(figure: Figure) -> list[np.ndarray]:
    """The small images of a grid, row by row, those that are left white included."""
    canvas = np.asarray(figure.axes[0].images[0].get_array())
    rows, columns = canvas.shape[0] // plots.CELL_HEIGHT, canvas.shape[1] // plots.CELL_WIDTH
    grid = canvas.reshape(rows, plots.CELL_HEIGHT, columns, plots.CELL_WIDTH)
    inner = grid[:, plots.TITLE_HEIGHT : -plots.GAP, :, plots.GAP : -plots.GAP]
    return list(inner.transpose(0, 2, 1, 3).reshape(-1, 28, 28))


def half_wrong(samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images, labels, logits: every other answer is wrong, later ones are surer; image n is all grey n."""
    images = torch.arange(samples, dtype=torch.uint8)[:, None, None].expand(-1, 28, 28)
    labels = torch.arange(samples) % 10
    predicted = (labels + torch.arange(samples) % 2) % 10
    logits = one_hot(predicted, 10) * torch.linspace(1, 6, samples)[:, None]
    return images, labels, logits


def test_the_report(mnist5k: Dataset) -> None:
    test = {"accuracy": 0.5, "loss": 0.7, "samples": 1000, "confusion": [[1]]}
    train = mnist5k.train.take(torch.arange(600))
    calibration = {"temperature": 1.5}
    report = build_report(mnist5k, train, EPOCHS, test, calibration, MLP(), Accelerator(cpu=True))
    assert report["test"] == test
    assert report["calibration"] == calibration
    assert report["train"] == {
        "loss": 1 / 3,
        "samples": 600,
        "seconds": 6.0,
        "images_per_second": 300.0,
        "processes": 1,
        "device": "cpu",
    }
    assert report["dataset"]["labels"] == list(range(10))
    assert report["parameters"] == 109_386
    for name in ("accelerate", "numpy", "torch"):
        assert report["versions"][name].split("+")[0] == version(name).split("+")[0]
    assert json.loads(json.dumps(report)) == report


@pytest.mark.parametrize("labels", [DIGITS, FASHION])
def test_the_samples(
    mnist5k: Dataset, tmp_path: Path, figures: list[Figure], labels: tuple[int | str, ...]
) -> None:
    plots.draw_samples(mnist5k.train, labels, tmp_path / "samples.png")
    assert_picture(tmp_path / "samples.png")
    expected = [f"Label: {labels[number]}" for number in mnist5k.train.labels[:10].tolist()]
    (axes,) = figures[0].axes
    assert [text.get_text() for text in axes.texts] == expected
    for number, image in enumerate(cells(figures[0])[:10]):
        assert np.array_equal(image, mnist5k.train.images[number].numpy())


def test_a_single_sample(mnist5k: Dataset, tmp_path: Path) -> None:
    plots.draw_samples(mnist5k.train.take(torch.arange(1)), DIGITS, tmp_path / "samples.png")
    assert_picture(tmp_path / "samples.png")


def test_the_losses(tmp_path: Path, figures: list[Figure]) -> None:
    plots.draw_losses(EPOCHS, "test set", tmp_path / "losses.png")
    assert_picture(tmp_path / "losses.png")
    train, validation = figures[0].axes[0].get_lines()
    assert np.asarray(train.get_xydata()).tolist() == [[1, 1], [2, 1 / 2], [3, 1 / 3]]
    assert np.asarray(validation.get_xydata()).tolist() == [[1, 1.5], [2, 1.5 / 2], [3, 1.5 / 3]]
    assert validation.get_label() == "Validation Loss (test set)"


def test_the_confusion(tmp_path: Path, figures: list[Figure]) -> None:
    confusion = [[990 * (row == column) for column in range(10)] for row in range(10)]
    confusion[3][5], confusion[8][1], confusion[8][2] = 10, 5, 5
    confusion[0][0] = 12345
    confusion[6] = [0] * 10  # a class without images
    plots.draw_confusion(confusion, FASHION, tmp_path / "confusion.png")
    assert_picture(tmp_path / "confusion.png")
    axes = figures[0].axes[0]
    cells = {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in axes.texts}
    assert cells == {
        (row, column): f"{confusion[row][column]:,}" for row in range(10) for column in range(10)
    }
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("Predicted", "True")
    for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [tick.get_text() for tick in ticks] == list(FASHION)

    shown = axes.images[0]
    shares = shown.get_array()
    assert shares is not None
    assert shares.mask.tolist() == torch.eye(10, dtype=torch.bool).tolist()  # type: ignore[attr-defined]
    assert shares[3, 5] == shown.norm.vmax == 0.01  # 10 of 1,000
    assert shares[8, 2] == pytest.approx(5 / 1000)
    red, green, blue, _ = shown.cmap(shown.norm(shares[8, 2]))
    assert red - max(green, blue) > 0.3  # seen as a colour, though 0.5 % is little


def test_a_confusion_without_mistakes(tmp_path: Path) -> None:
    confusion = [[7 * (row == column) for column in range(10)] for row in range(10)]
    plots.draw_confusion(confusion, DIGITS, tmp_path / "confusion.png")
    assert_picture(tmp_path / "confusion.png")


def test_the_mistakes_are_the_worst_ones(tmp_path: Path, figures: list[Figure]) -> None:
    images, labels, logits = half_wrong(80)
    plots.draw_mistakes(images, labels, logits, FASHION, tmp_path / "mistakes.png")
    assert_picture(tmp_path / "mistakes.png")
    assert [int(image[0, 0]) for image in cells(figures[0])] == list(range(79, 29, -2))
    confidence = torch.tensor([6.0, *[0] * 9]).softmax(0)[0]
    assert figures[0].axes[0].texts[0].get_text() == f"Ankle boot → T-shirt/top\n{confidence:.1%}"
    assert figures[0].get_suptitle() == "Mistakes, the surest first: 25 of 40, in 80 images"


def test_few_mistakes(tmp_path: Path, figures: list[Figure]) -> None:
    images, labels, logits = half_wrong(15)
    plots.draw_mistakes(images, labels, logits, DIGITS, tmp_path / "mistakes.png")
    assert_picture(tmp_path / "mistakes.png")
    shown = [int(image[0, 0]) for image in cells(figures[0])]
    assert shown == [13, 11, 9, 7, 5, 3, 1, *[255] * 3]


def test_a_picture_says_that_there_are_no_mistakes(tmp_path: Path, figures: list[Figure]) -> None:
    images, labels, _ = half_wrong(2000)
    plots.draw_mistakes(images, labels, one_hot(labels, 10).float(), DIGITS, tmp_path / "mistakes.png")
    assert_picture(tmp_path / "mistakes.png")
    assert [text.get_text() for text in figures[0].texts] == ["no mistakes in 2,000 images"]


def test_labels_of_any_text(tmp_path: Path) -> None:
    """Neither a formula that is none, nor letters that the font lacks, nor length stops a finished run."""
    names = ("$a$", r"$\foo$", "お", "handwritten letter a", "handwritten letter b", *"vwxy", "z" * 999)
    assert plots.captions(names[2:5]) == ["class 0", "handwri…er a", "handwri…er b"]
    assert plots.captions(DIGITS) == list("0123456789")
    assert plots.captions(FASHION) == list(FASHION)
    images, labels, logits = half_wrong(20)
    draws: list[Callable[[Path], None]] = [
        lambda path: plots.draw_samples(Split(images, labels), names, path),
        lambda path: plots.draw_confusion([[1] * 10] * 10, names, path),
        lambda path: plots.draw_mistakes(images, labels, logits, names, path),
    ]
    for draw, name in zip(draws, ("samples", "confusion", "mistakes"), strict=True):
        folder = tmp_path / name
        folder.mkdir()
        draw(folder / "staged")
        assert_picture(folder / "staged")
