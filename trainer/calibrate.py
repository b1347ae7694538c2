"""How far a net's confidence can be trusted, found on images that it did not learn from."""

from typing import Any

import numpy as np

from serve_cli.metrics import below_best, calibration_error, confidences

ERROR_RATE = 0.01
"""Share of the answers given that may be wrong: the floor is chosen for it. What lower ones cost: LOG.md."""

LOWEST_FLOOR = 0.5
"""No answer is given that is more probably wrong than right, however good the net is on held-out digits: what
people show it is not always a digit."""

HIGHEST_FLOOR = 0.95
"""Nobody is told 'not sure' of an answer that is right 19 times in 20.

Without this a poor net, one of 4,000 digits for example, would refuse two thirds of all images to keep its
errors within ERROR_RATE; with it, it makes more errors, and says how many.
"""

STEPS = 1000
"""Of floors from 0 to 1; a temperature has as many digits. Finer ones would be those of single images."""

LOWEST, HIGHEST = 0.25, 4.0
"""Temperatures that a few images can lead to."""

HALVINGS = 40
"""Of the interval between the two: to a part in 10**12."""

DECIMALS = 6
"""Of the measured shares."""


def calibrate(logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """What a run says of its calibration, from `logits` float32 [N, 10] and true `labels` int64 [N]; N >= 1.

    `temperature` divides the logits before their softmax; below `min_confidence`, from 0 to 1, an answer is
    'not sure', so that of those given at most `error_rate` (0 to 1) are wrong, see lowest_floor. `validation`
    has what that comes to on these `samples`: the share `refused`, how many of the other answers are
    `errors`, and the expected calibration error with temperature 1 and with this one.
    """
    temperature = fit_temperature(logits, labels)
    confidence = confidences(logits / temperature)
    wrong = logits.argmax(axis=1) != labels
    floor = lowest_floor(confidence, wrong)
    answered = confidence >= floor
    return {
        "temperature": temperature,
        "min_confidence": floor,
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


def lowest_floor(confidence: np.ndarray, wrong: np.ndarray) -> float:
    """The lowest floor with at most ERROR_RATE of the answers wrong, in steps of 1 / STEPS.

    It lies from LOWEST_FLOOR to HIGHEST_FLOOR. `confidence` is float64 [N], from 0 to 1, `wrong` bool [N]; an
    answer is given from the floor on. The share is the plain one: fewer than 1 / ERROR_RATE answers may hold
    no error at all.
    """
    for floor in np.arange(round(LOWEST_FLOOR * STEPS), round(HIGHEST_FLOOR * STEPS)) / STEPS:
        answered = confidence >= floor
        if wrong[answered].sum() <= ERROR_RATE * answered.sum():
            return float(floor)
    return HIGHEST_FLOOR
