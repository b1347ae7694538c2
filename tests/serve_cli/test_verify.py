"""`mnist verify`: an artifact passes as it is, and fails when a single byte of it is another."""

import functools
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from serve_cli.errors import CheckFailed
from serve_cli.spec import VECTOR_INPUT, VECTOR_OUTPUTS
from serve_cli.verify import read_vectors
from tests.command import Mnist


@pytest.fixture
def copy(artifact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(artifact, tmp_path / "copy"))


def test_an_artifact_passes(artifact: Path, mnist: Mnist) -> None:
    result = mnist("verify", artifact)
    assert (result.code, result.err) == (0, "")
    *of_files, verdict = result.out.splitlines()
    lines = dict(line.split(": ", 1) for line in of_files)
    files = {path.relative_to(artifact).as_posix() for path in artifact.rglob("*") if path.is_file()}
    assert set(lines) == files - {"artifact.json"}
    for name, line in lines.items():
        assert "hash ok" in line
        assert ("contract ok" in line) == name.startswith("model.")
        assert ("20 test vectors" in line) == name.endswith(".onnx")
        assert ("not run" in line) == (".pt" in name)
    assert verdict == f"{artifact}: verified, all {len(files) - 1} files are as they were exported"


def test_a_run_stands_for_its_artifact(
    run_directory: Path, artifact: Path, tmp_path: Path, mnist: Mnist
) -> None:
    shutil.copytree(artifact, tmp_path / "run" / "artifact")
    assert mnist("verify", tmp_path / "run").code == 0
    mnist("verify", run_directory).assert_refused("holds no artifact.json", "mnist export")


@pytest.mark.parametrize(
    "name",
    [
        "model.onnx",
        "model.int8.onnx",
        "model.torchscript.pt",
        "model.pt2",
        "parity.json",
        "MODEL_CARD.md",
        "test_data_set_0/input_0.pb",
        "test_data_set_0/output_0.pb",
        "test_data_set_0/output_1.pb",
    ],
)
@pytest.mark.parametrize("place", [0.0, 0.3, 0.7, 1.0])
def test_one_changed_byte_fails(copy: Path, mnist: Mnist, name: str, place: float) -> None:
    path = copy / name
    data = bytearray(path.read_bytes())
    data[round(place * (len(data) - 1))] ^= 1
    path.write_bytes(data)
    result = mnist("verify", copy)
    assert result.code == 1
    assert result.out == ""
    assert len(result.err.splitlines()) == 1
    assert str(path) in result.err


def test_a_file_that_nobody_proved_fails(copy: Path, mnist: Mnist) -> None:
    (copy / "2").mkdir()
    assert mnist("verify", copy).code == 0
    shutil.copy(copy / "model.onnx", copy / "2")
    result = mnist("verify", copy)
    assert result.code == 1
    assert "2/model.onnx is not listed" in result.err


def test_a_file_cut_short_or_gone_fails(copy: Path, mnist: Mnist) -> None:
    path = copy / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    assert mnist("verify", copy).code == 1
    path.unlink()
    result = mnist("verify", copy)
    assert result.code == 1
    assert "is missing" in result.err


def rewrite(folder: Path, change: Callable[[dict], None]) -> None:
    """Let `change` edit artifact.json."""
    inventory = json.loads((folder / "artifact.json").read_text())
    change(inventory)
    (folder / "artifact.json").write_text(json.dumps(inventory))


def replace_model(folder: Path, model: onnx.ModelProto) -> None:
    """Put another model in place of model.onnx, with the right hash in artifact.json."""
    data = model.SerializeToString()
    (folder / "model.onnx").write_bytes(data)
    stated = {"format": "onnx", "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    rewrite(folder, lambda inventory: inventory["files"].update({"model.onnx": stated}))


def test_a_model_that_answers_otherwise_fails_though_all_hashes_are_right(copy: Path, mnist: Mnist) -> None:
    model = onnx.load(copy / "model.onnx")
    replace_model(copy, model)
    assert mnist("verify", copy).code == 0
    bias = next(item for item in model.graph.initializer if item.name == "net.fc3.bias")
    values = onnx.numpy_helper.to_array(bias).copy()
    values[4] += 1e-3
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    replace_model(copy, model)
    result = mnist("verify", copy)
    assert result.code == 1
    assert "answers otherwise on this machine" in result.err


@pytest.mark.parametrize("tolerance", [float("inf"), 1e9, None])
def test_the_tolerance_is_ours_whatever_the_artifact_states(
    copy: Path, mnist: Mnist, tolerance: float | None
) -> None:
    """Older artifacts state one, and somebody may have raised it."""
    model = onnx.load(copy / "model.onnx")
    bias = next(item for item in model.graph.initializer if item.name == "net.fc3.bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.ones(10, np.float32), bias.name))
    contract = next(item for item in model.metadata_props if item.key == "mnist_toolkit")
    stated = json.loads(contract.value)
    if tolerance is not None:
        stated["parity"]["tolerance"] = tolerance
    contract.value = json.dumps(stated)
    replace_model(copy, model)
    rewrite(copy, lambda inventory: inventory["contract"]["parity"].update(onnx=stated["parity"]))
    result = mnist("verify", copy)
    assert (result.code, result.out) == (2 if tolerance == float("inf") else 1, "")
    assert len(result.err.splitlines()) == 1
    assert ("is not a finite number" if result.code == 2 else "answers otherwise") in result.err


def test_a_contract_that_was_edited_fails(copy: Path, mnist: Mnist) -> None:
    rewrite(copy, lambda inventory: inventory["contract"]["evaluation"].update(accuracy=0.9999))
    result = mnist("verify", copy)
    assert result.code == 1
    assert "the contract in" in result.err


@pytest.mark.parametrize(
    "change",
    [
        lambda inventory: inventory.pop("files"),
        lambda inventory: inventory.pop("contract"),
        lambda inventory: inventory.update(files=5),
        lambda inventory: inventory["files"].update({"x": 5}),
        lambda inventory: inventory["files"]["model.onnx"].pop("sha256"),
        lambda inventory: inventory["files"]["model.onnx"].update(sha256=5),
        lambda inventory: inventory["files"]["model.onnx"].update(bytes="5"),
        lambda inventory: inventory["contract"].update(parity=None),
        lambda inventory: inventory["files"]["model.onnx"].update(format=[1]),
        lambda inventory: inventory["files"]["model.onnx"].update(format="tflite"),
        lambda inventory: inventory["files"]["model.onnx"].update(colour="red"),
        lambda inventory: inventory.update(more=functools.reduce(lambda inner, _: [inner], range(600), 0)),
        lambda inventory: inventory.update(more=float("nan")),
        lambda inventory: inventory.update(more="x" * 1_000_000),
    ],
)
def test_a_damaged_inventory_is_bad_input(copy: Path, mnist: Mnist, change: Callable[[dict], None]) -> None:
    rewrite(copy, change)
    mnist("verify", copy).assert_refused("artifact.json")


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname"])
def test_no_file_outside_is_read(copy: Path, mnist: Mnist, name: str) -> None:
    (copy.parent / "outside").write_text("x")
    rewrite(copy, lambda inventory: inventory["files"].update({name: {"bytes": 1, "sha256": "0" * 64}}))
    result = mnist("verify", copy)
    assert result.code == 1
    assert "not in its folder" in result.err


@pytest.mark.parametrize(
    "name", ["model.onnx", "model.pt2", "parity.json", "MODEL_CARD.md", "test_data_set_0/output_1.pb"]
)
def test_what_is_not_listed_any_more_fails(copy: Path, mnist: Mnist, name: str) -> None:
    (copy / name).unlink()
    rewrite(copy, lambda inventory: inventory["files"].pop(name))
    result = mnist("verify", copy)
    assert result.code == 1
    assert "does not list what an export leaves" in result.err


def test_a_model_without_its_format_fails(copy: Path, mnist: Mnist) -> None:
    rewrite(copy, lambda inventory: inventory["files"]["model.onnx"].pop("format"))
    assert mnist("verify", copy).code == 1
    rewrite(copy, lambda inventory: inventory["files"]["MODEL_CARD.md"].update(format="onnx"))
    assert mnist("verify", copy).code == 1


def test_a_link_in_place_of_a_model_fails(copy: Path, mnist: Mnist, artifact: Path) -> None:
    (copy / "model.onnx").unlink()
    (copy / "model.onnx").symlink_to(artifact / "model.onnx")
    assert mnist("verify", copy).code == 1


@pytest.mark.parametrize("shape", [(0, 28, 28), (20, 27, 28), (784,)])
def test_vectors_of_another_shape_fail(copy: Path, mnist: Mnist, shape: tuple[int, ...]) -> None:
    tensor = onnx.numpy_helper.from_array(np.zeros(shape, np.uint8), "image").SerializeToString()
    (copy / VECTOR_INPUT).write_bytes(tensor)
    stated = {"bytes": len(tensor), "sha256": hashlib.sha256(tensor).hexdigest()}
    rewrite(copy, lambda inventory: inventory["files"].update({VECTOR_INPUT: stated}))
    assert mnist("verify", copy).code == 1


def test_bad_usage(tmp_path: Path, mnist: Mnist) -> None:
    mnist("verify", tmp_path / "nope").assert_refused("nope is no folder")
    (tmp_path / "artifact.json").write_text("{")
    mnist("verify", tmp_path).assert_refused("artifact.json is damaged")


def test_vectors_are_those_that_onnx_reads(artifact: Path) -> None:
    for path, found in zip((VECTOR_INPUT, *VECTOR_OUTPUTS), read_vectors(artifact), strict=True):
        expected = onnx.numpy_helper.to_array(onnx.load_tensor(artifact / path))
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def test_what_holds_no_test_vectors_is_refused(copy: Path) -> None:
    (copy / VECTOR_INPUT).write_bytes(b"short")
    with pytest.raises(CheckFailed, match=r"input_0\.pb holds no test vectors"):
        read_vectors(copy)
