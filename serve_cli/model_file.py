"""Finding a model, reading its bytes, and reading what it says about itself, without loading it."""

import hashlib
import io
import re
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from serve_cli.errors import InputError
from serve_cli.regular_file import read_regular
from serve_cli.spec import (
    ARTIFACT_FILE,
    ARTIFACT_FOLDER,
    METADATA_KEY,
    MODEL_FILES,
    MODEL_NAME,
    MODEL_VERSION,
    ONNX_FORMATS,
    Contract,
    is_count,
    read_json,
)

MAX_BYTES = 256 * 1024**2
"""Size of the largest file that is read: a net of 64 million parameters."""

ONNX_FILES = tuple(MODEL_FILES[name].name for name in ONNX_FORMATS)
"""What the base install runs, in the order in which a directory is searched."""

PLACES = (Path(), Path(ARTIFACT_FOLDER), Path(MODEL_VERSION), Path(MODEL_NAME, MODEL_VERSION))
"""Where models lie in an artifact, a run, a model of a Triton repository, such a repository."""

ZIP_MAGIC = b"PK\x03\x04"

SHA256 = re.compile("[0-9a-f]{64}")


def find_model(path: Path, names: Sequence[str] = ONNX_FILES) -> Path:
    """Return the model file that `path` stands for: a file, an artifact, a run, a Triton repository.

    In a directory the first of `names` that is there counts.

    Raises:
        InputError: there is no such model.
    """
    try:
        is_folder = path.is_dir()
        if not is_folder and path.exists():
            return path
    except OSError as error:
        raise InputError(f"cannot read model {path}: {error.strerror}") from error
    for name in names:
        for place in PLACES:
            if (path / place / name).is_file():
                return path / place / name
    if is_folder:
        raise InputError(f"{path} holds no {', '.join(names)}: make one with mnist export")
    raise InputError(f"no such model: {path}; make one with mnist train and mnist export")


def read_bytes(path: Path) -> bytes:
    """Read a whole file of at most MAX_BYTES.

    Raises:
        InputError: it cannot be read, is too large, or is not a regular file.
    """
    data = read_regular(path, MAX_BYTES, "name a model file, an artifact or a run")
    if len(data) > MAX_BYTES:
        raise InputError(f"{path} has more than {MAX_BYTES // 1024**2} MiB, the limit for a model")
    return data


def read_model(path: Path) -> bytes:
    """Read a model file and, where it lies in an artifact directory, compare it with the hash stated there.

    Raises:
        InputError: it cannot be read, or is not what was exported.
    """
    data = read_bytes(path)
    expected = stated_hash(path)
    if expected is not None and hashlib.sha256(data).hexdigest() != expected:
        raise InputError(f"{path} is not the file that {ARTIFACT_FILE} speaks of: export the model again")
    return data


def stated_hash(path: Path) -> str | None:
    """The SHA-256 that artifact.json states of `path`; None where there is none.

    Raises:
        InputError: artifact.json is damaged.
    """
    folder = path.absolute().parent
    for root, name in ((folder, path.name), (folder.parent, f"{folder.name}/{path.name}")):
        if (root / ARTIFACT_FILE).is_file():
            file = read_inventory(root)["files"].get(name)
            return file["sha256"] if file else None
    return None


def read_inventory(folder: Path) -> dict[str, Any]:
    """The content of an artifact directory's artifact.json: `contract`, and `files` with bytes and sha256.

    Raises:
        InputError: it is missing or damaged.
    """
    path = folder / ARTIFACT_FILE
    try:
        inventory: dict[str, Any] = read_json(read_bytes(path))
        for file in inventory["files"].values():
            _check_entry(file)
        inventory["contract"]["parity"].items()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({error}): export the model again") from error
    return inventory


def _check_entry(file: Mapping[str, Any]) -> None:
    """Check what artifact.json states of one file: its size, its hash, and the format of a model file."""
    if not (is_count(file["bytes"]) and SHA256.fullmatch(file["sha256"])):
        raise ValueError("a file without hash or size")
    if file.keys() - {"sha256", "bytes", "format"} or file.get("format", "onnx") not in [*MODEL_FILES]:
        raise ValueError("a file of an unknown kind")


def foreign_file(folder: Path, is_ours: Callable[[str], object]) -> str | None:
    """The path, relative to `folder`, of a file below it that is not ours; None when all of them are."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if (path.is_symlink() or not path.is_dir()) and not is_ours(name):
            return name
    return None


def read_contract(path: Path) -> Contract:
    """Read the contract of a model file of any format, with the base install alone.

    Raises:
        InputError: the file carries no contract that this version understands, or is damaged.
    """
    model = read_model(path)
    if model.startswith(ZIP_MAGIC):
        return parse_extra_file(model, path)
    from serve_cli.runtime import contract_of, open_session  # onnxruntime takes 0.2 s to import

    return contract_of(open_session(model, str(path)), path)


def parse_extra_file(archive: bytes, path: Path) -> Contract:
    """The contract inside a PyTorch zip archive; `path` is for errors.

    Raises:
        InputError: it carries none that this version understands, or is damaged.
    """
    text = _extra_file(archive, path)
    if text is None:
        raise InputError(
            f"{path} is not a model of ours, it carries no {METADATA_KEY} contract: "
            "make one with mnist export"
        )
    return Contract.from_json(text, path)


def _extra_file(model: bytes, path: Path) -> bytes | None:
    """The contract inside a PyTorch zip archive, where torch.jit.save and torch.export.save put it."""
    suffix = f"/extra/{METADATA_KEY}.json"
    try:
        entries = read_entries(model, deflated=True)
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}): export the model again") from error
    return next((data for name, data in entries.items() if name.endswith(suffix)), None)


def read_entries(archive: bytes, *, deflated: bool = False) -> dict[str, bytes]:
    """The entries of a zip archive by name, if PyTorch may have written it: each CRC fits.

    torch.save stores entries as they are, so that none is larger than the file. TorchScript deflates its
    code, for which `deflated` allows MAX_BYTES. Other methods are refused: zipfile expands bz2 without limit.

    Raises:
        ValueError: it is no such archive, or is damaged.
    """
    import zipfile  # 4 ms, which an ONNX file does not need

    methods = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED} if deflated else {zipfile.ZIP_STORED}
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as file:
            entries = file.infolist()
            if not methods.issuperset(entry.compress_type for entry in entries):
                raise ValueError("an entry in it is compressed as PyTorch never does")
            if sum(entry.file_size for entry in entries) > (MAX_BYTES if deflated else len(archive)):
                raise ValueError("its entries claim more bytes than it can have")
            return {entry.filename: file.read(entry) for entry in entries}
    except (
        zipfile.BadZipFile,
        EOFError,
        RuntimeError,
        NotImplementedError,
        zlib.error,
        struct.error,
    ) as error:
        raise ValueError(str(error) or "an entry is cut off") from error
