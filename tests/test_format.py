"""docs/format.md names each key, file and tensor that there is, and no other."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx

from serve_cli.spec import (
    ARTIFACT_FILE,
    BUNDLED_MODEL,
    FORMAT_VERSION,
    METADATA_KEY,
    MODEL_FILES,
    PARITY_FILE,
    VECTOR_INPUT,
    VECTOR_OUTPUTS,
)
from tests.documents import ROOT

FORMAT = ROOT / "docs" / "format.md"
KINDS: dict[str, type | tuple[type, ...]] = {
    "integer": int,
    "number": (int, float),
    "text": str,
    "list": list,
    "object": dict,
}
OPTIONAL = ("if calibrated", "of an ONNX file", "older files")
OPEN = ("training.config", "contract")
"""Objects whose keys a table leaves to others."""


def table(heading: str) -> dict[str, list[str]]:
    """The rows of the only table with keys below a heading of the page, by the key in the first column."""
    section = FORMAT.read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([^`]+)` \| (.*) \|$", section, flags=re.MULTILINE)
    assert rows, heading
    return {key: rest.split(" | ") for key, rest in rows}


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Each key of a JSON document with its value, lists of objects as `name[].key`."""
    if isinstance(value, dict) and path not in OPEN:
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for item in value:
            yield from leaves(item, f"{path}[]")
    else:
        yield path, value


def assert_described(document: Any, rows: dict[str, list[str]]) -> None:
    """Each key of the document is in the table with its type; the table has no other key but by version."""
    found = list(leaves(document))
    keys = {key for key, _ in found}
    assert keys <= rows.keys()
    assert {row[1] for key, row in rows.items() if key not in keys} <= {
        "newer files",
        "older files",
        "of an ONNX file",
    }
    for key, value in found:
        kinds = [KINDS[kind] for kind in rows[key][0].split(" or ")]
        assert any(isinstance(value, kind) for kind in kinds), (key, value)
        assert not isinstance(value, bool), key


def test_the_page_describes_the_contract() -> None:
    contract = json.loads(bundled_onnx()[METADATA_KEY])
    assert_described(contract, table("The contract"))
    assert contract["format_version"] == FORMAT_VERSION
    assert f"`format_version` is {FORMAT_VERSION}." in FORMAT.read_text(encoding="utf-8")


def test_the_page_describes_a_contract_without_training_and_calibration(artifact: Path) -> None:
    """What the table says is there only of a run, or if calibrated, may be missing; nothing else may."""
    inventory = json.loads((artifact / ARTIFACT_FILE).read_text())
    rows = table("The contract")
    contract = {**inventory["contract"], "parity": inventory["contract"]["parity"]["onnx"]}
    missing = rows.keys() - {key for key, _ in leaves(contract)}
    assert missing == {key for key, row in rows.items() if row[1] in OPTIONAL}
    assert contract["calibration"] == {}


def test_the_page_describes_the_tensors() -> None:
    contract = json.loads(bundled_onnx()[METADATA_KEY])
    rows = table("The model")
    tensors = [("input", contract["input"]), *(("output", output) for output in contract["outputs"])]
    expected = {
        tensor["name"]: [direction, f"`{tensor['dtype']}`", f"`{json.dumps(tensor['shape'])}`"]
        for direction, tensor in tensors
    }
    assert {name: row[:3] for name, row in rows.items()} == expected


def bundled_onnx() -> dict[str, str]:
    """The metadata of the float model in the package."""
    model = onnx.load(BUNDLED_MODEL / MODEL_FILES["onnx"].name)
    return {pair.key: pair.value for pair in model.metadata_props}


def test_the_page_describes_the_metadata() -> None:
    rows = table("ONNX metadata")
    metadata = bundled_onnx()
    assert rows.keys() == metadata.keys()
    for key, row in rows.items():
        if key.startswith("Image."):
            assert row == [f"`{metadata[key]}`"]


def test_the_page_says_where_the_contract_is() -> None:
    rows = table("Where the contract is")
    assert {name: row[0] for name, row in rows.items()} == {
        name: f"`{file.name}`" for name, file in MODEL_FILES.items()
    }


def test_the_page_describes_the_inventory_and_the_proof() -> None:
    inventory = json.loads((BUNDLED_MODEL / ARTIFACT_FILE).read_text())
    described = {key: row for key, row in table("artifact.json").items() if not key.startswith("files.*")}
    assert {key: type(value) for key, value in inventory.items()} == dict.fromkeys(
        ("contract", "files"), dict
    )
    assert described.keys() == {"contract", "files"}
    of_files = {key: row for key, row in table("artifact.json").items() if key.startswith("files.*")}
    for file in inventory["files"].values():
        rows = {key: row for key, row in of_files.items() if row[1] == "always" or "format" in file}
        assert_described({"files": {"*": file}}, rows)
    for proof in json.loads((BUNDLED_MODEL / PARITY_FILE).read_text()).values():
        for difference in proof["engines"].values():
            assert_described({**proof, "engines": {"*": difference}}, table("parity.json"))


def test_the_page_describes_the_vectors() -> None:
    expected = {
        path: (tensor.name, list(tensor.dims))
        for path in (VECTOR_INPUT, *VECTOR_OUTPUTS)
        for tensor in [onnx.load_tensor(BUNDLED_MODEL / path)]
    }
    found = {
        path: (row[0].strip("`"), json.loads(row[2].strip("`")))
        for path, row in table("Test vectors").items()
    }
    assert found == expected
