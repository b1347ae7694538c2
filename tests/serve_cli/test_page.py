"""Paper and ink: light, shadows, noise, polarity, faint and thin strokes."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from serve_cli.page import MIN_CONTRAST, WORKING_SIZE, Page, grow, look, paper_surface, shrink

CANVAS = (160, 180)


def ring(ink: float = 30, paper: float = 220, width: int = 12) -> np.ndarray:
    """A 0 of 80x100 pixels in the middle of the canvas, float64 [160, 180]."""
    image = Image.new("L", CANVAS[::-1], 0)
    ImageDraw.Draw(image).ellipse((50, 30, 129, 129), outline=255, width=width)
    return paper + (ink - paper) * (np.asarray(image) / 255)


def seen(levels: np.ndarray) -> Page:
    page = look(np.clip(levels, 0, 255).astype(np.uint8))
    assert page is not None
    return page


def noise(deviation: float) -> np.ndarray:
    return np.random.default_rng(0).normal(0, deviation, CANVAS)


def fall_off(far: float) -> np.ndarray:
    """Light from the left that falls off to `far` at the right, 0 to 1."""
    return np.linspace(1, far, CANVAS[1])[None, :]


def vignette(far: float) -> np.ndarray:
    """Light that falls off to `far` in the corners, 0 to 1."""
    y, x = (np.linspace(-1, 1, side) for side in CANVAS)
    return 1 - (1 - far) * (y[:, None] ** 2 + x**2) / 2


def shadow(beyond: float) -> np.ndarray:
    """A shadow with a sharp edge that runs through the 0, 0 to 1."""
    return np.where(np.arange(CANVAS[1]) < 80, 1, beyond)[None, :]


def jpeg(levels: np.ndarray, quality: int) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(levels.astype(np.uint8)).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream), dtype=float)


BOX = (slice(30, 130), slice(50, 130))


def close_to(box: tuple[slice, slice], expected: tuple[slice, slice], within: int) -> bool:
    ends = [(side.start, side.stop) for side in box]
    return bool(np.abs(np.subtract(ends, [(side.start, side.stop) for side in expected])).max() <= within)


@pytest.mark.parametrize("dark", [True, False])
def test_polarity_ink_and_box(dark: bool) -> None:
    page = seen(ring() if dark else 255 - ring())
    assert page.dark == dark
    assert page.box == BOX
    assert page.contrast == 190
    assert page.even
    assert np.array_equal(page.ink > 0.5, ring() < 100)
    assert len(page.marks.area) == 1


@pytest.mark.parametrize(
    "levels",
    [
        ring() * fall_off(0.35),
        ring() * vignette(0.4),
        255 - ring() * fall_off(0.35),
        ring() + noise(12),
        jpeg(ring(), 15),
        jpeg(ring(90) * fall_off(0.6) + noise(5), 30),
    ],
    ids=["gradient", "vignette", "gradient, light ink", "noise", "JPEG", "all of them"],
)
def test_only_the_strokes_are_ink(levels: np.ndarray) -> None:
    page = seen(levels)
    assert page.even
    assert close_to(page.box, BOX, 2)
    drawn = grow((ring() < 100).astype(np.uint8), 4) > 0
    assert not page.ink[~drawn].any() or page.ink[~drawn].mean() < 0.01
    assert (page.ink > 0.3)[ring() < 100].mean() > 0.97


@pytest.mark.parametrize("dark", [True, False])
def test_a_sharp_shadow_is_no_ink(dark: bool) -> None:
    levels = ring() * shadow(0.55)
    page = seen(levels if dark else 255 - levels)
    assert not page.even
    assert page.dark == dark
    assert close_to(page.box, BOX, 4)


def test_faint_ink_is_as_strong_as_any() -> None:
    page = seen(ring(ink=195))
    assert page.contrast == 25
    assert page.box == BOX
    assert page.ink.max() == 1


def test_less_contrast_than_counts_is_blank() -> None:
    assert look(ring(ink=215 - MIN_CONTRAST).astype(np.uint8)) is not None
    assert look(ring(ink=221 - MIN_CONTRAST).astype(np.uint8)) is None


@pytest.mark.parametrize(
    "light",
    [fall_off(0.35), vignette(0.4), 1 + noise(0.012), fall_off(0.5) * vignette(0.8) + noise(0.01)],
    ids=["gradient", "vignette", "noise", "all of them"],
)
@pytest.mark.parametrize("paper", [100, 220])
def test_paper_alone_is_blank(light: np.ndarray, paper: int) -> None:
    levels = np.broadcast_to(paper * light, CANVAS).astype(np.uint8)
    assert look(levels) is None
    assert look(255 - levels) is None


def test_paper_is_found_under_strokes_of_either_kind() -> None:
    for ink in (0, 255):
        levels = ring(ink, 150) * vignette(0.7)
        under = np.broadcast_to(150 * vignette(0.7), CANVAS)
        assert np.abs(paper_surface(levels.astype(np.uint8)) - under).max() < 4


def test_a_hairline_on_a_large_canvas_is_ink() -> None:
    image = Image.new("L", (1000, 1000), 255)
    ImageDraw.Draw(image).line([(300, 200), (700, 200), (450, 800)], fill=0)
    page = seen(np.asarray(image))
    assert max(page.ink.shape) <= WORKING_SIZE
    assert len(page.marks.area) == 1
    scale = len(page.ink) / 1000
    expected = (slice(round(200 * scale), round(800 * scale)), slice(round(300 * scale), round(700 * scale)))
    assert close_to(page.box, expected, 2)


@pytest.mark.parametrize("shape", [(192, 192), (193, 10), (1, 5000), (1000, 1500)])
def test_shrink_averages_down_to_the_working_size(shape: tuple[int, int]) -> None:
    grey = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    small = shrink(grey)
    assert small.dtype == np.uint8
    assert max(small.shape) <= WORKING_SIZE
    factor = -(-max(shape) // WORKING_SIZE)
    assert small.shape == tuple(-(-side // factor) for side in shape)
    rows, columns = (min(factor, side) for side in shape)
    assert small[0, 0] == pytest.approx(grey[:rows, :columns].mean(), abs=1)
    assert small.mean() == pytest.approx(grey.mean(), abs=2)


def test_a_picture_of_the_working_size_is_not_touched() -> None:
    grey = np.zeros((WORKING_SIZE, 5), np.uint8)
    assert shrink(grey) is grey


def test_grow_is_the_greatest_in_a_square() -> None:
    levels = np.random.default_rng(0).integers(0, 256, (17, 9), dtype=np.uint8)
    for radius in range(4):
        rows, columns = levels.shape
        expected = [
            [
                levels[max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1].max()
                for x in range(columns)
            ]
            for y in range(rows)
        ]
        assert np.array_equal(grow(levels, radius), expected)
