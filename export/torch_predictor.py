"""Run PyTorch's own formats and state_dicts: what `mnist evaluate` and `mnist bench` use where torch is."""

import io
from pathlib import Path

import numpy as np

from export.source import read_source
from export.torch_formats import run_pt2, run_torchscript
from serve_cli.errors import InputError
from serve_cli.model_file import parse_extra_file, read_model, stated_hash
from serve_cli.process import warn
from serve_cli.runtime import CHUNK, Prediction
from serve_cli.spec import ARTIFACT_FILE, MODEL_FILES

RUNNERS = {
    Path(MODEL_FILES["torchscript"].name).suffix: run_torchscript,
    Path(MODEL_FILES["pt2"].name).suffix: run_pt2,
}


class TorchPredictor:
    """Predicts with a TorchScript or torch.export file, a run's state_dict, or a bare one.

    The first two are programs and may do anything: they are opened only inside an artifact whose
    artifact.json has their hash. Who made the artifact is for the user to know.

    Raises:
        InputError: it cannot be read, or must not be run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.suffix in RUNNERS:
            if stated_hash(path) is None:
                raise InputError(
                    f"{path} is a program that PyTorch would run, and no {ARTIFACT_FILE} beside it vouches "
                    "for it: name it inside the artifact that it came with"
                )
            model = read_model(path)
            contract = parse_extra_file(model, path)
            self.labels, self.calibration = contract.labels, contract.calibration
            self.training = contract.training
            self._run = RUNNERS[path.suffix](io.BytesIO(model))
        else:
            source = read_source(
                path, dataset=None, mean=None, std=None, note=lambda line: warn("mnist", f"{path}: {line}")
            )
            self.labels, self.calibration = source.labels, source.calibration
            self.training = source.training
            self._run = source.runner()

    def predict(self, images: np.ndarray, *, batch_size: int | None = None) -> Prediction:
        """Classify uint8 `images` [N, 28, 28], white ink on black; N may be 0."""
        return self._run(images, batch_size or CHUNK)
