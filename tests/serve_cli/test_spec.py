"""A contract survives its JSON, and one that this version does not know is refused by field."""

import json
from pathlib import Path

import pytest

from serve_cli.errors import InputError
from serve_cli.spec import Contract, floor_of, is_calibration, temperature_of
from tests.conftest import CALIBRATION

SOURCE = Path("model.onnx")


@pytest.fixture
def contract() -> Contract:
    return Contract(
        labels=tuple(range(10)),
        normalization={"mean": 0.5, "std": 0.5},
        model={"layers": "784-128-64-10"},
        training={},
        calibration=CALIBRATION,
        evaluation={"accuracy": 0.97},
        parity={"argmax_flips": 0},
        versions={"torch": "2.14.1"},
        license="MIT",
    )


def test_json_and_back(contract: Contract) -> None:
    assert Contract.from_json(contract.to_json(), SOURCE) == contract


def test_equal_contracts_give_equal_bytes(contract: Contract) -> None:
    again = Contract.from_json(json.dumps(json.loads(contract.to_json()), indent=4), SOURCE)
    assert again.to_json() == contract.to_json()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("format_version", 99, "format_version is 99"),
        ("format_version", 1, "format_version is 1, this program reads 2"),
        ("calibration", {"temperature": 1.5}, "'calibration'"),
        ("calibration", {**CALIBRATION, "min_confidence": float("nan")}, "NaN is not a finite number"),
        ("labels", ["a"], "'labels'"),
        ("labels", "0123456789", "'labels'"),
        ("input", {"name": "pixels"}, "'input'"),
        ("outputs", [], "'outputs'"),
        ("outputs", 5, "'outputs'"),
        ("preprocessing", "squash it", "'preprocessing'"),
        ("parity", None, "lacks 'parity'"),
        ("parity", 5, "'parity'"),
        ("versions", [], "'versions'"),
        ("colour", "red", "unknown field 'colour'"),
        ("labels", [True, *range(9)], "'labels'"),
        ("labels", ["\ud800", *range(9)], "'labels'"),
        ("normalization", {"mean": "0.5"}, "'normalization'"),
        ("model", {"parameters": -1}, "'model'"),
        ("training", {"config": 5}, "'training'"),
        ("evaluation", {"accuracy": 1.5}, "'evaluation'"),
        ("evaluation", {"classes": [{"recall": "x"}]}, "'evaluation'"),
        ("parity", {"samples": 1e9}, "'parity'"),
        ("license", 5, "'license'"),
    ],
)
def test_a_wrong_field_is_named(contract: Contract, field: str, value: object, message: str) -> None:
    values = json.loads(contract.to_json())
    if value is None:
        del values[field]
    else:
        values[field] = value
    with pytest.raises(InputError, match=message):
        Contract.from_json(json.dumps(values), SOURCE)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        b"\xff\xfe",
        "[" * 100_000,
        '{"a":' * 600 + "1" + "}" * 600,
        '{"a": 1e999}',
        " " * 10**6 + "{}",
    ],
)
def test_what_is_not_a_contract_is_refused(text: str | bytes) -> None:
    with pytest.raises(InputError, match=r"model\.onnx"):
        Contract.from_json(text, SOURCE)


def test_a_calibration_is_whole_or_empty() -> None:
    assert is_calibration(CALIBRATION)
    assert (temperature_of(CALIBRATION), floor_of(CALIBRATION)) == (1.5, 0.8)
    assert is_calibration({})
    assert (temperature_of({}), floor_of({})) == (1, 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": 0},
        {"temperature": -1.5},
        {"temperature": float("inf")},
        {"temperature": 10**400},
        {"temperature": "1.5"},
        {"temperature": None},
        {"min_confidence": 1.01},
        {"min_confidence": -0.1},
        {"error_rate": 2},
        {"validation": {}},
        {"validation": None},
        {"validation": {**CALIBRATION["validation"], "errors": "none"}},
        {"validation": {**CALIBRATION["validation"], "more": 1}},
        {"more": 1},
    ],
)
def test_another_calibration_is_none(changes: dict[str, object]) -> None:
    assert not is_calibration({**CALIBRATION, **changes})


@pytest.mark.parametrize("value", [None, 5, [], "x", [1, 2]])
def test_what_is_no_object_is_no_calibration(value: object) -> None:
    assert not is_calibration(value)
