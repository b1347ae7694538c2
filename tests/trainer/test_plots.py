"""The pictures of a run: what is drawn is what the numbers say."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from trainer import plots
from trainer.data import DIGITS, SOURCES, Dataset
from trainer.evaluate import Evaluation
from trainer.train import EpochMetrics

FASHION = SOURCES["fashion-mnist"].labels
Cells = list[np.ndarray]


def make_epochs(*losses: float) -> list[EpochMetrics]:
    """Epochs with these training losses; those of the validation are half as high again."""
    return [
        EpochMetrics(
            number=number,
            step=10 * number,
            train_loss=loss,
            validation=Evaluation(loss=1.5 * loss, accuracy=0.5, samples=10),
            learning_rate=0.1,
            seconds=2.0,
        )
        for number, loss in enumerate(losses, 1)
    ]


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[float, float]]:
    """All texts that are drawn, with their place; of equal ones the last."""
    found: dict[str, tuple[float, float]] = {}

    def record(original: Callable) -> Callable:
        def draw(
            self: ImageDraw.ImageDraw, xy: tuple[float, float], text: str, *rest: object, **options: object
        ):  # type: ignore[no-untyped-def]
            found[text] = xy
            return original(self, xy, text, *rest, **options)

        return draw

    for name in ("text", "multiline_text"):
        monkeypatch.setattr(ImageDraw.ImageDraw, name, record(getattr(ImageDraw.ImageDraw, name)))
    return found


def read_picture(path: Path) -> np.ndarray:
    """The pixels of a PNG that shows something, uint8 [height, width, 3]; nothing else is in its folder."""
    assert list(path.parent.iterdir()) == [path]
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert min(image.size) > 100
        assert len(image.convert("L").getcolors(256) or []) > 10
        return np.asarray(image.convert("RGB"))


def cells(picture: np.ndarray) -> Cells:
    """The small images of a grid, row by row, those that are left white included."""
    top = (len(picture) % plots.CELL_HEIGHT) * (len(picture) > plots.CELL_HEIGHT)
    size = plots.IMAGE_SIZE * plots.SCALE
    found = []
    for y in range(top + plots.TITLE_HEIGHT, len(picture) - size + 1, plots.CELL_HEIGHT):
        for x in range(plots.GAP, picture.shape[1] - size + 1, plots.CELL_WIDTH):
            found.append(picture[y : y + size : plots.SCALE, x : x + size : plots.SCALE, 0])
    return found


def every_other_wrong(samples: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, labels, logits: every other prediction is wrong, later ones surer; image n is all n."""
    numbers = np.arange(samples)
    images = np.broadcast_to(numbers.astype(np.uint8)[:, None, None], (samples, 28, 28))
    logits = np.eye(10)[(numbers + numbers % 2) % 10] * np.linspace(1, 6, samples)[:, None]
    return images, numbers % 10, logits.astype(np.float32)


@pytest.mark.parametrize("names", [DIGITS, FASHION])
@pytest.mark.parametrize("count", [1, 10])
def test_samples(mnist5k: Dataset, tmp_path: Path, texts: dict, names: tuple, count: int) -> None:
    images, labels = mnist5k.train.images[:count].numpy(), mnist5k.train.labels[:count].numpy()
    plots.draw_samples(images, labels, names, tmp_path / "samples.png")
    shown = cells(read_picture(tmp_path / "samples.png"))
    assert np.array_equal(shown, images)
    assert {f"Label: {names[label]}" for label in labels} <= texts.keys()


def test_losses(tmp_path: Path, texts: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heights of the points are to each other as the losses, above the axis."""
    points = []
    circle = ImageDraw.ImageDraw.circle
    monkeypatch.setattr(
        ImageDraw.ImageDraw, "circle", lambda self, xy, *rest: points.append(xy) or circle(self, xy, *rest)
    )
    plots.draw_losses(make_epochs(1, 1 / 2, 1 / 4), "test set", tmp_path / "losses.png")
    read_picture(tmp_path / "losses.png")
    assert {"Training Loss", "Validation Loss (test set)", "Epoch", "Loss", "0.5", "1.5"} <= texts.keys()
    zero, one = texts["0"][1], texts["1"][1]
    heights = [(zero - y) / (zero - texts["1.5"][1]) * 1.5 for _, y in points]
    assert heights == pytest.approx([1, 1 / 2, 1 / 4, 1.5, 1.5 / 2, 1.5 / 4])
    assert [x for x, _ in points[:3]] == [x for x, _ in points[3:]] == sorted(x for x, _ in points[:3])
    assert one < zero or one > 400  # "1" is a loss and an epoch


@pytest.mark.parametrize("losses", [(0.3,), (0.0, 0.0), (1e30, 2.0), tuple(1 / n for n in range(1, 300))])
def test_losses_of_any_number_of_epochs_and_any_size(tmp_path: Path, losses: tuple[float, ...]) -> None:
    plots.draw_losses(make_epochs(*losses), "test set", tmp_path / "losses.png")
    read_picture(tmp_path / "losses.png")


def test_confusion(tmp_path: Path, texts: dict) -> None:
    """The colour is the share of the true class; the diagonal has none."""
    confusion = [[990 * (row == column) for column in range(10)] for row in range(10)]
    confusion[3][5], confusion[8][1], confusion[8][2] = 10, 6, 4
    confusion[0][0] = 12345
    confusion[6] = [0] * 10  # a class without images
    plots.draw_confusion(confusion, FASHION, tmp_path / "confusion.png")
    picture = read_picture(tmp_path / "confusion.png").astype(int)
    assert {"Predicted", "True", "12,345", "990", "10", "6", "4", *FASHION} <= texts.keys()
    assert texts["10"][1] - texts["4"][1] == pytest.approx((texts["6"][1] - texts["10"][1]) * -1)

    def redness(count: str) -> int:
        x, y = texts[count]
        red, green, blue = picture[int(y) - 25, int(x) - 25]
        return int(red - max(green, blue))

    assert redness("10") > redness("6") > redness("4") > 30
    assert redness("12,345") == redness("990") == 0


@pytest.mark.parametrize(("samples", "shown"), [(80, range(79, 29, -2)), (15, [13, 11, 9, 7, 5, 3, 1])])
def test_mistakes_are_the_surest_ones(tmp_path: Path, texts: dict, samples: int, shown: list[int]) -> None:
    plots.draw_mistakes(*every_other_wrong(samples), FASHION, tmp_path / "mistakes.png")
    found = [int(image[0, 0]) for image in cells(read_picture(tmp_path / "mistakes.png"))]
    assert found[: len(shown)] == list(shown)
    assert set(found[len(shown) :]) <= {255}
    title = f"Mistakes, the surest first: {len(shown)} of {samples // 2}, in {samples} images"
    confidence = np.exp(6) / (np.exp(6) + 9)
    assert title in texts
    assert samples != 80 or f"Ankle boot as T-shirt/top\n{confidence:.1%}" in texts


def test_no_mistakes_are_said_in_the_picture(tmp_path: Path, texts: dict) -> None:
    images, labels, _ = every_other_wrong(2000)
    plots.draw_mistakes(
        images, labels, np.eye(10, dtype=np.float32)[labels], DIGITS, tmp_path / "mistakes.png"
    )
    assert (tmp_path / "mistakes.png").exists()
    assert "No mistakes in 2,000 images" in texts


def test_labels_of_any_text(tmp_path: Path) -> None:
    """Neither characters that the font lacks nor length stops a finished run."""
    names = ("$a$", "\\foo", "お", "handwritten letter a", "handwritten letter b", *"vwxy", "z" * 999)
    shown = plots.captions(names)
    assert shown[2:5] == ["class 2", "handwr..er a", "handwr..er b"]
    assert len(shown[-1]) == plots.LONGEST_CAPTION
    for labels in (DIGITS, FASHION):
        assert plots.captions(labels) == [str(label) for label in labels]
    images, labels, logits = every_other_wrong(20)
    draws: list[Callable[[Path], None]] = [
        lambda path: plots.draw_samples(images, labels, names, path),
        lambda path: plots.draw_confusion([[1] * 10] * 10, names, path),
        lambda path: plots.draw_mistakes(images, labels, logits, names, path),
    ]
    for number, draw in enumerate(draws):
        folder = tmp_path / str(number)
        folder.mkdir()
        draw(folder / "picture.png")
        read_picture(folder / "picture.png")
