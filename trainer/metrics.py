"""What the logits of a test set say of a net, in numbers that JSON can hold."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, softmax

from serve_cli.spec import CLASSES

CALIBRATION_BINS = 15
"""As many as in the tables of Guo et al. 2017."""


def score(logits: Tensor, labels: Tensor, names: tuple[int | str, ...]) -> dict[str, Any]:
    """All we measure from `logits`, float32 [N, 10], and the true `labels`, int64 [N]; N is at least 1.

    `names` has the label of each class. Shares are from 0 to 1, `loss` is the mean cross-entropy in nats. In
    `confusion` rows are the true class and columns the predicted one. What would divide by zero is 0: the
    recall of a class without images, the precision of one that is never predicted. `macro_f1` is the plain
    mean over all ten classes, so a class without images lowers it.
    """
    predicted = logits.argmax(dim=1)
    correct = int((predicted == labels).sum())
    classes = _classes(labels.numpy(), predicted.numpy(), names)
    return {
        "accuracy": correct / len(labels),
        "loss": cross_entropy(logits.double(), labels).item(),
        "samples": len(labels),
        "accuracy_interval": _wilson_interval(correct, len(labels)),
        "calibration_error": calibration_error(logits, labels),
        "macro_f1": sum(of_class["f1"] for of_class in classes) / len(classes),
        "classes": classes,
        "confusion": _confusion(labels.numpy(), predicted.numpy()),
    }


def calibration_error(logits: Tensor, labels: Tensor) -> float:
    """Expected calibration error, 0 to 1, of `logits` float32 [N, 10] against `labels` int64 [N].

    The confidences fall into 15 bins of equal width, ((m - 1) / 15, m / 15]; the result is the mean over all
    samples of their bin's |accuracy - mean confidence|. Guo, Pleiss, Sun, Weinberger, "On Calibration of
    Modern Neural Networks", ICML 2017, equation 3.
    """
    confidence = confidences(logits)
    hits = (logits.argmax(dim=1) == labels).double()
    inner_edges = torch.linspace(0, 1, CALIBRATION_BINS + 1, dtype=torch.float64)[1:-1]
    bins = torch.bucketize(confidence, inner_edges)  # an edge belongs to the bin below it
    gaps = torch.zeros(CALIBRATION_BINS, dtype=torch.float64).index_add(0, bins, hits - confidence)
    return gaps.abs().sum().item() / len(labels)


def confidences(logits: Tensor) -> Tensor:
    """The softmax probability of the predicted class, float64 [N], of `logits` float32 [N, 10]."""
    return softmax(logits.double(), dim=1).amax(dim=1)


def worst_mistakes(labels: Tensor, logits: Tensor, count: int) -> Tensor:
    """Up to `count` positions of wrong predictions, int64, the most confident first, then by position.

    `labels` are int64 [N], `logits` float32 [N, 10].
    """
    wrong = (logits.argmax(dim=1) != labels).nonzero().flatten()
    order = confidences(logits[wrong]).argsort(descending=True, stable=True)
    return wrong[order[:count]]


def _wilson_interval(correct: int, samples: int) -> list[float]:
    """The 95 % interval [low, high] of an accuracy, by Wilson's score method (JASA 22, 1927)."""
    from scipy.stats import binomtest  # ~1 s to import, and only a test needs it

    interval = binomtest(correct, samples).proportion_ci(confidence_level=0.95, method="wilson")
    return [float(interval.low), float(interval.high)]


def _classes(labels: np.ndarray, predicted: np.ndarray, names: tuple[int | str, ...]) -> list[dict[str, Any]]:
    """Precision, recall, F1 and number of images of each class; both arrays are int64 [N]."""
    # 1.1 s to import, which only the end of a run should pay.
    from sklearn.metrics import precision_recall_fscore_support

    columns = precision_recall_fscore_support(labels, predicted, labels=range(CLASSES), zero_division=0)
    return [
        {"label": name, "precision": precision, "recall": recall, "f1": f1, "support": support}
        for name, precision, recall, f1, support in zip(
            names, *(column.tolist() for column in columns), strict=True
        )
    ]


def _confusion(labels: np.ndarray, predicted: np.ndarray) -> list[list[int]]:
    """How often each true class, a row, was read as each class; both arrays are int64 [N]."""
    from sklearn.metrics import confusion_matrix  # slow to import, see _classes

    return confusion_matrix(labels, predicted, labels=range(CLASSES)).tolist()
