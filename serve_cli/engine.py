"""What runs a model, whatever its format: onnxruntime in the base install, PyTorch where it is installed."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from serve_cli.errors import needs_extra
from serve_cli.model_file import find_model
from serve_cli.runtime import Prediction, Predictor
from serve_cli.spec import MODEL_FILES, STATE_DICT

TORCH_SUFFIXES = frozenset({".pt", ".pt2", ".pth", ".safetensors"})
"""Files that the training half opens."""


class Engine(Protocol):
    """A model that can be asked; `labels` are those of its ten outputs.

    `calibration` and `training` are as in a contract.
    """

    path: Path
    labels: tuple[int | str, ...]
    calibration: Mapping[str, Any]
    training: Mapping[str, Any]

    def predict(self, images: np.ndarray, *, batch_size: int | None = None) -> Prediction:
        """Classify uint8 `images` [N, 28, 28], white ink on black; N may be 0."""


def open_engine(path: Path) -> Engine:
    """Open the model that `path` stands for: a file of any format, an artifact or a run.

    In a directory ONNX comes first, a run's state_dict last.

    Raises:
        InputError: there is no such model, or it cannot be used.
        MissingExtra: it needs PyTorch, which is not installed.
    """
    path = find_model(path, (*(file.name for file in MODEL_FILES.values()), STATE_DICT))
    if path.suffix not in TORCH_SUFFIXES:
        return Predictor(path)
    with needs_extra("train", path.name):
        engine: Engine = importlib.import_module("export.torch_predictor").TorchPredictor(path)
        return engine
