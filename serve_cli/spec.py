"""The contract that every exported model carries: what goes in, what comes out, and what was proven.

This is the only file that both halves read. Its JSON form is stored inside each model.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from serve_cli.errors import InputError

FORMAT_VERSION = 2
METADATA_KEY = "mnist_toolkit"
"""Key of the contract's JSON in the ONNX metadata; with `.json`, the extra file of PyTorch's formats."""

IMAGE_SIZE = 28
CLASSES = 10

MAX_JSON_BYTES = 1_000_000
"""Of a contract or an artifact.json; ours have 10 kB."""

MAX_JSON_LEVELS = 20
"""How deep the objects and lists of such a document may be nested; ours are 6 deep."""


@dataclass(frozen=True)
class ModelFile:
    """What an export format leaves in an artifact directory: its file, and what it is good for."""

    name: str
    about: str


MODEL_FILES = {
    "onnx": ModelFile("model.onnx", "float32, for onnxruntime and every other ONNX engine"),
    "onnx-int8": ModelFile("model.int8.onnx", "the same in 8-bit integers, a quarter of the size"),
    "torchscript": ModelFile("model.torchscript.pt", "for C++ and old PyTorch; PyTorch deprecates it"),
    "pt2": ModelFile("model.pt2", "torch.export, for the PyTorch that wrote it and near ones"),
}
"""The export formats, by name; what a directory is asked for, the first that it has."""

ONNX_FORMATS = ("onnx", "onnx-int8")
"""The formats that the base install runs."""

STATE_DICT = "mnist_model.pth"
"""The tutorial's own file, in a run directory."""

ARTIFACT_FILE = "artifact.json"
PARITY_FILE = "parity.json"
MODEL_CARD = "MODEL_CARD.md"

VECTORS = "test_data_set_0"
VECTOR_INPUT = f"{VECTORS}/input_0.pb"
VECTOR_OUTPUTS = (f"{VECTORS}/output_0.pb", f"{VECTORS}/output_1.pb")
"""Test vectors in the layout of the ONNX project: one file an input, one an output, in the graph's order."""

ARTIFACT_FILES = (
    *(file.name for file in MODEL_FILES.values()),
    *(ARTIFACT_FILE, PARITY_FILE, MODEL_CARD),
    *(VECTOR_INPUT, *VECTOR_OUTPUTS),
)
"""All files of an artifact directory."""

MODEL_NAME = "mnist"
"""What an inference server calls the model, and its folder in a Triton repository."""

MODEL_VERSION = "1"
TRITON_FILE = f"{MODEL_VERSION}/model.onnx"
"""The version folder in a Triton repository, and the model file, relative to the model's folder."""

ARTIFACT_FOLDER = "artifact"
"""Where an export lies inside a run directory unless --output says otherwise."""

BUNDLED_MODEL = Path(__file__).with_name("bundled")
"""The artifact that `mnist infer` reads with unless --model names another; it comes with the package."""

INPUT: dict[str, Any] = {
    "name": "image",
    "dtype": "uint8",
    "shape": ["N", IMAGE_SIZE, IMAGE_SIZE],
    "polarity": "white ink on black, as MNIST stores a digit: 0 is background, 255 is ink",
}
OUTPUTS: tuple[dict[str, Any], ...] = (
    {"name": "logits", "dtype": "float32", "shape": ["N", CLASSES]},
    {"name": "probabilities", "dtype": "float32", "shape": ["N", CLASSES]},
)


class Preprocess(StrEnum):
    """How a picture becomes 28x28: as PREPROCESSING says, or it is that already."""

    AUTO = "auto"
    RAW = "raw"


PREPROCESSING = (
    "a picture of a digit is cropped to its ink, fitted into 20x20 with its aspect kept, and placed by its "
    "centre of mass at the centre of 28x28; normalisation is inside the model"
)


def read_json(text: str | bytes) -> Any:
    """Parse JSON that came with a model: bounded in size and depth, with finite numbers.

    Raises:
        ValueError: it is not JSON, or not within these bounds.
    """
    if len(text) > MAX_JSON_BYTES:
        raise ValueError(f"more than {MAX_JSON_BYTES:,} bytes")
    try:
        value = json.loads(text, parse_constant=_finite, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if not _is_shallow(value, MAX_JSON_LEVELS):
        raise ValueError(f"nested more than {MAX_JSON_LEVELS} levels deep")
    return value


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number


def _is_shallow(value: Any, levels: int) -> bool:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return items is None or (levels > 0 and all(_is_shallow(item, levels - 1) for item in items))


def is_number(value: Any) -> bool:
    """A finite number; true and false are none."""
    return type(value) in (int, float) and abs(value) < 1e300


def is_share(value: Any) -> bool:
    """A number from 0 to 1."""
    return is_number(value) and 0 <= value <= 1


def is_count(value: Any) -> bool:
    """A whole number from 0 on that fits into 64 bits."""
    return type(value) is int and 0 <= value < 2**63


def is_text(value: Any) -> bool:
    """Text that can be written as UTF-8: JSON can hold half a surrogate pair."""
    return isinstance(value, str) and value.encode(errors="ignore").decode() == value


def is_label(value: Any) -> bool:
    """A whole number or a text."""
    return is_text(value) or (type(value) is int and is_number(value))


def list_of(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """The check of a list whose items all pass `check`."""
    return lambda value: isinstance(value, list) and all(map(check, value))


def object_of(checks: Mapping[str, Callable[[Any], bool]]) -> Callable[[Any], bool]:
    """The check of an object: a key that is there must pass its check; keys without one may hold anything."""
    return lambda value: (
        isinstance(value, dict)
        and all(key not in value or check(value[key]) for key, check in checks.items())
    )


def is_object(value: Any) -> bool:
    """A JSON object, whatever it holds."""
    return isinstance(value, dict)


def is_versions(value: Any) -> bool:
    """An object of texts."""
    return isinstance(value, dict) and all(map(is_text, value.values()))


MEASURED = frozenset(("samples", "refused", "errors", "calibration_error_before", "calibration_error_after"))
"""What a calibration says of the images that it was chosen on."""


def is_calibration(value: Any) -> bool:
    """Whether `value` is what a run says of its calibration, see trainer.calibrate; or empty, for none."""
    if value == {}:
        return True
    try:
        return (
            value.keys() == {"temperature", "min_confidence", "error_rate", "validation"}
            and value["validation"].keys() == MEASURED
            and all(map(is_number, value["validation"].values()))
            and is_number(value["temperature"])
            and 0.01 <= value["temperature"] <= 100
            and is_share(value["min_confidence"])
            and is_share(value["error_rate"])
        )
    except AttributeError:  # not an object
        return False


def temperature_of(calibration: Mapping[str, Any]) -> float:
    """What divides the logits before their softmax; 1 without a calibration."""
    return float(calibration.get("temperature", 1.0))


def floor_of(calibration: Mapping[str, Any]) -> float:
    """The confidence, 0 to 1, below which an answer is 'not sure'; 0 without a calibration."""
    return float(calibration.get("min_confidence", 0.0))


CHECKS: Mapping[str, Callable[[Any], bool]] = {
    "labels": lambda value: list_of(is_label)(value) and len(value) == CLASSES,
    "normalization": object_of({"mean": is_number, "std": is_number}),
    "model": object_of(
        {
            **dict.fromkeys(("layers", "state_dict_sha256", "onnx_sha256"), is_text),
            **dict.fromkeys(("parameters", "activation_bytes"), is_count),
        }
    ),
    "training": object_of(
        {"recipe": is_text, "config": is_object, "dataset": is_text, "dataset_sha256": is_text}
    ),
    "calibration": is_calibration,
    "evaluation": object_of(
        {
            **dict.fromkeys(("dataset", "dataset_sha256"), is_text),
            **dict.fromkeys(("accuracy", "calibration_error", "macro_f1"), is_share),
            "loss": is_number,
            "samples": is_count,
            "accuracy_interval": list_of(is_share),
            "confusion": list_of(list_of(is_count)),
            "classes": list_of(
                object_of(
                    {
                        "label": is_label,
                        "support": is_count,
                        **dict.fromkeys(("precision", "recall", "f1"), is_share),
                    }
                )
            ),
        }
    ),
    "parity": object_of(
        {
            **dict.fromkeys(("samples", "argmax_flips", "edge_flips", "edge_pictures"), is_count),
            **dict.fromkeys(("agreement", "accuracy", "reference_accuracy"), is_share),
            "engines": list_of(is_text),
            "batch_sizes": list_of(is_count),
        }
    ),
    "versions": is_versions,
    "license": is_text,
}
"""What the fields of a contract must be, those aside that are the same in every contract."""


@dataclass(frozen=True, kw_only=True)
class Contract:
    """What a model file says about itself.

    `normalization` holds mean and std on the scale 0 to 1, for information: the graph applies them; it is
    empty for a model that takes pixels as they are. `training` is empty for a net whose origin is unknown;
    `evaluation` was measured at the export.
    `calibration` is the run's own, and empty for one that held out no images. Its temperature is for
    information, too: probabilities come out of the graph with it, logits without.
    `license` is the model's, as whoever exported it said.
    """

    labels: tuple[int | str, ...]
    normalization: Mapping[str, float]
    model: Mapping[str, Any]
    training: Mapping[str, Any]
    calibration: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    parity: Mapping[str, Any]
    versions: Mapping[str, str]
    license: str
    input: Mapping[str, Any] = field(default_factory=lambda: INPUT)
    outputs: tuple[Mapping[str, Any], ...] = OUTPUTS
    preprocessing: str = PREPROCESSING
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        """The contract as JSON with sorted keys: equal contracts give equal bytes."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes, source: Path) -> "Contract":
        """Read and check a contract; `source` is the file named in errors.

        Raises:
            InputError: the text is not a contract that this version understands; the field is named.
        """
        try:
            values = read_json(text)
        except ValueError as error:
            raise InputError(
                f"{source}: its contract cannot be read ({error}); export the model again"
            ) from error
        if not isinstance(values, dict) or values.get("format_version") != FORMAT_VERSION:
            found = values.get("format_version") if isinstance(values, dict) else None
            raise InputError(
                f"{source}: format_version is {str(found)[:40]}, this program reads {FORMAT_VERSION}; "
                "export the model again or install the version that wrote it"
            )
        names = {item.name for item in dataclasses.fields(cls)}
        wrong = sorted(names ^ values.keys())
        if wrong:
            kind = "lacks" if wrong[0] in names else "has an unknown field"
            raise InputError(f"{source}: its contract {kind} {wrong[0][:40]!r}; export the model again")
        expected = {"input": INPUT, "outputs": list(OUTPUTS), "preprocessing": PREPROCESSING}
        for name, value in expected.items():
            if values[name] != value:
                raise InputError(
                    f"{source}: field {name!r} of its contract is not the one this program serves"
                )
        for name, check in CHECKS.items():
            if not check(values[name]):
                raise InputError(
                    f"{source}: field {name!r} of its contract is not what an export writes; "
                    "export the model again"
                )
        return cls(**{**values, "labels": tuple(values["labels"]), "outputs": tuple(values["outputs"])})
