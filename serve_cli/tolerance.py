"""How far the outputs of a model file may differ from the original's.

The proof of an export and `mnist verify` both use these constants; what a file says of itself does not count.
"""

import math
from dataclasses import dataclass

import numpy as np

from serve_cli.spec import MODEL_FILES

Outputs = tuple[np.ndarray, np.ndarray]
"""Logits and probabilities, both float32 [N, 10]."""


@dataclass(frozen=True)
class Deviation:
    """A difference and what is allowed for it; `share` is their quotient."""

    difference: float
    allowed: float

    @property
    def share(self) -> float:
        """At most 1 where the difference is allowed; infinite for NaN or another shape."""
        return self.difference / self.allowed


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """Allowed differences: `absolute + relative * max|logit of its row|` of a logit; of a probability."""

    absolute: float
    relative: float
    probability: float

    def of_logits(self, reference: np.ndarray) -> np.ndarray:
        """The allowed difference for each row of `reference`, float32 [N, 10], as float64 [N]."""
        return self.absolute + self.relative * np.abs(reference.astype(np.float64)).max(axis=1, initial=0.0)

    def worst(self, found: Outputs, expected: Outputs) -> Deviation:
        """The difference that comes nearest to what is allowed for it, or exceeds it most."""
        if any(one.shape != other.shape for one, other in zip(found, expected, strict=True)):
            return Deviation(math.inf, self.absolute)
        with np.errstate(invalid="ignore"):  # inf - inf
            logits, probabilities = (
                np.abs(one.astype(np.float64) - other).max(axis=1, initial=0.0)
                for one, other in zip(found, expected, strict=True)
            )
        differences = np.nan_to_num(np.concatenate([logits, probabilities]), nan=math.inf, posinf=math.inf)
        allowed = np.concatenate([self.of_logits(expected[0]), np.full(len(logits), self.probability)])
        if not len(differences):
            return Deviation(0.0, self.absolute)
        place = np.argmax(differences / np.nan_to_num(allowed, nan=self.absolute))
        return Deviation(float(differences[place]), float(allowed[place]))


FLOAT = Tolerance(absolute=1e-4, relative=1e-5, probability=1e-4)
"""For float files. PyTorch differs from itself by 5e-6 between batch sizes, more where logits are large."""

INT8 = Tolerance(absolute=0.1, relative=0.05, probability=0.1)
"""For 8-bit files, on test vectors. Over 19 nets the largest difference was 2.1 % of the row's largest logit,
and 0.025 in a probability; another processor may round each activation the other way, which doubles it."""

TOLERANCES = {name: INT8 if name == "onnx-int8" else FLOAT for name in MODEL_FILES}
"""By export format."""
