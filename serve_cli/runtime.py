"""The Predictor: one class that runs a model, for the CLI and for the proof of an export alike."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import onnxruntime as ort

from serve_cli.errors import InputError
from serve_cli.model_file import ZIP_MAGIC, read_model
from serve_cli.spec import IMAGE_SIZE, INPUT, METADATA_KEY, OUTPUTS, Contract, temperature_of

CHUNK = 256
"""Most images a call of the session: larger batches are slower, even for the smallest net."""

BATCH_BYTES = 8 * 1024**2
"""What the values that a graph computes for one batch may take: about a processor's cache."""

LIGHT_BYTES = 1024**2
"""Up to so many bytes of values an image one thread is fastest, and it does not spin."""

NO_FOLDER = "/dev/null/none"
"""Where onnxruntime looks for weights outside of a model's bytes; without it, in the current folder."""

OUTPUT_NAMES = [output["name"] for output in OUTPUTS]

TEMPERATURE_TOLERANCE = 1e-3
"""Of probabilities: far above rounding, far below what another temperature makes of an unsure answer."""

SOURCE_LINE = re.compile(r"^\S+\.(cc|h):\d+ (.*\) )?")
"""Where in onnxruntime's source an error was raised."""

LONGEST_REASON = 200


@dataclass(frozen=True)
class Prediction:
    """`logits` and `probabilities`, both float32 [N, 10]."""

    logits: np.ndarray
    probabilities: np.ndarray


class Predictor:
    """An exported ONNX model, checked against its contract and ready to answer.

    `batch_size` is the number of images that it computes at once unless told otherwise; a model that
    `is_light` computes in one thread.

    Raises:
        InputError: the file is missing, is not an ONNX model, or carries no contract that fits it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        model = read_model(path)
        if model.startswith(ZIP_MAGIC):
            raise InputError(
                f"{path} is a PyTorch file, not ONNX: name an .onnx file (mnist export --format onnx)"
            )
        self._session = open_session(model, str(path))
        self.contract = contract_of(self._session, path)
        self.labels = self.contract.labels
        self.calibration, self.training = self.contract.calibration, self.contract.training
        bytes_an_image = self.contract.model.get("activation_bytes", 1)
        self.batch_size = min(max(1, BATCH_BYTES // max(1, bytes_an_image)), CHUNK)
        self.is_light = bytes_an_image <= LIGHT_BYTES
        if not self.is_light:
            from serve_cli.workers import cores  # 10 ms to import, which the usual model does not need

            self._session = open_session(model, str(path), threads=cores())
        _check_signature(self._session, path)
        self._check_temperature()

    def predict(self, images: np.ndarray, *, batch_size: int | None = None) -> Prediction:
        """Classify uint8 `images` [N, 28, 28], white ink on black; N may be 0.

        They are computed `batch_size` at a time, by default as many as suit the model.

        Raises:
            ValueError: another dtype or shape.
            InputError: the model cannot compute it, though its contract says so.
        """
        if images.dtype != np.uint8 or images.shape[1:] != (IMAGE_SIZE, IMAGE_SIZE):
            raise ValueError(f"images must be uint8 [N, 28, 28], not {images.dtype} {list(images.shape)}")
        size = self.batch_size if batch_size is None else batch_size
        if len(images) <= size:
            return Prediction(*self._run(images))
        results = [self._run(chunk) for chunk in _chunks(images, size)]
        return Prediction(*(np.concatenate(parts) for parts in zip(*results, strict=True)))

    def _check_temperature(self) -> None:
        """Compare the temperature in the graph with the contract's, by the answer to a black picture.

        Raises:
            InputError: they differ.
        """
        found = self.predict(np.zeros((1, IMAGE_SIZE, IMAGE_SIZE), np.uint8))
        scores = np.exp((found.logits - found.logits.max()) / temperature_of(self.calibration))
        if np.abs(scores / scores.sum() - found.probabilities).max() > TEMPERATURE_TOLERANCE:
            raise InputError(f"{self.path} has another temperature than its contract: export the model again")

    def _run(self, images: np.ndarray) -> list[np.ndarray]:
        try:
            outputs: list[np.ndarray] = self._session.run(OUTPUT_NAMES, {INPUT["name"]: images})
        except Exception as error:  # onnxruntime's exceptions have no common base
            raise InputError(
                f"{self.path} fails on a batch of {len(images)} ({_reason(error)}): export the model again"
            ) from error
        if not all(np.isfinite(output).all() for output in outputs):
            raise InputError(f"{self.path} answers with numbers that are not finite: train and export again")
        return outputs


def _chunks(images: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(images), size):
        yield images[start : start + size]


def open_session(model: bytes, name: str = "the model", *, threads: int = 1) -> Any:
    """An onnxruntime session of an ONNX file; it prints nothing and opens no other file.

    Raises:
        InputError: onnxruntime cannot run it; the message calls it `name`.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.load_model_format", "ONNX")  # it has one of its own, too
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", NO_FOLDER)
    options.log_severity_level = 4  # what is wrong with a file is ours to say
    try:
        # Its fallback would try again, and print about that on stdout.
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as error:  # onnxruntime's exceptions have no common base
        raise InputError(
            f"{name} is no model that onnxruntime {ort.__version__} can run ({_reason(error)}): "
            "make one with mnist export"
        ) from error


def contract_of(session: Any, path: Path) -> Contract:
    """The contract in the metadata of an open model; `path` is for errors.

    Raises:
        InputError: it carries none that this version understands.
    """
    try:
        text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is damaged, its metadata is no text: export the model again") from error
    if text is None:
        raise InputError(
            f"{path} carries no {METADATA_KEY} contract: make an artifact of it with "
            f"mnist export {path} --output DIR, then name DIR"
        )
    return Contract.from_json(text, path)


def _reason(error: Exception) -> str:
    """What onnxruntime says, without its codes, its source lines, and most of its longer speeches."""
    text = str(error).rpartition(" : ")[2].partition("\n")[0]
    return shorten(SOURCE_LINE.sub("", text), LONGEST_REASON, placeholder=" ...")


def _check_signature(session: Any, path: Path) -> None:
    """Compare what the graph declares with what the contract promises."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    fixed = [
        value.name for value in (*inputs, *outputs) if not value.shape or isinstance(value.shape[0], int)
    ]
    if fixed:
        raise InputError(
            f"{path}: {fixed[0]} takes no batch of any size, its contract promises it; export again"
        )
    found = [(value.name, value.type, value.shape[1:]) for value in (*inputs, *outputs)]
    types = {"uint8": "tensor(uint8)", "float32": "tensor(float)"}
    expected = [(value["name"], types[value["dtype"]], value["shape"][1:]) for value in (INPUT, *OUTPUTS)]
    if found != expected:
        raise InputError(
            f"{path}: its graph has {found}, its contract says {expected}; export the model again"
        )
