"""`mnist verify`: check that an artifact is as it was exported and gives the original's outputs here."""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serve_cli.errors import CheckFailed, InputError
from serve_cli.model_file import foreign_file, read_bytes, read_contract, read_inventory
from serve_cli.process import printable
from serve_cli.spec import (
    ARTIFACT_FILE,
    ARTIFACT_FOLDER,
    BUNDLED_MODEL,
    INPUT,
    MODEL_CARD,
    MODEL_FILES,
    MODEL_NAME,
    ONNX_FORMATS,
    OUTPUTS,
    PARITY_FILE,
    TRITON_FILE,
    VECTOR_INPUT,
    VECTOR_OUTPUTS,
)

if TYPE_CHECKING:
    import numpy as np

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def verify(
    artifact: Annotated[
        Path,
        typer.Argument(
            help="An artifact directory, a run that has one, or a Triton repository.",
            show_default="the model in the package",
        ),
    ] = BUNDLED_MODEL,
) -> None:
    """Check an artifact: its hashes, its contracts, its outputs.

    For a model that was copied, downloaded or taken to another machine. Every file is compared with its hash
    in artifact.json, each model's contract with the one there, and the ONNX files replay the stored test
    vectors. It needs no torch, so torch's own formats are checked but not run. A line about each file, then
    the verdict; the first difference ends it. That a file is whole does not say who made it.

    Exit codes: 0 all is as it was exported, 1 something differs, 2 there is nothing to check.

    \b
    Examples:
      mnist verify runs/notebook
      mnist verify repository
    """
    folder = find_artifact(artifact)
    lines = verify_artifact(folder)
    for line in [*lines, f"{folder}: verified, all {len(lines)} files are as they were exported"]:
        typer.echo(printable(line))


def find_artifact(path: Path) -> Path:
    """The folder with the artifact.json that `path` stands for.

    Raises:
        InputError: there is none.
    """
    if not path.is_dir():
        raise InputError(f"{path} is no folder: name a directory that mnist export made")
    for folder in (path, path / ARTIFACT_FOLDER, path / MODEL_NAME):
        if (folder / ARTIFACT_FILE).is_file():
            return folder
    raise InputError(f"{path} holds no {ARTIFACT_FILE}: name a directory that mnist export made")


def verify_artifact(folder: Path) -> list[str]:
    """Check the artifact in `folder` and return a line about each of its files.

    Raises:
        CheckFailed: something is not what was exported, or answers otherwise.
        InputError: there is no artifact.json to compare with, or it is damaged.
    """
    inventory = read_inventory(folder)
    _check_nothing_else(folder, inventory["files"])
    lines = {name: _check_file(folder, name, stated) for name, stated in inventory["files"].items()}
    formats = _formats(folder, inventory)
    for name, model_format in formats.items():
        _check_contract(folder / name, inventory["contract"], model_format)
        runs = model_format in ONNX_FORMATS
        replayed = _replay(folder, name, model_format) if runs else "not run, that needs torch"
        lines[name] += f", contract ok, {replayed}"
    return [f"{name}: {line}" for name, line in lines.items()]


def _formats(folder: Path, inventory: Mapping[str, Any]) -> dict[str, str]:
    """The format of each model file, once the inventory lists all that belongs to an artifact."""
    files = inventory["files"]
    formats = {name: file["format"] for name, file in files.items() if "format" in file}
    places = {name: {file.name} for name, file in MODEL_FILES.items()}
    for name in ONNX_FORMATS:
        places[name].add(TRITON_FILE)
    missing = {PARITY_FILE, MODEL_CARD, VECTOR_INPUT, *VECTOR_OUTPUTS} - files.keys()
    misplaced = [name for name, model_format in formats.items() if name not in places[model_format]]
    if not formats or missing or misplaced or set(formats.values()) != inventory["contract"]["parity"].keys():
        raise CheckFailed(
            f"{folder / ARTIFACT_FILE} does not list what an export leaves: export the model again"
        )
    return formats


def _check_nothing_else(folder: Path, listed: Mapping[str, Any]) -> None:
    """Refuse files that nobody has proven: an inference server takes a newer version folder, for example."""
    name = foreign_file(folder, {ARTIFACT_FILE, *listed}.__contains__)
    if name is not None:
        raise CheckFailed(f"{folder / name} is not listed in {ARTIFACT_FILE}: keep other files elsewhere")


def _check_file(folder: Path, name: str, stated: Mapping[str, Any]) -> str:
    """Compare a file with the hash that artifact.json states."""
    path = folder / name
    if ".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute():
        raise CheckFailed(f"{folder / ARTIFACT_FILE} lists {name}, which is not in its folder")
    if path.is_symlink() or not path.is_file():
        raise CheckFailed(f"{path} is missing, {ARTIFACT_FILE} lists it: export the model again")
    data = read_bytes(path)
    if len(data) != stated["bytes"] or hashlib.sha256(data).hexdigest() != stated["sha256"]:
        raise CheckFailed(
            f"{path} is not the file that was exported, its SHA-256 is another: export the model again"
        )
    return f"{len(data):,} bytes, hash ok"


def _check_contract(path: Path, stated: Mapping[str, Any], model_format: str) -> None:
    """Compare the contract inside a model file with the one in artifact.json."""
    contract = read_contract(path)
    expected = {**stated, "parity": stated["parity"].get(model_format)}
    if json.loads(contract.to_json()) != expected:
        raise CheckFailed(f"the contract in {path} is not that in {ARTIFACT_FILE}: export the model again")


def _replay(folder: Path, name: str, model_format: str) -> str:
    """Run the model on the test vectors and compare its outputs with the original's."""
    from serve_cli.runtime import Predictor  # onnxruntime takes 0.2 s to import
    from serve_cli.tolerance import TOLERANCES

    images, logits, probabilities = read_vectors(folder)
    found = Predictor(folder / name).predict(images)
    worst = TOLERANCES[model_format].worst((found.logits, found.probabilities), (logits, probabilities))
    if not worst.share <= 1:
        raise CheckFailed(
            f"{folder / name} answers otherwise on this machine: it differs from the original by up to "
            f"{worst.difference:.3g} on the test vectors (allowed: {worst.allowed:.3g})"
        )
    return (
        f"{len(images)} test vectors differ from the original by at most {worst.difference:.2g} "
        f"(allowed: {worst.allowed:.2g})"
    )


def read_vectors(folder: Path) -> tuple["np.ndarray", "np.ndarray", "np.ndarray"]:
    """The test vectors of an artifact: images uint8 [N, 28, 28], logits and probabilities float32 [N, 10].

    Each is a TensorProto as mnist export writes it: its numbers come last.

    Raises:
        CheckFailed: there are no such numbers.
        InputError: a file cannot be read.
    """
    import numpy as np

    tensors = []
    for name, value in zip((VECTOR_INPUT, *VECTOR_OUTPUTS), (INPUT, *OUTPUTS), strict=True):
        data, dtype, shape = read_bytes(folder / name), np.dtype(value["dtype"]), value["shape"][1:]
        size = dtype.itemsize * math.prod(shape)
        count = len(data) // size
        if count == 0:
            raise CheckFailed(f"{folder / name} holds no test vectors: export the model again")
        tensors.append(np.frombuffer(data[-count * size :], dtype.newbyteorder("<")).reshape(count, *shape))
    images, logits, probabilities = tensors
    return images, logits, probabilities
