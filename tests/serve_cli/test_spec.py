"""A contract survives its JSON, and one that this version does not know is refused by field."""

import json
from pathlib import Path

import pytest

from serve_cli.errors import InputError
from serve_cli.spec import Contract

SOURCE = Path("model.onnx")


@pytest.fixture
def contract() -> Contract:
    return Contract(
        labels=tuple(range(10)),
        normalization={"mean": 0.5, "std": 0.5},
        model={"layers": "784-128-64-10"},
        training={},
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


@pytest.mark.parametrize("text", ["", "{", "[]", "null", b"\xff\xfe", "[" * 100_000])
def test_what_is_not_a_contract_is_refused(text: str | bytes) -> None:
    with pytest.raises(InputError, match=r"model\.onnx"):
        Contract.from_json(text, SOURCE)
