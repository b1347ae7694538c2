"""PyTorch's formats as engines: for `mnist evaluate` and `mnist bench`, where torch is installed."""

import io
from pathlib import Path

import numpy as np

from export.source import read_source
from export.torch_formats import load_pt2, load_torchscript, runner
from serve_cli.errors import InputError
from serve_cli.model_file import parse_contract, read_model, stated_hash
from serve_cli.runtime import CHUNK, Prediction
from serve_cli.spec import ARTIFACT_FILE, MODEL_FILES

LOADERS = {
    Path(MODEL_FILES["torchscript"].name).suffix: load_torchscript,
    Path(MODEL_FILES["pt2"].name).suffix: load_pt2,
}


class TorchEngine:
    """A TorchScript or torch.export file, a run's state_dict, or a bare one.

    The first two are programs and may do anything: they are opened only as part of an artifact, whole as its
    artifact.json says. Who made the artifact is for the user to know.

    Raises:
        InputError: it cannot be read, or must not be run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.suffix in LOADERS:
            model = self._read_program()
            contract = parse_contract(model, path)
            self.labels, self.calibration = contract.labels, contract.calibration
            self._run = LOADERS[path.suffix](io.BytesIO(model))
        else:
            source = read_source(path, dataset=None, mean=None, std=None)
            self.labels, self.calibration = source.labels, source.calibration
            self._run = runner(source.model())

    def _read_program(self) -> bytes:
        if stated_hash(self.path) is None:
            raise InputError(
                f"{self.path} is a program that PyTorch would run, and no {ARTIFACT_FILE} beside it vouches "
                "for it: name it inside the artifact that it came with"
            )
        return read_model(self.path)

    def predict(self, images: np.ndarray, *, batch_size: int = CHUNK) -> Prediction:
        """Classify uint8 `images` [N, 28, 28], white ink on black; N may be 0."""
        return self._run(images, batch_size)
