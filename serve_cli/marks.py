"""The marks on a page: connected pieces of ink, and which of them are the digit."""

from dataclasses import dataclass

import numpy as np

MARGIN = 0.1
"""Share of the page along each edge in which frames and the dark bars of scanners lie."""

SPAN = 0.7
"""Share of a side of the page that a frame or a bar covers at least."""

IN_MARGIN = 0.9
"""Share of its ink that a frame or a bar has in the margin at least."""

SMALLEST_DIGIT = 0.15
"""Share of the page's shorter side that a digit measures at least: without one beside it, a frame is none."""

SPECK = 0.08
"""A mark whose longer side is a smaller share of the main mark's is a speck."""

NEAR = 0.3
"""A mark belongs to the digit if the gap to it is at most this share of the mark's own longer side."""

RIVAL = 0.5
"""A mark apart whose longer side is at least this share of the digit's is another digit."""


@dataclass(frozen=True)
class Marks:
    """Connected pieces of ink; all arrays are int64 [M] and in pixels.

    A box ends before `bottom` and `right`. `labels`, int64 [H, W], has the number of each pixel's mark, from
    0, and -1 where there is none.
    """

    labels: np.ndarray
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
        height, width = self.labels.shape
        return (self.top == 0) | (self.left == 0) | (self.bottom == height) | (self.right == width)

    def box(self, which: np.ndarray) -> tuple[slice, slice]:
        """Rows and columns of the box around the marks `which`, bool [M], of which there must be one."""
        return (
            slice(int(self.top[which].min()), int(self.bottom[which].max())),
            slice(int(self.left[which].min()), int(self.right[which].max())),
        )

    def mask(self, which: np.ndarray) -> np.ndarray:
        """Which pixels belong to the marks `which`, bool [M]: bool [H, W]."""
        return np.append(which, False)[self.labels]


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
    edges = np.diff(np.pad(ink, ((0, 0), (1, 1))).view(np.int8), axis=1)
    row, start = np.nonzero(edges == 1)
    end = np.nonzero(edges == -1)[1]
    labels = np.full(ink.shape, -1)
    labels[ink] = np.repeat(_join(row, start, end, ink.shape[1] + 2), end - start)
    holds_clear, of_clear = np.unique(labels[clear], return_inverse=True)
    renumbered = np.full(int(labels.max(initial=-1)) + 2, -1)  # the last one is for no ink, -1
    renumbered[holds_clear] = np.arange(len(holds_clear))
    return _measure(renumbered[labels], of_clear, np.nonzero(clear))


def _measure(labels: np.ndarray, mark: np.ndarray, at: tuple[np.ndarray, ...]) -> Marks:
    """Area and box of each mark, from the pixels `at` rows and columns, int64 [P], and their `mark` [P]."""
    area = np.bincount(mark)
    first, last = np.full((2, len(area)), max(labels.shape)), np.zeros((2, len(area)), np.int64)
    for axis, place in enumerate(at):
        np.minimum.at(first[axis], mark, place)
        np.maximum.at(last[axis], mark, place + 1)
    return Marks(labels, area, first[0], last[0], first[1], last[1])


def _join(row: np.ndarray, start: np.ndarray, end: np.ndarray, stride: int) -> np.ndarray:
    """The mark of each run of pixels, int64 [R], by union-find; `stride` is more than any column."""
    below = (row + 1) * stride
    first = np.searchsorted(row * stride + end, below + start, side="left").tolist()
    last = np.searchsorted(row * stride + start, below + end, side="right").tolist()
    parent = list(range(len(row)))
    for run in parent[:]:
        for other in range(first[run], last[run]):
            a, b = _root(parent, run), _root(parent, other)
            parent[max(a, b)] = min(a, b)
    return np.array([_root(parent, run) for run in range(len(parent))], np.int64)


def _root(parent: list[int], run: int) -> int:
    while parent[run] != run:
        parent[run] = run = parent[parent[run]]
    return run


def choose(marks: Marks) -> Choice:
    """Tell the digit from frames, specks, strays and other digits; there must be a mark.

    The digit is the largest mark that is no frame, and what lies near it.
    """
    frame = _frames(marks)
    size = np.where(frame, 0, marks.size)
    main = int(np.where(frame, 0, marks.area).argmax())
    speck = size < SPECK * size[main]
    if marks.area[speck & ~frame].sum() > marks.area[main]:  # a stroke in many pieces
        speck[:] = False
    candidate = ~frame & ~speck
    digit = np.arange(len(size)) == main
    while (grown := candidate & (_gap(marks, digit) <= NEAR * size)).sum() > digit.sum():
        digit = grown
    rival = candidate & ~digit & ~marks.at_edge & (size >= RIVAL * longer_side(marks.box(digit)))
    return Choice(digit, frame, ~(digit | frame | rival), rival)


def _frames(marks: Marks) -> np.ndarray:
    """Which marks are frames, or bars at the edge, bool [M]; none of them if no digit would be left."""
    height, width = marks.labels.shape
    rows, columns = round(MARGIN * height), round(MARGIN * width)
    inside = marks.labels[rows : height - rows, columns : width - columns]
    in_margin = marks.area - np.bincount(inside[inside >= 0], minlength=len(marks.area))
    spans = (marks.bottom - marks.top >= SPAN * height) | (marks.right - marks.left >= SPAN * width)
    found = spans & (in_margin >= IN_MARGIN * marks.area)
    left = marks.size[~found]
    return found & (left.max(initial=0) >= SMALLEST_DIGIT * min(height, width))


def _gap(marks: Marks, digit: np.ndarray) -> np.ndarray:
    """Pixels between the box of each mark and that of the `digit`, int64 [M]; 0 where they overlap."""
    rows, columns = marks.box(digit)
    down = np.maximum(marks.top - rows.stop, rows.start - marks.bottom)
    across = np.maximum(marks.left - columns.stop, columns.start - marks.right)
    return np.maximum(np.maximum(down, across), 0)


def longer_side(box: tuple[slice, slice]) -> int:
    """Pixels of the longer side of a box."""
    return max(side.stop - side.start for side in box)
