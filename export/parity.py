"""The proof of an export: PyTorch's answers on real digits, at every batch size, in every engine."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from export.format import Runner
from serve_cli.errors import CheckFailed
from serve_cli.metrics import largest_difference
from serve_cli.runtime import Prediction
from serve_cli.spec import CLASSES, IMAGE_SIZE

TOLERANCE = 1e-4
"""Largest absolute difference allowed, of a logit and of a probability."""

BATCH_SIZES = (0, 1, 2, 7, 64, 256)

LOWEST_AGREEMENT = 0.998
"""Share of the labels that a quantized file must leave as they are."""

LARGEST_LOSS = 0.001
"""How far (0 to 1) the accuracy of a quantized file may be from PyTorch's."""

OVERHEAD, BYTES_A_UNIT = 18_000, 12
"""Bytes that a quantized file may have beyond one a parameter: for all the rest, and for each unit of a layer
its scale, zero point and wider bias. That is 130 kB for the tutorial's net."""

NOISE_PICTURES = 4
SHOWN_OF_EACH = 2


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What is asked of every file: test digits with their labels, then edge pictures, which have none.

    `images` uint8 [N + E, 28, 28], `labels` int64 [N]; `reference` is PyTorch's answer to all `images`.
    """

    images: np.ndarray
    labels: np.ndarray
    reference: Prediction

    def shown(self) -> np.ndarray:
        """Positions of the digits that become test vectors: the first two of each class, int64."""
        return np.concatenate([np.flatnonzero(self.labels == c)[:SHOWN_OF_EACH] for c in range(CLASSES)])

    def accuracy(self, answer: Prediction) -> float:
        """Share (0 to 1) of the test digits that `answer` has right."""
        return float((answer.logits[: len(self.labels)].argmax(axis=1) == self.labels).mean())


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How far a file is from PyTorch, at worst over all pictures, batch sizes and engines.

    `argmax_flips` counts the test digits whose label differs in any of them, `agreement` is the share (0 to
    1) of the others, `edge_flips` counts the edge pictures. `engines` has the largest difference of a logit
    in each. `accuracy` is the file's own on the `samples` test digits, at worst. `tolerance` is what a replay
    of the test vectors may differ by, in a logit.
    """

    max_abs_logit_diff: float
    max_abs_probability_diff: float
    argmax_flips: int
    samples: int
    agreement: float
    edge_flips: int
    edge_pictures: int
    accuracy: float
    reference_accuracy: float
    engines: Mapping[str, float]
    tolerance: float
    batch_sizes: tuple[int, ...]

    def statement(self) -> dict[str, object]:
        """What the file itself says of its proof: all that is the same each time it is proven.

        The differences are not: they depend on where in memory an engine's numbers happened to lie.
        """
        proof = dataclasses.asdict(self)
        del proof["max_abs_logit_diff"], proof["max_abs_probability_diff"]
        return {**proof, "engines": list(self.engines)}

    def require_equal(self, name: str) -> None:
        """Raise unless the file called `name` is as good as PyTorch.

        Raises:
            CheckFailed: a difference above the tolerance, or a different label.
        """
        worst = max(self.max_abs_logit_diff, self.max_abs_probability_diff)
        flips = self.argmax_flips + self.edge_flips
        if flips or not worst <= TOLERANCE:
            raise CheckFailed(
                f"{name} differs from PyTorch by up to {self.max_abs_logit_diff:.3g} in a logit and "
                f"{self.max_abs_probability_diff:.3g} in a probability (allowed: {TOLERANCE:g}), "
                f"{flips} of {self.samples + self.edge_pictures:,} labels differ: nothing was published"
            )

    def require_close(self, name: str, size: int, allowed: int) -> None:
        """Raise unless the quantized file called `name` reads as well as PyTorch and is small.

        `size` is in bytes, `allowed` what it may be at most.

        Raises:
            CheckFailed: the accuracy, the labels or the size are out of bounds.
        """
        loss = round(abs(self.reference_accuracy - self.accuracy), 9)  # a digit in 1,000 is 0.001, not more
        if (
            not math.isfinite(self.max_abs_logit_diff)
            or loss > LARGEST_LOSS
            or self.agreement < LOWEST_AGREEMENT
        ):
            raise CheckFailed(
                f"{name} has {self.accuracy:.2%} of the test digits right and PyTorch "
                f"{self.reference_accuracy:.2%} (allowed: {LARGEST_LOSS:.1%} apart), {self.agreement:.2%} of "
                f"the labels agree (at least {LOWEST_AGREEMENT:.1%}): nothing was published; "
                "train longer, or export the other formats one by one"
            )
        if size > allowed:
            raise CheckFailed(f"{name} has {size:,} bytes, allowed are {allowed:,}: nothing was published")


def most_bytes(sizes: Sequence[int]) -> int:
    """Size that the quantized file of a net may have; `sizes` are those of its layers, the input's first."""
    parameters = sum((before + 1) * after for before, after in itertools.pairwise(sizes))
    return parameters + BYTES_A_UNIT * sum(sizes[1:]) + OVERHEAD


def edge_pictures() -> np.ndarray:
    """Pictures that no test set holds, uint8 [E, 28, 28]: black, white, one pixel, noise."""
    black = np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    corner, middle = black.copy(), black.copy()
    corner[0, 0] = 255
    middle[IMAGE_SIZE // 2, IMAGE_SIZE // 2] = 1
    noise = np.random.default_rng(0).integers(0, 256, (NOISE_PICTURES, *black.shape), np.uint8)
    return np.stack([black, ~black, corner, middle, *noise])


def measure(
    engines: Mapping[str, Runner],
    questions: Questions,
    *,
    quantized: bool,
    batch_sizes: tuple[int, ...] = BATCH_SIZES,
) -> Parity:
    """Compare what each of `engines` answers with what PyTorch said.

    A `quantized` file is compared on the test digits alone, for edge pictures lie outside of what it was
    calibrated on. On another processor it may round an activation the other way, so that a replay of the
    test vectors may differ by twice what is found here.
    """
    reference, shown = questions.reference, questions.shown()
    samples = len(questions.labels)
    compared = samples if quantized else len(questions.images)
    diffs = dict.fromkeys(engines, 0.0)
    probability_diff, shown_diff, accuracy = 0.0, 0.0, 1.0
    flipped = np.zeros(compared, bool)
    for (name, run), batch_size in itertools.product(engines.items(), batch_sizes):
        count = compared if batch_size else 0
        found = run(questions.images[:count], batch_size or 1)
        diff = largest_difference(found.logits, reference.logits[:count])
        diffs[name] = max(diffs[name], diff)
        probability_diff = max(
            probability_diff, largest_difference(found.probabilities, reference.probabilities[:count])
        )
        if count and math.isfinite(diff):
            flipped |= found.logits.argmax(axis=1) != reference.logits[:count].argmax(axis=1)
            shown_diff = max(shown_diff, largest_difference(found.logits[shown], reference.logits[shown]))
            accuracy = min(accuracy, questions.accuracy(found))
    flips = int(flipped[:samples].sum())
    return Parity(
        max_abs_logit_diff=max(diffs.values()),
        max_abs_probability_diff=probability_diff,
        argmax_flips=flips,
        samples=samples,
        agreement=1 - flips / samples,
        edge_flips=int(flipped[samples:].sum()),
        edge_pictures=compared - samples,
        accuracy=accuracy,
        reference_accuracy=questions.accuracy(reference),
        engines=diffs,
        tolerance=_round_up(2 * shown_diff) if quantized else TOLERANCE,
        batch_sizes=batch_sizes,
    )


def _round_up(value: float) -> float:
    """To one decimal, so that it is the same each time."""
    return math.ceil(value * 10) / 10
