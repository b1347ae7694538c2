"""Temperature and confidence threshold against what is known beforehand, and against plain searches."""

import json

import numpy as np
import pytest
from sklearn.metrics import log_loss

from serve_cli.metrics import confidences
from serve_cli.spec import is_calibration
from trainer import calibrate as calibration
from trainer.calibrate import calibrate, fit_temperature, lowest_threshold


def calibrated(samples: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, float32 [N, 10], and labels int64 [N] drawn from their softmax: their best temperature is 1."""
    random = np.random.default_rng(seed)
    logits = random.normal(scale=3, size=(samples, 10)).astype(np.float32)
    noise = random.gumbel(size=logits.shape)
    return logits, (logits + noise).argmax(axis=1)  # the largest of logits plus Gumbel noise is such a draw


def cross_entropy(logits: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    powers = np.exp(logits.astype(np.float64) / temperature)
    return float(log_loss(labels, powers / powers.sum(axis=1, keepdims=True), labels=range(10)))


@pytest.mark.parametrize("samples", [30, 400, 3000])
def test_no_other_temperature_has_a_lower_loss(samples: int) -> None:
    logits, labels = calibrated(samples, seed=samples)
    found = fit_temperature(logits, labels)
    losses = {step: cross_entropy(logits, labels, step / 1000) for step in range(250, 4001, 10)}
    assert 1000 * found == pytest.approx(min(losses, key=lambda step: losses[step]), abs=10)
    assert cross_entropy(logits, labels, found) <= min(losses.values())
    assert found == round(found, 3)


def test_the_temperature_of_a_few_images_is_bounded() -> None:
    logits, _ = calibrated(200)
    best = logits.argmax(axis=1)
    assert fit_temperature(logits, best) == 1  # all of them right: no temperature is too low
    assert fit_temperature(logits[:1], best[:1]) == 1
    assert fit_temperature(logits, (best + 1) % 10) == calibration.HIGHEST
    second = np.argsort(logits, axis=1)[:, -2]
    nearly = np.where(np.arange(200) == np.diff(np.sort(logits)[:, -2:]).argmin(), second, best)
    assert fit_temperature(logits / 100, nearly) == calibration.LOWEST
    large = np.array([[3e38, -3e38, *[0] * 8], [1000, *[-1000] * 9]], np.float32)
    assert fit_temperature(large, np.array([0, 1])) == calibration.HIGHEST


@pytest.mark.parametrize("seed", range(3))
def test_the_threshold_is_the_lowest_that_keeps_the_error_rate(seed: int) -> None:
    random = np.random.default_rng(seed)
    confidence = random.beta(8, 0.3, size=4000)
    wrong = random.random(4000) < 1.3 * (1 - confidence) ** 1.4
    found = lowest_threshold(confidence, wrong)
    assert calibration.LOWEST_THRESHOLD < found < calibration.HIGHEST_THRESHOLD

    def error_rate(threshold: float) -> float:
        given = [is_wrong for sure, is_wrong in zip(confidence, wrong, strict=True) if sure >= threshold]
        return sum(given) / len(given)

    assert error_rate(found) <= calibration.ERROR_RATE
    assert all(error_rate(step / 1000) > calibration.ERROR_RATE for step in range(500, round(found * 1000)))


def test_the_threshold_is_bounded() -> None:
    """From below for a net with few errors; from above for one that is right or wrong at any confidence."""
    confidence = np.linspace(0.6, 1, 1000)
    few = round(1000 * calibration.ERROR_RATE)
    assert lowest_threshold(confidence, np.arange(1000) < few) == calibration.LOWEST_THRESHOLD
    assert lowest_threshold(confidence, np.arange(1000) <= few) == 0.601
    assert lowest_threshold(np.linspace(0, 1, 500), np.arange(500) % 2 == 1) == calibration.HIGHEST_THRESHOLD


def test_the_calibration_in_a_report() -> None:
    logits, labels = calibrated(5000)
    logits *= 2
    found = calibrate(logits, labels)
    assert is_calibration(found)
    assert json.loads(json.dumps(found)) == found
    temperature, threshold, validation = found["temperature"], found["min_confidence"], found["validation"]
    assert temperature == fit_temperature(logits, labels)
    assert found["error_rate"] == calibration.ERROR_RATE
    given = confidences(logits / temperature) >= threshold
    assert validation["samples"] == 5000
    assert validation["refused"] == pytest.approx((~given).mean(), abs=1e-6)
    assert validation["errors"] == (logits.argmax(axis=1) != labels)[given].sum()
    assert validation["calibration_error_after"] < validation["calibration_error_before"] / 3
