"""The proof notices a difference in any image, batch size and backend, NaN, and a weight; ties pass."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from export.parity import (
    FEWEST_FLIPS,
    FEWEST_LOST,
    SMALL_BATCHES,
    SUBSET,
    Parity,
    ParityInputs,
    Runner,
    edge_pictures,
    measure,
    require_same_weights,
    require_small,
)
from serve_cli.errors import CheckFailed
from serve_cli.runtime import CHUNK, Prediction
from serve_cli.tolerance import FLOAT, INT8

DIGITS, EDGES = 1000, 8
Change = Callable[[np.ndarray, np.ndarray], None]


def inputs_of(logits: np.ndarray) -> ParityInputs:
    """Inputs whose pictures are their own numbers; every reference label is right."""
    numbers = np.arange(len(logits), dtype=np.uint32)
    images = np.zeros((len(logits), 28, 28), np.uint8)
    images[:, 0, :4] = numbers.view(np.uint8).reshape(-1, 4)
    labels = logits[: len(logits) - EDGES].argmax(axis=1)
    reference = Prediction(logits, np.full_like(logits, 0.1))
    return ParityInputs(images=images, labels=labels, reference=reference)


@pytest.fixture
def inputs() -> ParityInputs:
    """Every margin is about 5."""
    noise = np.random.default_rng(0).normal(scale=0.1, size=(DIGITS + EDGES, 10))
    return inputs_of((noise + 5 * np.eye(10)[np.arange(DIGITS + EDGES) % 10]).astype(np.float32))


def runner(inputs: ParityInputs, change: Change = lambda *_: None, only: int | None = None) -> Runner:
    """A backend whose outputs went through `change`, at batch size `only` or at all."""
    changed = Prediction(inputs.reference.logits.copy(), inputs.reference.probabilities.copy())
    change(changed.logits, changed.probabilities)

    def run(images: np.ndarray, batch_size: int) -> Prediction:
        positions = images[:, 0, :4].copy().view(np.uint32).ravel()
        source = changed if only in (None, batch_size) else inputs.reference
        return Prediction(source.logits[positions], source.probabilities[positions])

    return run


def add(picture: int, *, logit: float = 0.0, probability: float = 0.0) -> Change:
    def change(logits: np.ndarray, probabilities: np.ndarray) -> None:
        logits[picture, 3] += np.float32(logit)
        probabilities[picture, 3] += np.float32(probability)

    return change


def flip(count: int) -> Change:
    """Change the labels of the first `count` pictures."""

    def change(logits: np.ndarray, probabilities: np.ndarray) -> None:
        logits[np.arange(count), logits[:count].argmax(axis=1)] -= 100

    return change


def prove(inputs: ParityInputs, *runners: Runner, int8: bool = False) -> Parity:
    return measure({f"backend {number}": run for number, run in enumerate(runners)}, inputs, int8=int8)


def test_equal_outputs_pass(inputs: ParityInputs) -> None:
    parity = prove(inputs, runner(inputs), runner(inputs))
    assert (parity.max_abs_logit_diff, parity.argmax_flips, parity.ties, parity.edge_flips) == (0.0, 0, 0, 0)
    assert (parity.samples, parity.edge_pictures) == (DIGITS, EDGES)
    assert (parity.agreement, parity.accuracy, parity.reference_accuracy) == (1.0, 1.0, 1.0)
    assert parity.batch_sizes == (0, 1, 7, 256)
    parity.require_float("model")
    parity.require_int8("model")


def test_all_images_are_compared_in_every_backend_and_a_part_at_small_batch_sizes(
    inputs: ParityInputs,
) -> None:
    runs = []

    def run(images: np.ndarray, batch_size: int) -> Prediction:
        runs.append((len(images), batch_size))
        return runner(inputs)(images, batch_size)

    prove(inputs, run, run)
    subset = SUBSET + EDGES
    assert runs == 2 * [(0, 1), (subset, 1), (subset, 7), (DIGITS + EDGES, CHUNK)]


@pytest.mark.parametrize("batch_size", [*SMALL_BATCHES[1:], CHUNK])
@pytest.mark.parametrize("picture", [0, DIGITS + EDGES - 1], ids=["digit", "edge picture"])
@pytest.mark.parametrize("output", ["logit", "probability"])
def test_a_difference_at_one_batch_size_in_one_backend_fails(
    inputs: ParityInputs, batch_size: int, picture: int, output: str
) -> None:
    wrong = runner(inputs, add(picture, **{output: 2e-4}), batch_size)
    parity = prove(inputs, runner(inputs), wrong)
    assert parity.engines["backend 0"] == 0
    with pytest.raises(CheckFailed, match=r"model\.onnx differs from the original .* nothing was published"):
        parity.require_float("model.onnx")


@pytest.mark.parametrize("largest", [0.0, 50.0])
def test_the_tolerance_of_a_logit_grows_with_the_largest_one_of_its_image(largest: float) -> None:
    logits = np.zeros((DIGITS + EDGES, 10), np.float32)
    logits[:, 0] = largest
    inputs = inputs_of(logits)
    allowed = 1e-4 + 1e-5 * largest
    assert FLOAT.of_logits(logits) == pytest.approx(allowed)
    prove(inputs, runner(inputs, add(5, logit=0.99 * allowed))).require_float("model")
    with pytest.raises(CheckFailed):
        prove(inputs, runner(inputs, add(5, logit=1.01 * allowed))).require_float("model")


def test_a_tie_passes_and_is_counted() -> None:
    """Of two logits that are closer than twice the tolerance, either may be the larger one."""
    logits = np.zeros((DIGITS + EDGES, 10), np.float32)
    logits[:, 0] = 1.8e-4
    inputs = inputs_of(logits)

    def turn(logits: np.ndarray, probabilities: np.ndarray) -> None:
        logits[7, :2] += np.float32([-0.95e-4, 0.95e-4])

    parity = prove(inputs, runner(inputs, turn))
    assert (parity.argmax_flips, parity.ties, parity.agreement, parity.accuracy) == (1, 1, 1.0, 1.0)
    parity.require_float("model")
    assert parity.statement()["argmax_flips"] == 0


def test_a_label_with_a_margin_fails(inputs: ParityInputs) -> None:
    parity = prove(inputs, runner(inputs, flip(1)))
    assert (parity.argmax_flips, parity.ties) == (1, 0)
    with pytest.raises(CheckFailed, match=f"1 of {DIGITS + EDGES:,} labels differ"):
        parity.require_float("model")


def test_a_flip_at_one_batch_size_counts_once(inputs: ParityInputs) -> None:
    for batch_size in (*SMALL_BATCHES[1:], CHUNK):
        parity = prove(inputs, runner(inputs, flip(1), batch_size))
        assert (parity.argmax_flips, parity.agreement) == (1, 0.999)
        assert parity.accuracy == (0.999 if batch_size == CHUNK else 1)
    edge = prove(inputs, runner(inputs, lambda logits, _: logits[-1].__imul__(-1)))
    assert (edge.argmax_flips, edge.edge_flips) == (0, 1)


def test_the_statement_leaves_out_what_varies(inputs: ParityInputs) -> None:
    statement = prove(inputs, runner(inputs)).statement()
    varying = {"max_abs_logit_diff", "max_abs_probability_diff", "tolerance_share", "ties"}
    assert statement.keys() == {field.name for field in dataclasses.fields(Parity)} - varying
    assert statement["engines"] == ["backend 0"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_number_fails(inputs: ParityInputs, value: float) -> None:
    parity = prove(inputs, runner(inputs, add(0, logit=value)), int8=True)
    for check in (parity.require_float, parity.require_int8):
        with pytest.raises(CheckFailed):
            check("model")


@pytest.mark.parametrize("count", [0, 1], ids=["empty batch", "any batch"])
def test_another_shape_fails(inputs: ParityInputs, count: int) -> None:
    def run(images: np.ndarray, batch_size: int) -> Prediction:
        found = runner(inputs)(images, batch_size)
        narrow = bool(len(images)) == bool(count)
        return Prediction(found.logits[:, :9] if narrow else found.logits, found.probabilities)

    with pytest.raises(CheckFailed):
        prove(inputs, run).require_float("model")


# An 8-bit file: accuracy and labels count, not logits.


def test_an_8_bit_file_may_differ_in_logits_and_read_better(inputs: ParityInputs) -> None:
    wrong = dataclasses.replace(inputs, labels=(inputs.labels + (np.arange(DIGITS) < 9)) % 10)

    def correct(logits: np.ndarray, probabilities: np.ndarray) -> None:
        logits[np.arange(9), wrong.labels[:9]] = 10

    parity = prove(wrong, runner(wrong, correct), int8=True)
    assert (parity.reference_accuracy, parity.accuracy) == (0.991, 1.0)
    assert parity.edge_pictures == 0
    parity.require_int8("model")


def test_an_8_bit_file_may_lose_little(inputs: ParityInputs) -> None:
    """A tenth of a point of 1,000 digits is one digit, which is less than chance."""
    prove(inputs, runner(inputs, flip(FEWEST_LOST)), int8=True).require_int8("model")
    with pytest.raises(CheckFailed, match=r"4 digits fewer, allowed: 3.*; train longer, or export the other"):
        prove(inputs, runner(inputs, flip(FEWEST_LOST + 1)), int8=True).require_int8("model")
    parity = prove(inputs, runner(inputs), int8=True)
    large = dataclasses.replace(parity, samples=10_000)
    dataclasses.replace(large, accuracy=0.999).require_int8("model")
    dataclasses.replace(large, argmax_flips=20).require_int8("model")
    dataclasses.replace(parity, argmax_flips=FEWEST_FLIPS).require_int8("model")
    for change in ({"accuracy": 0.9989}, {"argmax_flips": 21}):
        with pytest.raises(CheckFailed):
            dataclasses.replace(large, **change).require_int8("model")


def test_an_8_bit_file_must_be_small() -> None:
    require_small("model", 129_810, [784, 128, 64, 10])
    with pytest.raises(CheckFailed, match="129,811 bytes, allowed are 129,810"):
        require_small("model", 129_811, [784, 128, 64, 10])


def test_a_wrong_weight_fails_however_little_it_does() -> None:
    state = {"net.fc1.weight": np.ones((3, 2), np.float32)}
    require_same_weights("model", {**state, "temperature": np.float32(1.5)}, state)
    for found in ({}, {"net.fc1.weight": np.nextafter(state["net.fc1.weight"], 2)}):
        with pytest.raises(CheckFailed, match=r"differs from the net in the weights net\.fc1\.weight"):
            require_same_weights("model", found, state)


def test_edge_pictures_are_what_no_test_set_holds() -> None:
    pictures = edge_pictures()
    assert (pictures.dtype, pictures.shape) == (np.uint8, (EDGES, 28, 28))
    ink = (pictures > 0).sum(axis=(1, 2)).tolist()
    assert ink[:4] == [0, 784, 1, 1]
    assert min(ink[4:]) > 700
    assert np.array_equal(pictures, edge_pictures())


def test_the_first_two_digits_of_each_class_are_test_vectors() -> None:
    inputs = inputs_of(np.tile(np.eye(10, dtype=np.float32), (4, 1)))
    positions = [place for label in range(10) for place in (label, label + 10)]
    assert inputs.vector_positions().tolist() == positions


def test_the_worst_deviation_is_the_one_nearest_to_its_bound() -> None:
    expected = (np.array([[1.0, 0.0], [100.0, 0.0]], np.float32), np.full((2, 2), 0.5, np.float32))
    found = (expected[0] + np.float32([[0.1, 0], [1.0, 0]]), expected[1] + np.float32(0.05))
    worst = INT8.worst(found, expected)
    assert (worst.difference, worst.allowed) == pytest.approx((0.1, 0.15), abs=1e-6)
    assert worst.share == pytest.approx(2 / 3, rel=1e-5)
    assert INT8.worst((found[0][:0], found[1][:0]), (expected[0][:0], expected[1][:0])).share == 0
