"""What the logits of labelled images say of a net, in numbers that JSON can hold."""

import math
from statistics import NormalDist, fmean
from typing import Any

import numpy as np

from serve_cli.spec import CLASSES

CALIBRATION_BINS = 15
"""As many as in the tables of Guo et al. 2017."""

Z = NormalDist().inv_cdf(0.975)
"""How many standard deviations on both sides of the mean hold 95 % of a normal distribution."""


COVERAGE = (0.0, 0.01, 0.02, 0.05, 0.1)
"""Shares of the images that risk_coverage refuses."""


def score(
    logits: np.ndarray, labels: np.ndarray, names: tuple[int | str, ...], temperature: float = 1.0
) -> dict[str, Any]:
    """All we measure from `logits`, float32 [N, 10], and the true `labels`, int64 [N]; N is at least 1.

    `names` has the label of each class. Shares are from 0 to 1. `loss` is the mean cross-entropy in nats of
    the logits themselves, what training lowers; `calibration_error` is that of what users see, the softmax
    of logits / `temperature`. In `confusion` rows are the true class and columns the predicted one. What
    would divide by zero is 0: the recall of a class without images, the precision of one that is never
    predicted. `macro_f1` is the plain mean over the classes that have images.
    """
    confusion = _confusion(labels, logits.argmax(axis=1))
    correct = int(confusion.trace())
    classes = _classes(confusion, names)
    return {
        "accuracy": correct / len(labels),
        "loss": _loss(logits, labels),
        "samples": len(labels),
        "accuracy_interval": _wilson_interval(correct, len(labels)),
        "calibration_error": calibration_error(logits / temperature, labels),
        "macro_f1": fmean(of_class["f1"] for of_class in classes if of_class["support"]),
        "classes": classes,
        "confusion": confusion.tolist(),
    }


def calibration_error(logits: np.ndarray, labels: np.ndarray) -> float:
    """Expected calibration error, 0 to 1, of `logits` float32 [N, 10] against `labels` int64 [N].

    The confidences fall into 15 bins of equal width, ((m - 1) / 15, m / 15]; the result is the mean over all
    samples of their bin's |accuracy - mean confidence|. Guo, Pleiss, Sun, Weinberger, "On Calibration of
    Modern Neural Networks", ICML 2017, equation 3.
    """
    confidence = confidences(logits)
    hits = logits.argmax(axis=1) == labels
    inner_edges = np.linspace(0, 1, CALIBRATION_BINS + 1)[1:-1]
    bins = np.searchsorted(inner_edges, confidence)  # an edge belongs to the bin below it
    gaps = np.bincount(bins, weights=hits - confidence)
    return float(np.abs(gaps).sum()) / len(labels)


def selective(confidence: np.ndarray, hits: np.ndarray, floor: float) -> dict[str, float | None]:
    """What a `floor` for the confidence, from 0 to 1, costs and brings.

    `confidence` is float64 [N] and `hits`, whether an answer is right, bool [N]. `refused` is the share below
    the floor, `accuracy_answered` the share of right ones in the rest, None where nothing is left.
    """
    answered = confidence >= floor
    return {
        "min_confidence": floor,
        "refused": float((~answered).mean()),
        "accuracy_answered": float(hits[answered].mean()) if answered.any() else None,
    }


def risk_coverage(confidence: np.ndarray, hits: np.ndarray) -> list[dict[str, float]]:
    """How the `error_rate` of the rest falls as more are `refused`, those of the lowest confidence first.

    `confidence` is float64 [N], `hits` bool [N]; both shares are from 0 to 1. Of each share of COVERAGE the
    nearest whole number of images is refused; of equal ones the first.
    """
    errors = ~hits[np.argsort(confidence, kind="stable")]
    rest = {share: errors[round(share * len(errors)) :] for share in COVERAGE}
    return [{"refused": share, "error_rate": float(kept.mean())} for share, kept in rest.items()]


def largest_difference(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest absolute difference of two arrays; NaN or another shape counts as infinite."""
    if found.shape != expected.shape:
        return math.inf
    diff = float(np.abs(found.astype(np.float64) - expected).max(initial=0.0))
    return diff if math.isfinite(diff) else math.inf


def confidences(logits: np.ndarray) -> np.ndarray:
    """The softmax probability of the predicted class, float64 [N], of `logits` float32 [N, 10]."""
    return 1 / np.exp(below_best(logits)).sum(axis=1)


def worst_mistakes(labels: np.ndarray, logits: np.ndarray, count: int) -> np.ndarray:
    """Up to `count` positions of wrong predictions, int64, the most confident first, then by position.

    `labels` are int64 [N], `logits` float32 [N, 10].
    """
    wrong = np.flatnonzero(logits.argmax(axis=1) != labels)
    order = np.argsort(-confidences(logits[wrong]), kind="stable")
    return wrong[order[:count]]


def below_best(logits: np.ndarray) -> np.ndarray:
    """Logits less the largest of each row, float64 [N, 10]: the same softmax, and no overflow."""
    return logits.astype(np.float64) - logits.max(axis=1, keepdims=True)


def _loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean cross-entropy in nats."""
    below = below_best(logits)
    of_label = below[np.arange(len(labels)), labels]
    return float((np.log(np.exp(below).sum(axis=1)) - of_label).mean())


def _wilson_interval(correct: int, samples: int) -> list[float]:
    """The 95 % interval [low, high] of an accuracy, by Wilson's score method (JASA 22, 1927)."""
    return [_wilson_low(correct, samples), 1 - _wilson_low(samples - correct, samples)]


def _wilson_low(correct: int, samples: int) -> float:
    """The lower end; the upper one is that of the mistakes, seen from 1, so that both ends can be exact."""
    half = Z * math.sqrt(correct * (samples - correct) / samples + Z**2 / 4)
    return (correct + Z**2 / 2 - half) / (samples + Z**2)


def _confusion(labels: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """How often each true class, a row, was read as each class, int64 [10, 10]; both arrays are int64 [N]."""
    return np.bincount(labels * CLASSES + predicted, minlength=CLASSES**2).reshape(CLASSES, CLASSES)


def _classes(confusion: np.ndarray, names: tuple[int | str, ...]) -> list[dict[str, Any]]:
    """Precision, recall, F1 and number of images of each class; `confusion` is int64 [10, 10]."""
    hits, support, answers = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    rows = zip(names, hits.tolist(), support.tolist(), answers.tolist(), strict=True)
    return [
        {
            "label": name,
            "precision": hit / max(answered, 1),
            "recall": hit / max(there, 1),
            "f1": 2 * hit / max(there + answered, 1),
            "support": there,
        }
        for name, hit, there, answered in rows
    ]
