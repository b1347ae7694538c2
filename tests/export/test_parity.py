"""The proof sees what it must see: a difference in any sample, at any batch size, in any engine, and NaN."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from export.format import Runner
from export.parity import (
    BATCH_SIZES,
    LARGEST_LOSS,
    LOWEST_AGREEMENT,
    TOLERANCE,
    Parity,
    Questions,
    edge_pictures,
    measure,
    most_bytes,
)
from serve_cli.errors import CheckFailed
from serve_cli.runtime import Prediction

DIGITS = 1000
EDGES = 8
ALLOWED = most_bytes([784, 128, 64, 10])


def ask(logits: np.ndarray) -> Questions:
    """Questions whose pictures are their own numbers, all labels being right."""
    numbers = np.arange(len(logits), dtype=np.uint32)
    images = np.zeros((len(logits), 28, 28), np.uint8)
    images[:, 0, :4] = numbers.view(np.uint8).reshape(-1, 4)
    labels = logits[: len(logits) - EDGES].argmax(axis=1)
    return Questions(images=images, labels=labels, reference=Prediction(logits, np.full_like(logits, 0.1)))


@pytest.fixture
def questions() -> Questions:
    return ask(np.random.default_rng(0).normal(size=(DIGITS + EDGES, 10)).astype(np.float32))


def engine(
    questions: Questions, change: Callable[[np.ndarray, np.ndarray], None], only: int | None = None
) -> Runner:
    """An engine whose logits and probabilities went through `change`, at batch size `only` or at all."""
    logits, probabilities = questions.reference.logits.copy(), questions.reference.probabilities.copy()
    change(logits, probabilities)
    wrong = Prediction(logits, probabilities)

    def run(images: np.ndarray, batch_size: int) -> Prediction:
        asked = images[:, 0, :4].copy().view(np.uint32).ravel()
        source = wrong if only in (None, batch_size) else questions.reference
        return Prediction(source.logits[asked], source.probabilities[asked])

    return run


def add(picture: int, *, logit: float = 0.0, probability: float = 0.0) -> Callable[..., None]:
    def change(logits: np.ndarray, probabilities: np.ndarray) -> None:
        logits[picture, 3] += np.float32(logit)
        probabilities[picture, 3] += np.float32(probability)

    return change


def flip(count: int) -> Callable[[np.ndarray, np.ndarray], None]:
    """Change the labels of the first `count` pictures."""

    def change(logits: np.ndarray, probabilities: np.ndarray) -> None:
        best = logits[:count].argmax(axis=1)
        logits[np.arange(count), best] -= 100

    return change


def prove(questions: Questions, *runners: Runner, quantized: bool = False) -> Parity:
    engines = {f"engine {number}": runner for number, runner in enumerate(runners)}
    return measure(engines, questions, quantized=quantized)


def proof(**changes: object) -> Parity:
    """The proof of a perfect file, but for `changes`."""
    perfect = Parity(
        max_abs_logit_diff=0.0,
        max_abs_probability_diff=0.0,
        argmax_flips=0,
        samples=DIGITS,
        agreement=1.0,
        edge_flips=0,
        edge_pictures=EDGES,
        accuracy=0.99,
        reference_accuracy=0.99,
        engines={},
        tolerance=0.0,
        batch_sizes=BATCH_SIZES,
    )
    return dataclasses.replace(perfect, **changes)


def test_equal_answers_pass(questions: Questions) -> None:
    parity = prove(questions, engine(questions, add(0)))
    assert (parity.max_abs_logit_diff, parity.argmax_flips, parity.edge_flips) == (0.0, 0, 0)
    assert (parity.samples, parity.edge_pictures) == (DIGITS, EDGES)
    assert (parity.agreement, parity.accuracy, parity.reference_accuracy) == (1.0, 1.0, 1.0)
    assert parity.tolerance == TOLERANCE
    parity.require_equal("model")
    parity.require_close("model", ALLOWED, ALLOWED)


def test_every_engine_is_asked_at_every_batch_size(questions: Questions) -> None:
    asked = []

    def run(images: np.ndarray, batch_size: int) -> Prediction:
        asked.append((len(images), batch_size))
        return engine(questions, add(0))(images, batch_size)

    prove(questions, run, run)
    assert asked == 2 * [(0, 1), *((DIGITS + EDGES, size) for size in BATCH_SIZES if size)]


@pytest.mark.parametrize("batch_size", [size for size in BATCH_SIZES if size])
@pytest.mark.parametrize("picture", [0, DIGITS - 1, DIGITS + EDGES - 1], ids=["first", "last digit", "edge"])
def test_a_difference_at_one_batch_size_is_seen(questions: Questions, batch_size: int, picture: int) -> None:
    logit = engine(questions, add(picture, logit=2 * TOLERANCE), batch_size)
    with pytest.raises(CheckFailed, match="the file differs"):
        prove(questions, logit).require_equal("the file")
    probability = engine(questions, add(picture, probability=2 * TOLERANCE), batch_size)
    with pytest.raises(CheckFailed, match="in a probability"):
        prove(questions, probability).require_equal("model.onnx")


def test_a_difference_in_one_engine_is_seen(questions: Questions) -> None:
    parity = prove(questions, engine(questions, add(0)), engine(questions, add(5, logit=2 * TOLERANCE)))
    assert parity.engines["engine 0"] == 0
    assert parity.engines["engine 1"] == pytest.approx(2 * TOLERANCE, rel=1e-2)
    with pytest.raises(CheckFailed):
        parity.require_equal("model")


def test_a_difference_within_the_tolerance_passes(questions: Questions) -> None:
    parity = prove(questions, engine(questions, add(0, logit=TOLERANCE / 2)))
    assert 0 < parity.max_abs_logit_diff < TOLERANCE
    parity.require_equal("model")


@pytest.mark.parametrize("picture", [0, DIGITS + EDGES - 1], ids=["digit", "edge"])
def test_a_flipped_label_fails_however_small_the_difference(picture: int) -> None:
    questions = ask(np.zeros((DIGITS + EDGES, 10), np.float32))
    parity = prove(questions, engine(questions, add(picture, logit=TOLERANCE / 2)))
    assert parity.argmax_flips + parity.edge_flips == 1
    with pytest.raises(CheckFailed, match=f"1 of {DIGITS + EDGES:,} labels differ"):
        parity.require_equal("model")


@pytest.mark.parametrize("batch_size", [size for size in BATCH_SIZES if size])
def test_a_label_flipped_at_one_batch_size_counts_once(questions: Questions, batch_size: int) -> None:
    parity = prove(questions, engine(questions, flip(1), batch_size), quantized=True)
    assert (parity.argmax_flips, parity.agreement, parity.accuracy) == (1, 1 - 1 / DIGITS, 1 - 1 / DIGITS)


def test_a_difference_as_large_as_the_tolerance_passes() -> None:
    for name in ("max_abs_logit_diff", "max_abs_probability_diff"):
        proof(**{name: TOLERANCE}).require_equal("model")
        with pytest.raises(CheckFailed):
            proof(**{name: np.nextafter(TOLERANCE, 1)}).require_equal("model")


def test_flips_of_digits_and_of_edge_pictures_add_up() -> None:
    with pytest.raises(CheckFailed, match="2 of 1,008 labels differ"):
        proof(argmax_flips=1, edge_flips=1).require_equal("model")


def test_the_statement_leaves_out_what_differs_from_proof_to_proof(questions: Questions) -> None:
    statement = prove(questions, engine(questions, add(0))).statement()
    differing = {"max_abs_logit_diff", "max_abs_probability_diff"}
    assert statement.keys() == {field.name for field in dataclasses.fields(Parity)} - differing
    assert statement["engines"] == ["engine 0"]
    assert statement["batch_sizes"] == BATCH_SIZES


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_number_fails(questions: Questions, value: float) -> None:
    for quantized in (False, True):
        parity = prove(questions, engine(questions, add(0, logit=value)), quantized=quantized)
        with pytest.raises(CheckFailed):
            parity.require_equal("model")
        with pytest.raises(CheckFailed):
            parity.require_close("model", 0, ALLOWED)
        assert parity.accuracy <= 1


@pytest.mark.parametrize("count", [0, 1], ids=["empty batch", "any batch"])
def test_another_shape_fails(questions: Questions, count: int) -> None:
    def run(images: np.ndarray, batch_size: int) -> Prediction:
        found = engine(questions, add(0))(images, batch_size)
        narrow = bool(len(images)) == bool(count)
        return Prediction(found.logits[:, :9] if narrow else found.logits, found.probabilities)

    with pytest.raises(CheckFailed):
        prove(questions, run).require_equal("model")


# A quantized file: the labels and the accuracy count, not the logits.


def test_a_quantized_file_may_differ_in_logits(questions: Questions) -> None:
    def change(logits: np.ndarray, probabilities: np.ndarray) -> None:
        logits += 0.24

    parity = prove(questions, engine(questions, change), quantized=True)
    parity.require_close("model", ALLOWED, ALLOWED)
    assert parity.tolerance == 0.5  # twice 0.24, rounded up
    assert parity.edge_pictures == 0


def test_a_quantized_file_may_change_few_labels(questions: Questions) -> None:
    allowed = round((1 - LOWEST_AGREEMENT) * DIGITS)
    assert allowed == 2
    for count in (1, 3):
        parity = prove(questions, engine(questions, flip(count)), quantized=True)
        assert parity.argmax_flips == count
        assert parity.agreement == 1 - count / DIGITS
        assert parity.accuracy == 1 - count / DIGITS
    with pytest.raises(CheckFailed, match="the labels agree"):
        parity.require_close("model", 0, ALLOWED)


def test_one_digit_in_a_thousand_is_not_more_than_a_tenth_of_a_point() -> None:
    parity = proof(accuracy=0.880, reference_accuracy=0.881, agreement=0.999)
    assert parity.reference_accuracy - parity.accuracy > LARGEST_LOSS  # as floating point has it
    parity.require_close("model", 0, ALLOWED)


def test_labels_and_accuracy_each_have_their_bound() -> None:
    proof(agreement=LOWEST_AGREEMENT).require_close("model", 0, ALLOWED)
    for change in ({"agreement": LOWEST_AGREEMENT - 1e-6}, {"accuracy": 0.9885}, {"accuracy": 0.9915}):
        with pytest.raises(CheckFailed, match=r"; train longer, or export the other formats one by one$"):
            proof(**change).require_close("model", 0, ALLOWED)


def test_a_quantized_file_must_be_small(questions: Questions) -> None:
    parity = prove(questions, engine(questions, add(0)), quantized=True)
    with pytest.raises(CheckFailed, match="129,811 bytes, allowed are 129,810"):
        parity.require_close("model", ALLOWED + 1, ALLOWED)
    assert 109_386 < ALLOWED <= 130_000


def test_a_quantized_file_may_have_a_byte_a_parameter_and_some_for_the_rest() -> None:
    assert most_bytes([3, 2, 1]) == (3 + 1) * 2 + (2 + 1) * 1 + 12 * (2 + 1) + 18_000


def test_edge_pictures_are_what_no_test_set_holds() -> None:
    pictures = edge_pictures()
    assert pictures.dtype == np.uint8
    assert pictures.shape == (EDGES, 28, 28)
    ink = (pictures > 0).sum(axis=(1, 2)).tolist()
    assert ink[:4] == [0, 784, 1, 1]
    assert (pictures[2, 0, 0], pictures[3, 14, 14]) == (255, 1)
    assert min(ink[4:]) > 700
    assert (pictures[4:].min(), pictures[4:].max()) == (0, 255)
    assert np.array_equal(pictures, edge_pictures())


def test_the_first_two_digits_of_each_class_are_shown() -> None:
    questions = ask(np.tile(np.eye(10, dtype=np.float32), (4, 1)))
    assert questions.shown().tolist() == [place for label in range(10) for place in (label, label + 10)]
