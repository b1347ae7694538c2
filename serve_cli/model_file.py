"""Finding a model and reading what it says about itself, without loading it."""

import zipfile
from pathlib import Path

from serve_cli.errors import InputError
from serve_cli.spec import METADATA_KEY, MODEL_FILES, Contract

ARTIFACT_FOLDER = "artifact"
"""Where an export lies inside a run directory unless --output says otherwise."""


def find_model(path: Path) -> Path:
    """Return the ONNX file that `path` stands for: a file, an artifact directory or a run directory.

    Raises:
        InputError: there is no such model.
    """
    if path.is_file():
        return path
    name = MODEL_FILES["onnx"]
    for candidate in (path / name, path / ARTIFACT_FOLDER / name):
        if candidate.is_file():
            return candidate
    if path.is_dir():
        raise InputError(f"{path} holds no {name}: make one with mnist export")
    raise InputError(f"no such model: {path}; make one with mnist train and mnist export")


def read_contract(path: Path) -> Contract:
    """Read the contract of an ONNX or TorchScript file, with the base install alone.

    Raises:
        InputError: the file carries no contract that this version understands.
    """
    if zipfile.is_zipfile(path):
        return Contract.from_json(_extra_file(path), path)
    from serve_cli.runtime import Predictor  # onnxruntime takes 0.2 s to import

    return Predictor(path).contract


def _extra_file(path: Path) -> bytes:
    """The contract inside a PyTorch zip archive, where torch.jit.save put it."""
    suffix = f"/extra/{METADATA_KEY}.json"
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith(suffix):
                    return archive.read(name)
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is damaged ({error}): export the model again") from error
    raise InputError(f"{path} carries no {METADATA_KEY} contract: make it with mnist export")
