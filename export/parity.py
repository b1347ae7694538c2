"""The proof of an export: its outputs are the original's on the whole test set, a float file has its weights.

The original is the net in PyTorch, or the ONNX file that somebody brought, in onnxruntime.

A label that the original itself gives differently from batch to batch is a tie: the two best logits of the
reference are closer than twice the allowed difference. Ties are counted, and fail no proof.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from serve_cli.errors import CheckFailed
from serve_cli.metrics import largest_difference
from serve_cli.runtime import CHUNK, Prediction
from serve_cli.spec import CLASSES, IMAGE_SIZE
from serve_cli.tolerance import FLOAT, INT8, Tolerance

Runner = Callable[[np.ndarray, int], Prediction]
"""Classifies uint8 [N, 28, 28] in batches of the given size."""

SMALL_BATCHES = (0, 1, 7)
"""Other code may run for no image, one image, and a size that fills no vector register."""

SUBSET = 200
"""Test images at the small batch sizes; all of them are compared at CHUNK."""

REFERENCE = "onnx.reference"
"""ONNX's own evaluator, a backend that is slow for all but the smallest nets."""

SMALL_SUBSET = 16
"""Test images at the small batch sizes in a slow backend, which gets SUBSET of them at CHUNK: ONNX's own
evaluator takes 20 ms for an image in a small convolutional net."""

MOST_LOST, FEWEST_LOST = 0.001, 3
"""The 8-bit format may read so many fewer test images right than the original, as a share, or of a small set
as a number: two of 1,000 are chance."""

MOST_FLIPS, FEWEST_FLIPS = 0.002, 10
"""So many of its labels may differ from the original's, in either direction."""

OVERHEAD, BYTES_A_UNIT = 18_000, 12
"""Bytes that an 8-bit file may have beyond one a parameter: for all the rest, and for each unit of a layer
its scale, zero point and wider bias. That is 130 kB for the tutorial's net."""

NOISE_PICTURES = 4
VECTORS_A_CLASS = 2


@dataclass(frozen=True, kw_only=True)
class ParityInputs:
    """The images that every file is run on: test digits with their labels, then edge pictures without.

    `images` uint8 [N + E, 28, 28], `labels` int64 [N]; `reference` the original's outputs.
    """

    images: np.ndarray
    labels: np.ndarray
    reference: Prediction

    def vector_positions(self) -> np.ndarray:
        """Positions of the digits that become test vectors: the first two of each class, int64."""
        return np.concatenate([np.flatnonzero(self.labels == c)[:VECTORS_A_CLASS] for c in range(CLASSES)])

    def ties(self) -> np.ndarray:
        """Where the original's label is a matter of rounding, bool [N + E]."""
        second, best = np.sort(self.reference.logits.astype(np.float64), axis=1)[:, -2:].T
        ties: np.ndarray = best - second <= 2 * FLOAT.of_logits(self.reference.logits)
        return ties


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How far a file is from the original: the worst over all images, batch sizes and engines.

    `tolerance_share` is the largest difference as a share of the allowed one. `argmax_flips` counts the test
    digits whose label differs in any comparison, and `ties` those of them that are ties. All that follows
    leaves ties out: `agreement` is the share (0 to 1) of digits with its label, `edge_flips` counts the
    edge pictures with another one, `accuracy` is the file's own on the `samples` test digits, at batch size
    CHUNK. `engines` has the largest difference of a logit in each.
    """

    max_abs_logit_diff: float
    max_abs_probability_diff: float
    tolerance_share: float
    argmax_flips: int
    ties: int
    samples: int
    agreement: float
    edge_flips: int
    edge_pictures: int
    accuracy: float
    reference_accuracy: float
    engines: Mapping[str, float]
    batch_sizes: tuple[int, ...]

    def statement(self) -> dict[str, object]:
        """What the file itself states: only what is the same each time it is proven, so without ties.

        A difference depends on where in memory the numbers of a backend lie.
        """
        proof = dataclasses.asdict(self)
        for varying in ("max_abs_logit_diff", "max_abs_probability_diff", "tolerance_share", "ties"):
            del proof[varying]
        return {**proof, "argmax_flips": self.argmax_flips - self.ties, "engines": list(self.engines)}

    def require_float(self, file: str) -> None:
        """Raise unless the outputs of `file` are the original's.

        Raises:
            CheckFailed: a difference above the tolerance, or a label that differs and is no tie.
        """
        flips = self.argmax_flips - self.ties + self.edge_flips
        if flips or not self.tolerance_share <= 1:
            raise CheckFailed(
                f"{file} differs from the original by up to {self.max_abs_logit_diff:.3g} in a logit and "
                f"{self.max_abs_probability_diff:.3g} in a probability "
                f"({self.tolerance_share:.3g} times what is allowed), "
                f"{flips} of {self.samples + self.edge_pictures:,} labels differ: nothing was published"
            )

    def require_int8(self, file: str) -> None:
        """Raise unless the 8-bit `file` reads about as well as the original; it may read better.

        Raises:
            CheckFailed: it loses too many digits, too many labels differ, or an output is not finite.
        """
        lost = round((self.reference_accuracy - self.accuracy) * self.samples)
        flips = self.argmax_flips - self.ties
        most_lost = max(math.floor(MOST_LOST * self.samples), FEWEST_LOST)
        most_flips = max(math.floor(MOST_FLIPS * self.samples), FEWEST_FLIPS)
        if not math.isfinite(self.tolerance_share) or lost > most_lost or flips > most_flips:
            raise CheckFailed(
                f"{file} reads {self.accuracy:.2%} of the test digits right and the original "
                f"{self.reference_accuracy:.2%} ({max(lost, 0)} digits fewer, allowed: {most_lost}), "
                f"{flips} of {self.samples:,} labels differ (allowed: {most_flips}): nothing was published; "
                "train longer, or export the other formats one by one"
            )


def edge_pictures() -> np.ndarray:
    """Pictures that no test set holds, uint8 [E, 28, 28]: black, white, one pixel, noise."""
    black = np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    corner, middle = black.copy(), black.copy()
    corner[0, 0] = 255
    middle[IMAGE_SIZE // 2, IMAGE_SIZE // 2] = 1
    noise = np.random.default_rng(0).integers(0, 256, (NOISE_PICTURES, *black.shape), np.uint8)
    return np.stack([black, ~black, corner, middle, *noise])


@dataclass(frozen=True)
class Comparison:
    """One backend at one batch size: its largest differences, and the label of every image, int64 [N].

    An image that was not compared at this batch size has the original's label.
    """

    backend: str
    batch_size: int
    logit_diff: float
    probability_diff: float
    tolerance_share: float
    labels: np.ndarray


def measure(
    backends: Mapping[str, Runner],
    inputs: ParityInputs,
    *,
    int8: bool = False,
    slow: Collection[str] = (),
) -> Parity:
    """Compare the outputs of each of `backends` with the original's.

    An 8-bit file is compared on the test digits alone: edge pictures are unlike what it was calibrated on.
    Of another program's model some backends are `slow`: they get a part of the digits, and no backend gets an
    empty batch, which not every graph can compute.
    """
    sizes = tuple(size for size in SMALL_BATCHES if size or not slow)
    samples = len(inputs.labels)
    compared = samples if int8 else len(inputs.images)
    comparisons = [
        _compare(name, run, inputs, batch_size, positions, INT8 if int8 else FLOAT)
        for name, run in backends.items()
        for batch_size, positions in _batches(sizes, samples, compared, is_slow=name in slow)
    ]
    reference, ties = inputs.reference.logits.argmax(axis=1), inputs.ties()
    flipped = np.any([comparison.labels != reference for comparison in comparisons], axis=0)
    flips, tied = int(flipped[:samples].sum()), int((flipped & ties)[:samples].sum())
    return Parity(
        max_abs_logit_diff=max(comparison.logit_diff for comparison in comparisons),
        max_abs_probability_diff=max(comparison.probability_diff for comparison in comparisons),
        tolerance_share=max(comparison.tolerance_share for comparison in comparisons),
        argmax_flips=flips,
        ties=tied,
        samples=samples,
        agreement=1 - (flips - tied) / samples,
        edge_flips=int((flipped & ~ties)[samples:].sum()),
        edge_pictures=compared - samples,
        accuracy=min(
            _accuracy(np.where(ties, reference, comparison.labels), inputs.labels)
            for comparison in comparisons
            if comparison.batch_size == CHUNK
        ),
        reference_accuracy=_accuracy(reference, inputs.labels),
        engines={
            name: max(comparison.logit_diff for comparison in comparisons if comparison.backend == name)
            for name in backends
        },
        batch_sizes=(*sizes, CHUNK),
    )


def _batches(
    sizes: Sequence[int], samples: int, compared: int, *, is_slow: bool
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each batch size with the positions of the images that are compared at it."""
    few, many = (SMALL_SUBSET, SUBSET) if is_slow else (SUBSET, samples)
    for batch_size in sizes:
        yield batch_size, np.r_[: min(few, samples), samples:compared] if batch_size else np.arange(0)
    yield CHUNK, np.r_[: min(many, samples), samples:compared]


def _compare(
    name: str,
    run: Runner,
    inputs: ParityInputs,
    batch_size: int,
    positions: np.ndarray,
    tolerance: Tolerance,
) -> Comparison:
    found = run(inputs.images[positions], max(batch_size, 1))
    expected = inputs.reference.logits[positions], inputs.reference.probabilities[positions]
    logit_diff = largest_difference(found.logits, expected[0])
    labels = inputs.reference.logits.argmax(axis=1)
    if math.isfinite(logit_diff):
        labels[positions] = found.logits.argmax(axis=1)
    return Comparison(
        backend=name,
        batch_size=batch_size,
        logit_diff=logit_diff,
        probability_diff=largest_difference(found.probabilities, expected[1]),
        tolerance_share=tolerance.worst((found.logits, found.probabilities), expected).share,
        labels=labels,
    )


def _accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Share (0 to 1) of the test digits, which come first in `predicted`, with the right label."""
    return float((predicted[: len(labels)] == labels).mean())


def require_same_weights(file: str, found: Mapping[str, np.ndarray], state: Mapping[str, np.ndarray]) -> None:
    """Raise unless a float file holds the weights of the net, `state`, to the last bit.

    Outputs alone do not show this: 1e-3 on one weight may change no logit by more than rounding does.

    Raises:
        CheckFailed: a weight is missing or differs.
    """
    for name, value in state.items():
        if name not in found or not np.array_equal(found[name], value):
            raise CheckFailed(f"{file} differs from the net in the weights {name}: nothing was published")


def require_small(file: str, size: int, sizes: Sequence[int]) -> None:
    """Raise unless an 8-bit file of `size` bytes is small; `sizes` are those of the layers, input first.

    Raises:
        CheckFailed: it has more than about a byte a parameter.
    """
    parameters = sum((before + 1) * after for before, after in itertools.pairwise(sizes))
    allowed = parameters + BYTES_A_UNIT * sum(sizes[1:]) + OVERHEAD
    if size > allowed:
        raise CheckFailed(f"{file} has {size:,} bytes, allowed are {allowed:,}: nothing was published")
