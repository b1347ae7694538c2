"""The proof of an export: the file gives PyTorch's answers on real digits, at every batch size."""

import math
from dataclasses import dataclass

import numpy as np

from export.convert import Runner
from serve_cli.errors import CheckFailed
from serve_cli.runtime import Prediction

TOLERANCE = 1e-4
"""Largest absolute difference allowed, of a logit and of a probability."""

BATCH_SIZES = (1, 2, 7, 64, 256)


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How far a file is from PyTorch, at worst over all samples and batch sizes.

    `argmax_flips` counts the samples whose label differs at any batch size.
    """

    max_abs_logit_diff: float
    max_abs_probability_diff: float
    argmax_flips: int
    samples: int
    batch_sizes: tuple[int, ...] = BATCH_SIZES
    tolerance: float = TOLERANCE

    def require(self, name: str) -> None:
        """Raise unless the file called `name` is as good as PyTorch.

        Raises:
            CheckFailed: a difference above the tolerance, or a different label.
        """
        worst = max(self.max_abs_logit_diff, self.max_abs_probability_diff)
        if self.argmax_flips or not worst <= TOLERANCE:
            raise CheckFailed(
                f"{name} differs from PyTorch by up to {self.max_abs_logit_diff:.3g} in a logit and "
                f"{self.max_abs_probability_diff:.3g} in a probability (allowed: {TOLERANCE:g}), "
                f"{self.argmax_flips} of {self.samples:,} labels differ: nothing was published"
            )


def measure(run: Runner, images: np.ndarray, reference: Prediction) -> Parity:
    """Compare `run` on uint8 `images` [N, 28, 28] with what PyTorch said of them."""
    logit_diff = probability_diff = 0.0
    flipped = np.zeros(len(images), bool)
    for batch_size in BATCH_SIZES:
        found = run(images, batch_size)
        logit_diff = _worse(logit_diff, found.logits, reference.logits)
        probability_diff = _worse(probability_diff, found.probabilities, reference.probabilities)
        flipped |= found.logits.argmax(axis=1) != reference.logits.argmax(axis=1)
    return Parity(
        max_abs_logit_diff=logit_diff,
        max_abs_probability_diff=probability_diff,
        argmax_flips=int(flipped.sum()),
        samples=len(images),
    )


def _worse(so_far: float, found: np.ndarray, expected: np.ndarray) -> float:
    """The larger of `so_far` and the largest difference; NaN or another shape counts as infinite."""
    if found.shape != expected.shape:
        return math.inf
    diff = np.abs(found.astype(np.float64) - expected).max(initial=0.0)
    return max(so_far, float(diff)) if np.isfinite(diff) else math.inf
