"""Marks: pieces of ink as scipy finds them, and what each is taken for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image, ImageDraw
from scipy import ndimage

from serve_cli.marks import Choice, Marks, choose, find_marks

CORNERS_TOO = np.ones((3, 3))
KINDS = ("digit", "frame", "stray", "rival")


def page(*boxes: tuple[int, int, int, int], shape: tuple[int, int] = (100, 100)) -> np.ndarray:
    """Ink, bool [H, W], in each box of top, bottom, left and right."""
    ink = np.zeros(shape, bool)
    for top, bottom, left, right in boxes:
        ink[top:bottom, left:right] = True
    return ink


def painted(paint: str, *arguments: object, **options: object) -> np.ndarray:
    """What a method of ImageDraw paints on a page of 100x100, bool."""
    image = Image.new("1", (100, 100))
    getattr(ImageDraw.Draw(image), paint)(*arguments, **options)
    return np.asarray(image)


def read(ink: np.ndarray) -> tuple[Marks, Choice]:
    marks = find_marks(ink, ink)
    return marks, choose(marks)


def kinds(ink: np.ndarray) -> list[str]:
    """What each mark of `ink` is taken for, from the top."""
    choice = read(ink)[1]
    return [kind for mark in range(len(choice.digit)) for kind in KINDS if getattr(choice, kind)[mark]]


DIGIT, LARGE_DIGIT = (30, 70, 40, 60), (30, 75, 35, 65)
"""Boxes that no test takes for anything but the digit."""


@settings(deadline=None, max_examples=300)
@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=12)))
def test_marks_are_those_of_scipy(ink: np.ndarray) -> None:
    marks = find_marks(ink, ink)
    labels, count = ndimage.label(ink, CORNERS_TOO)
    assert len(marks.area) == count
    of_mark = [labels[marks.mask(np.arange(count) == mark)] for mark in range(count)]
    assert all(len(set(found)) == 1 for found in of_mark)
    order = [int(found[0]) for found in of_mark]
    assert sorted(order) == list(range(1, count + 1))
    assert marks.area.tolist() == [int((labels == label).sum()) for label in order]
    boxes = ndimage.find_objects(labels)
    assert [marks.box(np.arange(count) == mark) for mark in range(count)] == [boxes[k - 1] for k in order]


def test_large_pages_of_noise_are_labelled_as_scipy_does() -> None:
    rng = np.random.default_rng(0)
    for density in (0.1, 0.3, 0.5, 0.9):
        ink = rng.random((192, 192)) < density
        marks = find_marks(ink, ink)
        labels, count = ndimage.label(ink, CORNERS_TOO)
        assert sorted(marks.area) == sorted(np.bincount(labels[ink], minlength=count + 1)[1:])


def test_long_windings_are_one_mark() -> None:
    comb = np.zeros((192, 191), bool)
    comb[:, ::2] = True
    for ink in (comb, comb.T):
        assert len(find_marks(ink, ink).area) == 96
    comb[0] = True
    for ink in (comb, comb[::-1], comb.T, comb[::-1].T):
        assert find_marks(ink, ink).area.tolist() == [comb.sum()]


def test_weak_ink_joins_what_is_clear_but_is_no_mark_alone() -> None:
    clear = page((10, 20, 10, 20), (30, 40, 10, 20))
    weak = page((20, 30, 12, 14), (60, 70, 60, 70))
    marks = find_marks(clear | weak, clear)
    assert marks.area.tolist() == [200]
    assert marks.box(np.array([True])) == (slice(10, 40), slice(10, 20))
    assert (marks.mask(np.array([True])) == (clear | page((20, 30, 12, 14)))).all()
    two = find_marks(clear | page((60, 70, 60, 70)), clear)
    assert two.area.tolist() == [100, 100]
    assert (two.mask(np.array([True, True])) == clear).all()


def test_places_and_areas_are_whole_numbers() -> None:
    marks, _ = read(page(DIGIT))
    numbers = (marks.at, marks.owner, marks.area, marks.top, marks.bottom, marks.left, marks.right)
    assert {array.dtype for array in numbers} == {np.dtype(np.int64)}


def test_a_faint_halo_does_not_widen_the_box() -> None:
    clear = page(DIGIT)
    marks = find_marks(page((25, 75, 35, 65)), clear)
    assert marks.box(np.array([True])) == (slice(30, 70), slice(40, 60))


@pytest.mark.parametrize("gap", [0, 3, 7])
def test_a_frame_is_none_of_the_digit(gap: int) -> None:
    frame = painted("rectangle", (gap, gap, 99 - gap, 99 - gap), outline=1, width=2)
    assert kinds(frame | page(DIGIT)) == ["frame", "digit"]


@pytest.mark.parametrize("turns", range(4))
def test_a_bar_at_any_edge_is_a_frame(turns: int) -> None:
    bar = np.rot90(page((0, 5, 0, 100)), turns)
    assert sorted(kinds(bar | page(DIGIT))) == ["digit", "frame"]


@pytest.mark.parametrize("turns", range(4))
def test_a_frame_is_long_and_lies_in_the_margin(turns: int) -> None:
    def frames(*boxes: tuple[int, int, int, int]) -> int:
        return kinds(np.rot90(page(*boxes), turns)).count("frame")

    assert frames((0, 5, 15, 85), DIGIT) == 1
    assert frames((0, 5, 15, 84), DIGIT) == 0  # less than 0.7 of the side
    assert frames((0, 11, 0, 100), LARGE_DIGIT) == 1
    assert frames((0, 12, 0, 100), LARGE_DIGIT) == 0  # less than 0.9 of it lies in the margin
    bar, stalk = (0, 10, 14, 86), (10, 20, 46, 54)  # 0.9 of their ink lies in the margin
    assert frames(bar, stalk, LARGE_DIGIT) == 1
    assert frames(bar, stalk, (20, 21, 46, 47), LARGE_DIGIT) == 0
    assert frames((0, 5, 0, 100), DIGIT, (94, 98, 2, 6)) == 1  # what is short is none


def test_a_frame_is_one_where_a_digit_is_left() -> None:
    bar = (0, 5, 0, 100)
    assert kinds(page(bar, (40, 55, 40, 50))) == ["frame", "digit"]
    assert kinds(page(bar, (40, 54, 40, 50))) == ["digit", "stray"]  # less than 0.15 of the page
    assert kinds(page((0, 1, 0, 6), (3, 4, 3, 4), shape=(6, 6))) == ["frame", "digit"]
    assert kinds(page((0, 1, 0, 6), shape=(6, 6))) == ["digit"]


@pytest.mark.parametrize("turns", range(4))
def test_a_wedge_along_an_edge_is_a_frame(turns: int) -> None:
    wedge = np.rot90(painted("polygon", [(0, 0), (99, 0), (0, 8)], fill=1), turns)
    assert sorted(kinds(wedge | page(DIGIT))) == ["digit", "frame"]


def test_the_table_around_a_sheet_is_a_frame() -> None:
    table = ~page((25, 75, 20, 80))
    assert kinds(table | page((35, 65, 45, 55))) == ["frame", "digit"]


@pytest.mark.parametrize("turns", range(4))
def test_a_table_covers_most_of_the_edge(turns: int) -> None:
    def around(*sheet: int) -> list[str]:
        return sorted(kinds(np.rot90(~page(sheet) | page((35, 65, 45, 55)), turns)))

    assert around(25, 100, 12, 88) == ["digit", "frame"]
    assert around(25, 100, 12, 89) == ["digit", "digit"]  # less than 0.8 of the edge
    assert around(1, 75, 12, 89) == ["digit", "frame"]  # a strip one pixel wide is edge enough


def test_a_line_below_is_a_stray_and_one_above_is_not() -> None:
    assert kinds(page(DIGIT, (72, 75, 35, 65))) == ["digit", "stray"]
    assert kinds(page((25, 28, 35, 65), DIGIT)) == ["digit", "digit"]
    assert kinds(page(DIGIT, (72, 75, 45, 57))) == ["digit", "stray"]
    assert kinds(page(DIGIT, (72, 75, 45, 56))) == ["digit", "digit"]  # less than four times as wide as high
    assert kinds(page(DIGIT, (70, 72, 62, 72))) == ["digit", "stray"]
    assert kinds(page(DIGIT, (69, 71, 62, 72))) == ["digit", "digit"]  # it begins beside the digit


def test_a_frame_with_nothing_in_it_is_the_digit() -> None:
    frame = painted("rectangle", (0, 0, 99, 99), outline=1, width=5)
    assert kinds(frame) == ["digit"]
    assert kinds(frame | page((40, 45, 40, 45))) == ["digit", "stray"]  # too small for a digit


def test_a_tight_0_that_touches_all_edges_is_the_digit() -> None:
    ring = painted("ellipse", (0, 0, 99, 99), outline=1, width=12)
    assert kinds(ring | page((48, 50, 48, 50)))[0] == "digit"


def test_a_line_in_the_middle_is_no_frame() -> None:
    assert kinds(page((0, 100, 48, 52))) == ["digit"]


def test_specks_are_strays_even_within_the_digit() -> None:
    ring = painted("ellipse", (20, 20, 80, 80), outline=1, width=6)
    assert kinds(ring | page((48, 51, 48, 51), (5, 7, 5, 7))) == ["stray", "digit", "stray"]
    assert kinds(page((20, 70, 40, 60), (71, 75, 45, 49))) == ["digit", "digit"]
    assert kinds(page((19, 70, 40, 60), (71, 75, 45, 49))) == ["digit", "stray"]  # less than 0.08 of it


def test_what_lies_within_the_digits_box_is_near_however_small() -> None:
    ring = painted("ellipse", (35, 35, 64, 64), outline=1, width=3)
    assert kinds(ring | page((48, 51, 48, 51))) == ["digit", "digit"]


def test_a_stroke_in_many_pieces_is_whole() -> None:
    stem = (10, 70, 50, 51)
    dots = [(top, top + 4, 50, 54) for top in range(71, 96, 5)]
    assert kinds(page(stem, *dots)) == ["digit"] * 6
    assert kinds(page((6, 70, 50, 51), *dots[:4])) == ["digit"] + ["stray"] * 4  # as much ink as the stem
    assert kinds(page(stem, *dots[:3])) == ["digit"] + ["stray"] * 3  # less ink than the stem has


def test_a_mark_far_away_is_a_stray_and_one_nearby_is_not() -> None:
    assert kinds(page(DIGIT, (90, 93, 5, 15))) == ["digit", "stray"]
    assert kinds(page(DIGIT, (73, 76, 40, 50))) == ["digit", "digit"]
    assert kinds(page(DIGIT, (74, 77, 40, 50))) == ["digit", "stray"]  # farther than 0.3 of its size


def test_what_is_near_a_part_of_the_digit_belongs_to_it_too() -> None:
    assert kinds(page((30, 70, 30, 40), (40, 60, 43, 53), (45, 55, 55, 65))) == ["digit"] * 3


def test_the_flag_of_a_5_stays_with_it() -> None:
    belly = painted("arc", (30, 40, 60, 75), 200, 160, fill=1, width=4)
    assert kinds(belly | page((32, 36, 42, 62))) == ["digit", "digit"]


def test_another_digit_is_a_rival() -> None:
    assert kinds(page((30, 70, 10, 30), (32, 68, 65, 85))) == ["digit", "rival"]
    assert kinds(page((30, 70, 10, 30), (40, 60, 65, 75))) == ["digit", "rival"]
    assert kinds(page((30, 70, 10, 30), (40, 59, 65, 75))) == ["digit", "stray"]  # less than half as large


def test_a_large_mark_at_the_edge_is_a_stray() -> None:
    assert kinds(page((30, 70, 10, 30), (32, 68, 80, 100))) == ["digit", "stray"]
