"""The proof sees what it must see: a difference in any sample, at any batch size, and NaN."""

import numpy as np
import pytest

from export.parity import BATCH_SIZES, TOLERANCE, Parity, measure
from serve_cli.errors import CheckFailed
from serve_cli.runtime import Prediction

SAMPLES = 300


@pytest.fixture
def reference() -> Prediction:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(SAMPLES, 10)).astype(np.float32)
    return Prediction(logits, np.full_like(logits, 0.1))


def shifted(
    reference: Prediction, *, logit: float = 0.0, probability: float = 0.0, only: int | None = None
) -> Parity:
    """The proof of an engine that is off in the last sample, at batch size `only` or at all."""

    def run(images: np.ndarray, batch_size: int) -> Prediction:
        logits, probabilities = reference.logits.copy(), reference.probabilities.copy()
        if only in (None, batch_size):
            logits[-1, 3] += np.float32(logit)
            probabilities[-1, 3] += np.float32(probability)
        return Prediction(logits, probabilities)

    return measure(run, np.zeros((SAMPLES, 28, 28), np.uint8), reference)


def test_equal_answers_pass(reference: Prediction) -> None:
    parity = shifted(reference)
    assert (parity.max_abs_logit_diff, parity.argmax_flips, parity.samples) == (0.0, 0, SAMPLES)
    parity.require("model")


@pytest.mark.parametrize("batch_size", BATCH_SIZES)
def test_a_difference_at_one_batch_size_is_seen(reference: Prediction, batch_size: int) -> None:
    with pytest.raises(CheckFailed, match="the file differs"):
        shifted(reference, logit=2 * TOLERANCE, only=batch_size).require("the file")
    with pytest.raises(CheckFailed, match="in a probability"):
        shifted(reference, probability=2 * TOLERANCE, only=batch_size).require("model.onnx")


def test_a_difference_within_the_tolerance_passes(reference: Prediction) -> None:
    parity = shifted(reference, logit=TOLERANCE / 2)
    assert 0 < parity.max_abs_logit_diff < TOLERANCE
    parity.require("model")


def test_a_flipped_label_fails_however_small_the_difference() -> None:
    logits = np.zeros((SAMPLES, 10), np.float32)
    reference = Prediction(logits, logits)
    parity = shifted(reference, logit=TOLERANCE / 2)
    assert parity.argmax_flips == 1
    with pytest.raises(CheckFailed, match=f"1 of {SAMPLES} labels differ"):
        parity.require("model")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_number_fails(reference: Prediction, value: float) -> None:
    with pytest.raises(CheckFailed):
        shifted(reference, logit=value).require("model")


def test_another_shape_fails(reference: Prediction) -> None:
    def run(images: np.ndarray, batch_size: int) -> Prediction:
        return Prediction(reference.logits[:, :9], reference.probabilities)

    with pytest.raises(CheckFailed):
        measure(run, np.zeros((SAMPLES, 28, 28), np.uint8), reference).require("model")
