"""Each number of a test against one computed by hand, by scikit-learn, or by scipy."""

import json
import math
import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, f1_score, log_loss, precision_recall_fscore_support

from serve_cli import metrics  # pytest would take its function score for a test

DIGITS = tuple(range(10))

TRUE = [0, 0, 0, 1, 1, 2, 2, 2, 2, 3]
PREDICTED = [0, 0, 1, 1, 1, 2, 2, 0, 5, 5]
"""Ten predictions; class 3 is never predicted, class 5 never true, 4 and 6 to 9 are neither."""


def logits_for(predicted: list[int], confidence: list[float]) -> np.ndarray:
    """Logits, float32 [N, 10], whose softmax is `confidence` for `predicted` and the same for all others."""
    logits = np.zeros((len(predicted), 10), np.float32)
    for row, (one, share) in enumerate(zip(predicted, confidence, strict=True)):
        logits[row, one] = math.log(9 * share / (1 - share))
    return logits


def tiny() -> dict[str, object]:
    return metrics.score(logits_for(PREDICTED, [0.9] * 10), np.array(TRUE), DIGITS)


def test_counts_and_accuracy_are_exact() -> None:
    result = tiny()
    assert result["samples"] == 10
    assert result["accuracy"] == 0.6
    expected = [[0] * 10 for _ in range(10)]
    expected[0][:2] = [2, 1]
    expected[1][1] = 2
    expected[2][0], expected[2][2], expected[2][5] = 1, 2, 1
    expected[3][5] = 1
    assert result["confusion"] == expected


@pytest.mark.parametrize(
    ("number", "precision", "recall", "f1", "support"),
    [
        (0, 2 / 3, 2 / 3, 2 / 3, 3),
        (1, 2 / 3, 1, 4 / 5, 2),
        (2, 1, 2 / 4, 2 / 3, 4),
        (3, 0, 0, 0, 1),
        (5, 0, 0, 0, 0),
        (9, 0, 0, 0, 0),
    ],
)
def test_precision_recall_and_f1(
    number: int, precision: float, recall: float, f1: float, support: int
) -> None:
    classes = tiny()["classes"]
    assert isinstance(classes, list)
    assert classes[number] == {
        "label": number,
        "precision": pytest.approx(precision),
        "recall": pytest.approx(recall),
        "f1": pytest.approx(f1),
        "support": support,
    }


def test_macro_f1_is_the_mean_over_the_classes_that_have_images() -> None:
    present = [of_class for of_class in tiny()["classes"] if of_class["support"]]
    assert len(present) == 4
    assert tiny()["macro_f1"] == pytest.approx((2 / 3 + 4 / 5 + 2 / 3) / 4)


def test_the_loss_is_the_mean_cross_entropy() -> None:
    right, wrong = -math.log(0.9), -math.log(0.1 / 9)
    assert tiny()["loss"] == pytest.approx((6 * right + 4 * wrong) / 10, rel=1e-6)


def test_the_loss_is_summed_in_float64() -> None:
    """In float32 a certain answer loses nothing at all."""
    logits = np.zeros((1, 10), np.float32)
    logits[0, 3] = 20
    result = metrics.score(logits, np.array([3]), DIGITS)
    assert result["loss"] == pytest.approx(math.log1p(9 * math.exp(-20)), rel=1e-6)


@pytest.mark.parametrize(("correct", "samples"), [(6, 10), (0, 7), (7, 7), (1, 1), (981, 1000)])
def test_the_interval_follows_wilson(correct: int, samples: int) -> None:
    z = 1.959963984540054
    share = correct / samples
    middle = (share + z**2 / (2 * samples)) / (1 + z**2 / samples)
    half = z / (1 + z**2 / samples) * math.sqrt(share * (1 - share) / samples + z**2 / (4 * samples**2))
    predicted = [4] * correct + [5] * (samples - correct)
    labels = np.full(samples, 4)
    result = metrics.score(logits_for(predicted, [0.5] * samples), labels, DIGITS)
    assert result["accuracy"] == share
    assert result["accuracy_interval"] == pytest.approx([middle - half, middle + half], abs=1e-12)


def test_calibration_of_two_bins_by_hand() -> None:
    """0.70 and 0.72 share a bin, one of them right; 0.9 is right in another."""
    logits = logits_for([1, 2, 3], [0.70, 0.72, 0.9])
    error = metrics.calibration_error(logits, np.array([1, 9, 3]))
    assert error == pytest.approx(2 / 3 * abs(1 / 2 - 0.71) + 1 / 3 * abs(1 - 0.9), rel=1e-6)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below() -> None:
    """A third is the upper edge of the fifth bin, 0.34 in the sixth."""
    logits = np.full((2, 10), -1000, np.float32)
    logits[0, :3] = 0
    logits[1] = logits_for([0], [0.34])
    error = metrics.calibration_error(logits, np.array([0, 9]))
    assert error == pytest.approx((1 - 1 / 3 + 0.34) / 2, rel=1e-6)


def test_calibration_of_many_by_a_loop() -> None:
    dice = random.Random(1)
    samples = 500
    shares = [dice.uniform(0.11, 0.999) for _ in range(samples)]
    predicted = [dice.randrange(10) for _ in range(samples)]
    labels = [one if dice.random() < 0.7 else (one + 1) % 10 for one in predicted]
    error = 0.0
    for number in range(15):
        inside = [row for row in range(samples) if number / 15 < shares[row] <= (number + 1) / 15]
        if inside:
            accuracy = sum(predicted[row] == labels[row] for row in inside) / len(inside)
            confidence = sum(shares[row] for row in inside) / len(inside)
            error += len(inside) / samples * abs(accuracy - confidence)
    found = metrics.calibration_error(logits_for(predicted, shares), np.array(labels))
    assert found == pytest.approx(error, rel=1e-5)


def test_perfect_predictions() -> None:
    labels = np.tile(np.arange(10), 3)
    logits = 100 * np.eye(10, dtype=np.float32)[labels]
    result = metrics.score(logits, labels, DIGITS)
    assert result["accuracy"] == result["macro_f1"] == 1
    assert result["loss"] == pytest.approx(0, abs=1e-12)
    assert result["calibration_error"] == pytest.approx(0, abs=1e-12)
    assert result["accuracy_interval"][1] == 1
    assert result["confusion"] == [[3 * (row == column) for column in range(10)] for row in range(10)]


@pytest.mark.parametrize("predicted", [7, 2])
def test_one_image(predicted: int) -> None:
    result = metrics.score(logits_for([predicted], [0.8]), np.array([7]), DIGITS)
    is_right = predicted == 7
    assert (result["samples"], result["accuracy"]) == (1, is_right)
    assert result["calibration_error"] == pytest.approx(0.2 if is_right else 0.8, rel=1e-6)
    assert result["confusion"][7][predicted] == sum(map(sum, result["confusion"])) == 1
    assert [of_class["support"] for of_class in result["classes"]] == [number == 7 for number in range(10)]


def test_json_holds_all_of_it() -> None:
    names = ("T-shirt/top", *"abcdefghi")
    result = metrics.score(logits_for(PREDICTED, [0.9] * 10), np.array(TRUE), names)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert [of_class["label"] for of_class in result["classes"]] == list(names)


def test_the_worst_mistakes_come_in_order() -> None:
    predicted = [0, 1, 2, 3, 4, 5]
    shares = [0.99, 0.6, 0.9, 0.6, 0.8, 0.95]
    labels = np.array([0, 9, 9, 9, 4, 9])  # the first and the fifth are right
    logits = logits_for(predicted, shares)
    assert metrics.worst_mistakes(labels, logits, 25).tolist() == [5, 2, 1, 3]
    assert metrics.worst_mistakes(labels, logits, 2).tolist() == [5, 2]


def test_mistakes_that_round_to_certainty_are_told_apart() -> None:
    """In float32 both confidences are 1."""
    logits = np.zeros((2, 10), np.float32)
    logits[0, 3], logits[1, 3] = 25, 30
    assert metrics.worst_mistakes(np.array([0, 0]), logits, 25).tolist() == [1, 0]


def test_equal_mistakes_keep_their_order() -> None:
    logits = logits_for([3] * 1000, [0.5, 0.6] * 500)
    found = metrics.worst_mistakes(np.zeros(1000, np.int64), logits, 25)
    assert found.tolist() == list(range(1, 50, 2))


def test_no_mistakes() -> None:
    found = metrics.worst_mistakes(np.array([4]), logits_for([4], [0.5]), 25)
    assert (found.tolist(), found.dtype) == ([], np.int64)


def random_answers(samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits, float32 [N, 10], of whole numbers, so that many tie, and labels of seven classes."""
    dice = np.random.default_rng(seed)
    logits = dice.integers(-3, 4, (samples, 10)).astype(np.float32)
    logits[:, 9] -= 7  # never predicted
    return logits, dice.choice([0, 1, 2, 3, 5, 8, 9], samples)


@pytest.mark.parametrize("samples", [1, 2, 10, 5000])
@pytest.mark.parametrize("seed", range(5))
def test_classes_confusion_and_loss_are_those_of_scikit_learn(samples: int, seed: int) -> None:
    logits, labels = random_answers(samples, seed)
    result = metrics.score(logits, labels, DIGITS)
    predicted = logits.argmax(axis=1)
    assert result["confusion"] == confusion_matrix(labels, predicted, labels=DIGITS).tolist()
    columns = precision_recall_fscore_support(labels, predicted, labels=DIGITS, zero_division=0)
    found = [tuple(of_class.values())[1:] for of_class in result["classes"]]
    np.testing.assert_allclose(found, np.transpose(columns), rtol=1e-15, atol=0)
    macro = f1_score(labels, predicted, labels=np.unique(labels), average="macro", zero_division=0)
    assert result["macro_f1"] == pytest.approx(macro, rel=1e-14)
    powers = np.exp(logits.astype(np.float64))
    shares = powers / powers.sum(axis=1, keepdims=True)
    assert result["loss"] == pytest.approx(log_loss(labels, shares, labels=DIGITS), rel=1e-12)
    np.testing.assert_allclose(metrics.confidences(logits), shares.max(axis=1), rtol=1e-14)


def test_of_equal_logits_the_first_counts() -> None:
    logits = np.zeros((2, 10), np.float32)
    result = metrics.score(logits, np.array([0, 1]), DIGITS)
    assert (result["accuracy"], result["loss"]) == (0.5, pytest.approx(math.log(10)))
    assert result["calibration_error"] == pytest.approx(0.4)  # a tenth sure, half of them right


@settings(deadline=None)
@given(st.integers(1, 100_000).flatmap(lambda samples: st.tuples(st.integers(0, samples), st.just(samples))))
def test_the_interval_is_that_of_scipy(case: tuple[int, int]) -> None:
    correct, samples = case
    expected = binomtest(correct, samples).proportion_ci(confidence_level=0.95, method="wilson")
    low, high = metrics._wilson_interval(correct, samples)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-14)
    assert 0 <= low <= correct / samples <= high <= 1
    assert (low == 0) == (correct == 0)
    assert (high == 1) == (correct == samples)


def test_large_logits_overflow_nothing() -> None:
    logits = np.array([[0, 3e38, *[-3e38] * 8], [0, 1000, *[-1000] * 8]], np.float32)
    result = metrics.score(logits, np.array([1, 0]), DIGITS)
    assert result["loss"] == 500
    assert metrics.confidences(logits).tolist() == [1, 1]


def test_a_temperature_calibrates_and_changes_nothing_else() -> None:
    logits, labels = random_answers(1000, 0)
    plain, calibrated = metrics.score(logits, labels, DIGITS), metrics.score(logits, labels, DIGITS, 2.0)
    assert calibrated["calibration_error"] == metrics.calibration_error(logits / 2, labels)
    assert calibrated["calibration_error"] != plain["calibration_error"]
    del plain["calibration_error"], calibrated["calibration_error"]
    assert calibrated == plain


def test_a_floor_by_hand() -> None:
    confidence, hits = np.array([0.9, 0.3, 0.8, 0.5]), np.array([True, False, False, True])
    assert metrics.selective(confidence, hits, 0.8) == {
        "min_confidence": 0.8,
        "refused": 0.5,
        "accuracy_answered": 0.5,
    }
    assert metrics.selective(confidence, hits, 0.0)["accuracy_answered"] == 0.5
    assert metrics.selective(confidence, hits, 0.81)["accuracy_answered"] == 1
    assert metrics.selective(confidence, hits, 0.91) == {
        "min_confidence": 0.91,
        "refused": 1,
        "accuracy_answered": None,
    }


@pytest.mark.parametrize("samples", [1, 9, 40, 1234])
def test_the_errors_of_the_rest_by_a_loop(samples: int) -> None:
    dice = random.Random(samples)
    answers = [(dice.random(), dice.random() < 0.8) for _ in range(samples)]
    confidence, hits = map(np.array, zip(*answers, strict=True))
    found = metrics.risk_coverage(confidence, hits)
    assert [point["refused"] for point in found] == [0, 0.01, 0.02, 0.05, 0.1]
    for point in found:
        rest = sorted(answers)
        for _ in range(round(point["refused"] * samples)):
            rest.remove(min(rest))
        assert point["error_rate"] == pytest.approx(sum(not hit for _, hit in rest) / len(rest))
    assert json.loads(json.dumps(found)) == found


def test_slow_imports_wait_until_they_are_needed() -> None:
    code = """
import sys, serve_cli.metrics
early = {"torch", "onnxruntime", "PIL"} & sys.modules.keys()
import trainer.plots
sys.exit(str(early | {"sklearn", "scipy", "matplotlib"} & sys.modules.keys() or ""))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stderr.strip()) == (1, "")
