"""The contract that every exported model carries: what goes in, what comes out, and what was proven.

This is the only file that both halves read. Its JSON form is stored inside each model.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
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


MEASURED = frozenset(("samples", "refused", "errors", "calibration_error_before", "calibration_error_after"))
"""What a calibration says of the images that it was chosen on."""


def is_calibration(value: Any) -> bool:
    """Whether `value` is what a run says of its calibration, see trainer.calibrate; or empty, for none."""
    if value == {}:
        return True
    try:
        shares = (value["min_confidence"], value["error_rate"])
        numbers = (value["temperature"], *shares, *value["validation"].values())
        return (
            value.keys() == {"temperature", "min_confidence", "error_rate", "validation"}
            and value["validation"].keys() == MEASURED
            and all(isinstance(number, int | float) and math.isfinite(number) for number in numbers)
            and not any(isinstance(number, bool) for number in numbers)
            and 0.01 <= value["temperature"] <= 100
            and all(0 <= share <= 1 for share in shares)
        )
    except (KeyError, TypeError, AttributeError, OverflowError):
        return False


def temperature_of(calibration: Mapping[str, Any]) -> float:
    """What divides the logits before their softmax; 1 without a calibration."""
    return float(calibration.get("temperature", 1.0))


def floor_of(calibration: Mapping[str, Any]) -> float:
    """The confidence, 0 to 1, below which an answer is 'not sure'; 0 without a calibration."""
    return float(calibration.get("min_confidence", 0.0))


@dataclass(frozen=True, kw_only=True)
class Contract:
    """What a model file says about itself.

    `normalization` holds mean and std on the scale 0 to 1, for information: the graph applies them.
    `training` is empty for a state_dict whose origin is unknown; `evaluation` was measured at the export.
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
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{source}: its contract is not JSON ({error}); export the model again"
            ) from error
        if not isinstance(values, dict) or values.get("format_version") != FORMAT_VERSION:
            found = values.get("format_version") if isinstance(values, dict) else None
            raise InputError(
                f"{source}: format_version is {found!r}, this program reads {FORMAT_VERSION}; "
                "export the model again or install the version that wrote it"
            )
        names = {item.name for item in dataclasses.fields(cls)}
        wrong = sorted(names ^ values.keys())
        if wrong:
            kind = "lacks" if wrong[0] in names else "has an unknown field"
            raise InputError(f"{source}: its contract {kind} {wrong[0]!r}; export the model again")
        contract = cls(
            **{**values, "labels": _labels(values["labels"], source), "outputs": _sequence(values["outputs"])}
        )
        for name, expected in (("input", INPUT), ("outputs", OUTPUTS), ("preprocessing", PREPROCESSING)):
            if getattr(contract, name) != expected:
                raise InputError(
                    f"{source}: field {name!r} of its contract is not the one this program serves"
                )
        for name in ("normalization", "model", "training", "evaluation", "parity", "versions"):
            if not isinstance(getattr(contract, name), dict):
                raise InputError(f"{source}: field {name!r} of its contract must be an object")
        if not is_calibration(contract.calibration):
            raise InputError(f"{source}: field 'calibration' of its contract is not one that a run leaves")
        if not isinstance(contract.license, str):
            raise InputError(f"{source}: field 'license' of its contract must be text")
        return contract


def _labels(value: Any, source: Path) -> tuple[int | str, ...]:
    if (
        not isinstance(value, list)
        or len(value) != CLASSES
        or not all(isinstance(v, int | str) for v in value)
    ):
        raise InputError(f"{source}: field 'labels' of its contract must list {CLASSES} labels")
    return tuple(value)


def _sequence(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list) else ()
