"""The marks on a page: connected pieces of ink, and which of them are the digit."""

from dataclasses import dataclass

import numpy as np

MARGIN = 0.1
"""Share of the page along each edge in which frames and the dark bars of scanners lie."""

SPAN = 0.7
"""Share of a side of the page that a frame or a bar covers at least."""

IN_MARGIN = 0.9
"""Share of its ink that a frame or a bar has in the margin at least."""

ON_EDGE = 0.8
"""Share of the page's edge that a frame covers, however wide it is: the table around a sheet of paper."""

SMALLEST_DIGIT = 0.15
"""Share of the page's shorter side that a digit measures at least: without one beside it, a frame is none."""

SPECK = 0.08
"""A mark whose longer side is a smaller share of the main mark's is a speck."""

NEAR = 0.3
"""A mark belongs to the digit if the gap to it is at most this share of the mark's own longer side."""

FLAT = 4
"""Width of a line below the digit at least, as a multiple of its height."""

RIVAL = 0.5
"""A mark apart whose longer side is at least this share of the digit's is another digit."""


@dataclass(frozen=True)
class Marks:
    """Connected pieces of ink on a page of `shape`, height and width; everything is in pixels.

    `at` and `owner` are int64 [P]: the places of the ink, counted along the rows, and the mark that each
    belongs to, -1 for ink that is too weak for one. The others are int64 [M]; a box ends before `bottom` and
    `right`.
    """

    shape: tuple[int, int]
    at: np.ndarray
    owner: np.ndarray
    area: np.ndarray
    top: np.ndarray
    bottom: np.ndarray
    left: np.ndarray
    right: np.ndarray

    @property
    def size(self) -> np.ndarray:
        """The longer side of each box."""
        return np.maximum(self.bottom - self.top, self.right - self.left)

    @property
    def at_edge(self) -> np.ndarray:
        """Which marks touch the edge of the page, bool [M]."""
        height, width = self.shape
        return (self.top == 0) | (self.left == 0) | (self.bottom == height) | (self.right == width)

    def box(self, which: np.ndarray) -> tuple[slice, slice]:
        """Rows and columns of the box around the marks `which`, bool [M], of which there must be one."""
        return (
            slice(int(self.top[which].min()), int(self.bottom[which].max())),
            slice(int(self.left[which].min()), int(self.right[which].max())),
        )

    def mask(self, which: np.ndarray) -> np.ndarray:
        """Which pixels belong to the marks `which`, bool [M]: bool [H, W]."""
        mask = np.zeros(self.shape, bool)
        mask.reshape(-1)[self.at] = np.append(which, False)[self.owner]
        return mask


@dataclass(frozen=True)
class Choice:
    """What each mark is taken for: bool [M] each; no mark is two things."""

    digit: np.ndarray
    frame: np.ndarray
    stray: np.ndarray
    rival: np.ndarray


def find_marks(ink: np.ndarray, clear: np.ndarray) -> Marks:
    """The connected pieces of a bool `ink` [H, W] that hold `clear` ink, bool [H, W], too.

    Corners connect. What is clear sets a mark's area and box, so that a faint halo does not. Pixels are
    joined to runs along the rows, and runs that touch to marks: He, Chao, Suzuki, "A Run-Based Two-Scan
    Labeling Algorithm", IEEE Transactions on Image Processing 17, 2008.
    """
    at = np.flatnonzero(ink)
    row, column = np.divmod(at, ink.shape[1])
    place = at + row  # with a gap after each row, so that no run goes on in the next one
    first = np.flatnonzero(np.diff(place, prepend=-2) > 1)
    length = np.diff(first, append=len(at))
    start = place[first]
    owner = np.repeat(_join(start, start + length, ink.shape[1] + 1), length)
    is_clear = clear.reshape(-1)[at]
    held = np.bincount(owner[is_clear], minlength=len(at)) > 0
    owner = np.where(held, np.cumsum(held) - 1, -1)[owner]
    return _measure(ink.shape, at, owner, (owner[is_clear], row[is_clear], column[is_clear]))


def _measure(
    shape: tuple[int, int],
    at: np.ndarray,
    owner: np.ndarray,
    clear: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> Marks:
    """Area and box of each mark, from the owner, row and column of `clear` pixels."""
    mark, *places = clear
    area = np.bincount(mark)
    first, last = np.full((2, len(area)), max(shape)), np.zeros((2, len(area)), np.int64)
    for axis, place in enumerate(places):
        np.minimum.at(first[axis], mark, place)
        np.maximum.at(last[axis], mark, place + 1)
    return Marks(shape, at, owner, area, first[0], last[0], first[1], last[1])


def _join(start: np.ndarray, end: np.ndarray, stride: int) -> np.ndarray:
    """The mark of each run of pixels, int64 [R], numbered by its first run.

    Runs end before `end`; the place below one is `stride` further on. Of each two runs that touch, the marks
    become the lower one's, until no two differ: as many rounds as a few times the logarithm of R.
    """
    below = np.searchsorted(end, start + stride, side="left")
    count = np.searchsorted(start, end + stride, side="right") - below
    upper = np.repeat(np.arange(len(start)), count)
    lower = np.arange(len(upper)) + np.repeat(below - np.cumsum(count) + count, count)
    mark = np.arange(len(start))
    while ((one := mark[upper]) != (other := mark[lower])).any():
        least = np.minimum(one, other)
        np.minimum.at(mark, one, least)
        np.minimum.at(mark, other, least)
        mark = mark[mark[mark]]
    return mark


def choose(marks: Marks) -> Choice:
    """Tell the digit from frames, specks, strays and other digits; there must be a mark.

    The digit is the largest mark that is no frame, and what lies near it.
    """
    frame = _frames(marks)
    size = marks.size
    main = int(np.where(frame, 0, marks.area).argmax())
    speck = size < SPECK * size[main]
    if marks.area[speck & ~frame].sum() > marks.area[main]:  # a stroke in many pieces
        speck[:] = False
    candidate = ~frame & ~speck & ~_underlines(marks, main)
    digit = np.arange(len(size)) == main
    while (grown := candidate & (_gap(marks, digit) <= NEAR * size)).sum() > digit.sum():
        digit = grown
    rival = candidate & ~digit & ~marks.at_edge & (size >= RIVAL * longer_side(marks.box(digit)))
    return Choice(digit, frame, ~(digit | frame | rival), rival)


def _frames(marks: Marks) -> np.ndarray:
    """Which marks are frames, or bars at the edge, bool [M]; none of them if no digit would be left."""
    height, width = marks.shape
    spans = (marks.bottom - marks.top >= SPAN * height) | (marks.right - marks.left >= SPAN * width)
    if not spans.any():
        return spans
    rows, columns = round(MARGIN * height), round(MARGIN * width)
    row, column = np.divmod(marks.at, width)
    inside = (row >= rows) & (row < height - rows) & (column >= columns) & (column < width - columns)
    in_margin = marks.area - np.bincount(marks.owner[inside] + 1, minlength=len(marks.area) + 1)[1:]
    at_edge = (row == 0) | (row == height - 1) | (column == 0) | (column == width - 1)
    on_edge = np.bincount(marks.owner[at_edge] + 1, minlength=len(marks.area) + 1)[1:]
    found = spans & ((in_margin >= IN_MARGIN * marks.area) | (on_edge >= ON_EDGE * 2 * (height + width)))
    left = marks.size[~found]
    return found & (left.max(initial=0) >= SMALLEST_DIGIT * min(height, width))


def _underlines(marks: Marks, main: int) -> np.ndarray:
    """Which marks are lines below the main one, bool [M]: the flag of a 5 lies at its top."""
    flat = marks.right - marks.left >= FLAT * (marks.bottom - marks.top)
    return flat & (marks.top >= marks.bottom[main])


def _gap(marks: Marks, digit: np.ndarray) -> np.ndarray:
    """Pixels between the box of each mark and that of the `digit`, int64 [M]; 0 where they overlap."""
    rows, columns = marks.box(digit)
    down = np.maximum(marks.top - rows.stop, rows.start - marks.bottom)
    across = np.maximum(marks.left - columns.stop, columns.start - marks.right)
    return np.maximum(np.maximum(down, across), 0)


def longer_side(box: tuple[slice, slice]) -> int:
    """Pixels of the longer side of a box."""
    return max(side.stop - side.start for side in box)
