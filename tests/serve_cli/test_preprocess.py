"""MNIST's geometry: genuine pictures pass untouched, others arrive at it."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from serve_cli.preprocess import BOX, CENTRE, OFF_CENTRE, centre_of_mass, extent, stroke_width, to_mnist
from trainer.data import Dataset


def drawing(
    size: tuple[int, int] = (200, 160), width: int = 12, ink: int = 20, paper: int = 235
) -> np.ndarray:
    """A hand-drawn 7, off the centre."""
    image = Image.new("L", size, paper)
    ImageDraw.Draw(image).line([(20, 30), (90, 30), (50, 130)], fill=ink, width=width, joint="curve")
    return np.asarray(image)


def test_genuine_pictures_of_mnist5k_pass_bit_for_bit(mnist5k: Dataset) -> None:
    for images in (mnist5k.train.images, mnist5k.test.images):
        for image in images.numpy():
            assert np.array_equal(to_mnist(image).pixels, image)


def test_all_70000_genuine_pictures_pass_bit_for_bit(full_mnist: Dataset) -> None:
    for images in (full_mnist.train.images, full_mnist.test.images):
        changed = sum(not np.array_equal(to_mnist(image).pixels, image) for image in images.numpy())
        assert changed == 0


def test_a_drawing_arrives_at_mnist_geometry() -> None:
    pixels = to_mnist(drawing()).pixels
    rows, columns = extent(pixels > 0)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (28, 28)
    assert max(rows.stop - rows.start, columns.stop - columns.start) == BOX
    assert all(abs(centre - CENTRE) <= OFF_CENTRE for centre in centre_of_mass(pixels))
    assert pixels.max() == 255


def test_aspect_is_kept() -> None:
    rows, columns = extent(to_mnist(drawing()).pixels > 60)
    height, width = rows.stop - rows.start, columns.stop - columns.start
    assert width / height == pytest.approx(82 / 112, abs=0.1)


def test_a_vertical_line_does_not_become_a_block() -> None:
    image = np.full((100, 100), 255, np.uint8)
    image[10:90, 48:52] = 0
    _, columns = extent(to_mnist(image).pixels > 60)
    assert columns.stop - columns.start <= 4


def test_polarity_does_not_matter() -> None:
    dark_on_light = to_mnist(drawing()).pixels.astype(int)
    light_on_dark = to_mnist(255 - drawing()).pixels.astype(int)
    assert np.abs(dark_on_light - light_on_dark).max() <= 1


@pytest.mark.parametrize("scale", [2, 5, 10])
def test_size_hardly_matters(scale: int) -> None:
    small = drawing()
    large = np.kron(small, np.ones((scale, scale), np.uint8))
    difference = np.abs(to_mnist(small).pixels.astype(int) - to_mnist(large).pixels.astype(int))
    assert difference.mean() < 6


def test_faint_ink_counts() -> None:
    strong = to_mnist(drawing(ink=20)).pixels.astype(int)
    faint = to_mnist(drawing(ink=195)).pixels.astype(int)
    assert np.abs(strong - faint).mean() < 6


def test_uneven_light_leaves_no_ink() -> None:
    light = np.linspace(0, 60, 160)[:, None] + np.linspace(0, 40, 200)[None, :]
    shaded = np.clip(drawing().astype(int) - light.astype(int), 0, 255).astype(np.uint8)
    difference = np.abs(to_mnist(shaded).pixels.astype(int) - to_mnist(drawing()).pixels.astype(int))
    assert difference.mean() < 6


def test_hairlines_are_widened_to_the_strokes_of_mnist() -> None:
    hairline = to_mnist(drawing(size=(800, 800), width=1)).pixels
    assert hairline.max() == 255
    assert stroke_width(hairline / 255) > 1.5


@pytest.mark.parametrize("level", [0, 128, 255])
@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (28, 28), (300, 200)])
def test_a_blank_picture_has_no_digit(level: int, shape: tuple[int, int]) -> None:
    result = to_mnist(np.full(shape, level, np.uint8))
    assert result.refusal == "the picture is blank"
    assert not result.pixels.any()


@pytest.mark.parametrize("shape", [(1, 2), (2, 1), (3, 3), (28, 28), (1, 2000), (2000, 1), (700, 3)])
def test_noise_of_any_shape_gives_a_picture(shape: tuple[int, int]) -> None:
    for seed in range(20):
        noise = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
        pixels = to_mnist(noise).pixels
        assert pixels.shape == (28, 28)
        assert pixels.dtype == np.uint8
