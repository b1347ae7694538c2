"""Finding a model and reading what it says about itself, without loading it."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

from serve_cli.errors import InputError
from serve_cli.spec import ARTIFACT_FOLDER, METADATA_KEY, MODEL_FILES, Contract


def find_model(path: Path, formats: Sequence[str] = ("onnx",)) -> Path:
    """Return the model file that `path` stands for: a file, an artifact directory or a run directory.

    In a directory the first of `formats` that is there counts.

    Raises:
        InputError: there is no such model.
    """
    try:
        if path.is_file():
            return path
    except OSError as error:
        raise InputError(f"cannot read model {path}: {error.strerror}") from error
    names = [MODEL_FILES[name] for name in formats]
    for folder in (path, path / ARTIFACT_FOLDER):
        for name in names:
            if (folder / name).is_file():
                return folder / name
    if path.is_dir():
        advice = f"make one with mnist export --format {formats[0]}"
        raise InputError(f"{path} holds no {' or '.join(names)}: {advice}")
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
    except Exception as error:  # zlib.error, RuntimeError for encryption, NotImplementedError, ...
        raise InputError(f"{path} is damaged ({error}): export the model again") from error
    raise InputError(f"{path} carries no {METADATA_KEY} contract: make it with mnist export")
