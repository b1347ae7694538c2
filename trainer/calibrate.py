"""How far a net's confidence can be trusted, found on images that it did not learn from."""

from typing import Any

import numpy as np

from serve_cli.metrics import below_best, calibration_error, confidences

ERROR_RATE = 0.01
"""Share of the predictions that may be wrong; it decides the threshold. What lower ones cost: LOG.md."""

LOWEST_THRESHOLD = 0.5
"""A prediction that is more probably wrong than right is not given, however good the net is on held-out
digits: the pictures of people are not always digits."""

HIGHEST_THRESHOLD = 0.95
"""A prediction that is right 19 times in 20 is always given.

Without this a poor net, one of 4,000 digits for example, would refuse two thirds of all images to keep its
errors within ERROR_RATE; with it, it makes more errors, and says how many.
"""

STEPS = 1000
"""Of thresholds from 0 to 1; a temperature has as many digits. Finer ones would be those of single images."""

LOWEST, HIGHEST = 0.25, 4.0
"""Temperatures that a few images can lead to."""

HALVINGS = 40
"""Of the interval between the two: to a part in 10**12."""

DECIMALS = 6
"""Of the measured shares."""


def calibrate(
    logits: np.ndarray, labels: np.ndarray, *, lowest_temperature: float = LOWEST
) -> dict[str, Any]:
    """The calibration of a run, from `logits` float32 [N, 10] and true `labels` int64 [N]; N >= 1.

    `temperature` divides the logits before their softmax, it is at least `lowest_temperature`; below
    `min_confidence`, from 0 to 1, a prediction is 'not sure', so that at most `error_rate` (0 to 1) of the
    others are wrong, see lowest_threshold.
    `validation` has the result on these `samples`: the share `refused`, how many of the other predictions
    are `errors`, and the expected calibration error with temperature 1 and with this one.
    """
    temperature = max(fit_temperature(logits, labels), lowest_temperature)
    confidence = confidences(logits / temperature)
    wrong = logits.argmax(axis=1) != labels
    threshold = lowest_threshold(confidence, wrong)
    answered = confidence >= threshold
    return {
        "temperature": temperature,
        "min_confidence": threshold,
        "error_rate": ERROR_RATE,
        "validation": {
            "samples": len(labels),
            "refused": round(float((~answered).mean()), DECIMALS),
            "errors": int(wrong[answered].sum()),
            "calibration_error_before": round(calibration_error(logits, labels), DECIMALS),
            "calibration_error_after": round(calibration_error(logits / temperature, labels), DECIMALS),
        },
    }


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The T from LOWEST to HIGHEST with the least mean cross-entropy of softmax(logits / T), to 1 / STEPS.

    `logits` are float32 [N, 10], `labels` int64 [N]. The loss is convex in 1 / T, so its slope has one zero
    at most, which halving finds; Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks",
    ICML 2017, section 4.2. Where every answer is right, ever smaller ones would do better: then it is 1.
    """
    if (logits.argmax(axis=1) == labels).all():
        return 1.0
    scores = below_best(logits)
    of_label = scores[np.arange(len(labels)), labels]
    low, high = 1 / HIGHEST, 1 / LOWEST
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        shares = np.exp(middle * scores)
        expected = (shares * scores).sum(axis=1) / shares.sum(axis=1)
        if (expected - of_label).mean() > 0:  # d/d(1/T) of the mean cross-entropy
            high = middle
        else:
            low = middle
    return round(2 / (low + high) * STEPS) / STEPS


def lowest_threshold(confidence: np.ndarray, wrong: np.ndarray) -> float:
    """The lowest threshold with at most ERROR_RATE of the predictions wrong, in steps of 1 / STEPS.

    It lies from LOWEST_THRESHOLD to HIGHEST_THRESHOLD. `confidence` is float64 [N], from 0 to 1, `wrong` bool
    [N]; a prediction is given from the threshold on. Fewer than 1 / ERROR_RATE may hold no error at all.
    """
    for threshold in np.arange(round(LOWEST_THRESHOLD * STEPS), round(HIGHEST_THRESHOLD * STEPS)) / STEPS:
        answered = confidence >= threshold
        if wrong[answered].sum() <= ERROR_RATE * answered.sum():
            return float(threshold)
    return HIGHEST_THRESHOLD
