"""What a finished run says of itself in report.json."""

import platform
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate import __version__ as accelerate_version

from trainer.data import Dataset, Split
from trainer.loop import Epoch
from trainer.model import MLP


def build_report(
    dataset: Dataset,
    train: Split,
    epochs: list[Epoch],
    test: dict[str, Any],
    calibration: dict[str, Any] | None,
    net: MLP,
    accelerator: Accelerator,
) -> dict[str, Any]:
    """The content of report.json.

    `train` is the part of the training set that the net learned from, `test` what metrics.score found,
    `calibration` what calibrate did, None where no images were held out.
    """
    seconds = sum(epoch.seconds for epoch in epochs)
    return {
        "test": test,
        "calibration": calibration,
        "train": {
            "loss": epochs[-1].train_loss,
            "samples": len(train),
            "seconds": seconds,
            "images_per_second": len(train) * len(epochs) / seconds,
            "processes": accelerator.num_processes,
            "device": accelerator.device.type,
        },
        "dataset": {
            "name": dataset.name,
            "labels": list(dataset.labels),
            "train_sha256": dataset.train.sha256(),
        },
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "versions": {
            "accelerate": accelerate_version,
            "numpy": np.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
    }
