"""The contract is frozen: what goes into a model and comes out, and the names that others look for."""

import json
import zipfile
from pathlib import Path
from typing import Any

import onnx
import torch

from serve_cli import preprocess, spec
from tests.frozen import record
from tests.frozen.record import shape


def tensor(value: onnx.ValueInfoProto) -> dict[str, Any]:
    """The type and the shape of an input or an output of a graph."""
    of = value.type.tensor_type
    return {
        "dtype": onnx.helper.tensor_dtype_to_np_dtype(of.elem_type).name,
        "shape": [dimension.dim_param or dimension.dim_value for dimension in of.shape.dim],
    }


def onnx_file(path: Path) -> dict[str, Any]:
    """What an ONNX file shows to a runtime."""
    model = onnx.load(path)
    return {
        "inputs": {item.name: tensor(item) for item in model.graph.input},
        "outputs": {item.name: tensor(item) for item in model.graph.output},
        "metadata": sorted(item.key for item in model.metadata_props),
        "opset": {item.domain or "ai.onnx": item.version for item in model.opset_import},
    }


def contract_files(path: Path) -> list[str]:
    """Where the contract lies in a file of PyTorch, below the folder that the file is called after."""
    with zipfile.ZipFile(path) as archive:
        names = (name.partition("/")[2] for name in archive.namelist())
        return [name for name in names if spec.METADATA_KEY in name]


def files_below(folder: Path) -> list[str]:
    """All files, without those of checkpoints."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in paths if path.parts[0] != "checkpoints")


def constants(module: Any) -> dict[str, float]:
    """The numbers that a module states, by name."""
    return {
        name: value
        for name, value in vars(module).items()
        if name.isupper() and isinstance(value, int | float)
    }


def test_the_contract_is_frozen(calibrated_run: Path, calibrated: Path) -> None:
    contract = json.loads((calibrated / spec.ARTIFACT_FILE).read_text(encoding="utf-8"))["contract"]
    weights = torch.load(calibrated_run / spec.STATE_DICT, weights_only=True)
    found = {
        "version": spec.FORMAT_VERSION,
        "input": spec.INPUT,
        "outputs": list(spec.OUTPUTS),
        "labels": contract["labels"],
        "preprocessing": spec.PREPROCESSING,
        "preprocessing constants": constants(preprocess),
        "fields": shape(contract),
        "onnx": {name: onnx_file(calibrated / spec.MODEL_FILES[name].name) for name in spec.ONNX_FORMATS},
        "contract in PyTorch's files": {
            name: contract_files(calibrated / spec.MODEL_FILES[name].name) for name in ("torchscript", "pt2")
        },
        "artifact": files_below(calibrated),
        "formats": {name: file.name for name, file in spec.MODEL_FILES.items()},
        "run": files_below(calibrated_run),
        "state_dict": {name: list(values.shape) for name, values in weights.items()},
        "triton": f"{spec.MODEL_NAME}/{spec.TRITON_FILE}",
    }
    record.check("contract", "tests/test_contract_frozen.py", found)


def test_every_state_of_the_contract_was_announced() -> None:
    record.check_announced("contract")
