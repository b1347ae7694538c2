"""Paper and ink: light, shadows, noise, polarity, faint and thin strokes."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from serve_cli.page import (
    DARKEST,
    MIN_CONTRAST,
    WORKING_SIZE,
    Page,
    grow,
    local_difference,
    look,
    paper_surface,
    shrink,
    strength,
)

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


@pytest.mark.parametrize("dark", [True, False])
def test_ink_is_the_share_of_the_contrast_above_what_is_faint(dark: bool) -> None:
    levels = ring(ink=40, paper=200)
    levels[75:85, 85:95] = 120  # half as strong, apart from the ring
    levels[80, 60:63] = 0  # stronger, and too few to count
    page = seen(levels if dark else 255 - levels)
    assert page.contrast == 160
    assert page.ink.dtype == np.float32
    assert page.ink[80, 90] == pytest.approx((0.5 - 0.2) / 0.8, abs=0.01)
    assert (page.ink.min(), page.ink.max()) == (0, 1)
    assert len(page.marks.area) == 2


def test_the_strongest_contrast_decides_on_dark_or_light() -> None:
    levels = ring(ink=0, paper=150, width=4)
    levels[4:24] = 210  # a reflection: less than half the contrast on three times the pixels
    assert seen(levels).dark


def test_strength_is_what_one_pixel_in_5000_exceeds() -> None:
    contrast = np.zeros((100, 100), np.float32)
    contrast[0, :4] = 90, 99.6, 200, 210
    assert strength(contrast) == 100
    assert strength(np.full((10, 10), 300.0)) == 255


@pytest.mark.parametrize("turns", range(4))
def test_a_tenth_of_the_edge_makes_the_light_uneven(turns: int) -> None:
    for width, even in ((39, True), (40, False)):
        levels = np.full((100, 100), 255)
        levels[0, 30 : 30 + width] = 0
        levels[1:10, 30:66] = 0
        assert seen(np.rot90(levels, turns)).even is even


def test_a_frame_does_not_make_the_light_uneven() -> None:
    levels = ring()
    levels[:4] = levels[-4:] = levels[:, :4] = levels[:, -4:] = 30
    page = seen(levels)
    assert page.choice.frame.any()
    assert page.even
    assert page.box == BOX


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
    assert page.even is False
    assert page.dark == dark
    assert close_to(page.box, BOX, 4)


def test_faint_ink_is_as_strong_as_any() -> None:
    page = seen(ring(ink=195))
    assert page.contrast == 25
    assert page.box == BOX
    assert page.ink.max() == 1


def test_less_contrast_than_counts_is_blank() -> None:
    for contrast in (MIN_CONTRAST, MIN_CONTRAST - 1):
        levels = np.full(CANVAS, 220, np.uint8)
        levels[51:54, 40:140] = 220 - contrast  # between the samples of the paper
        assert (look(levels) is None) == (contrast < MIN_CONTRAST)


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


def test_paper_that_falls_off_evenly_is_found_exactly() -> None:
    y, x = np.indices((33, 33))
    surface = paper_surface((3 * y + 4 * x).astype(np.uint8))
    assert surface.dtype == np.float32
    assert np.abs(surface - (3 * y + 4 * x)).max() < 0.01


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 1)])
def test_paper_of_few_pixels_is_found(shape: tuple[int, int]) -> None:
    assert paper_surface(np.full(shape, 100, np.uint8)) == pytest.approx(np.full(shape, 100), abs=0.01)


def stripes(paper: int, ink: int, *columns: slice, width: int = 100) -> np.ndarray:
    """Stripes of `ink` from top to bottom on `paper`, uint8 [100, `width`]."""
    grey = np.full((100, width), paper, np.uint8)
    for each in columns:
        grey[:, each] = ink
    return grey


def test_paper_is_what_most_of_the_page_has_within_64_grey_levels() -> None:
    left = slice(0, 40)
    assert paper_surface(stripes(164, 0, left)) == pytest.approx(np.full((100, 100), 164), abs=0.01)
    assert paper_surface(stripes(164, 99, left)) == pytest.approx(np.full((100, 100), 164), abs=0.01)
    assert paper_surface(stripes(164, 100, left))[:, :10].max() < 130


def test_paper_between_two_levels_stays_there() -> None:
    levels = 100 + 60 * (np.indices((33, 33)).sum(0) % 2)
    assert np.abs(paper_surface(levels.astype(np.uint8)) - 130).max() < 5


def test_dark_strokes_count_alike_in_the_light_and_in_the_shadow() -> None:
    grey = stripes(200, 40, slice(20, 30))
    grey[:, 50:] = stripes(108 - DARKEST, 28 - DARKEST, slice(20, 30))[:, :50]
    difference = local_difference(grey)
    assert difference.dtype == np.float32
    assert difference == pytest.approx(stripes(0, 160, slice(20, 30), slice(70, 80)) * -1.0, abs=1e-3)


def test_light_strokes_count_by_their_own_contrast() -> None:
    difference = local_difference(stripes(60, 200, slice(20, 30)))
    assert difference == pytest.approx(stripes(0, 140, slice(20, 30)).astype(float))


def test_what_is_wider_than_a_stroke_is_a_shadow() -> None:
    assert local_difference(stripes(200, 40, slice(40, 58))).min() == pytest.approx(-160, abs=1e-3)
    assert not local_difference(stripes(200, 40, slice(40, 59))).any()


def test_few_dark_strokes_outweigh_many_pixels_of_weak_light() -> None:
    grey = stripes(150, 184, slice(19, 37), slice(56, 74), slice(93, 111), width=180)
    grey[:, 130:134] = 40
    assert local_difference(grey)[:, 130:134].max() < -100


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
