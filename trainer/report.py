"""What a finished run says of itself: report.json and two pictures."""

import platform
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate import __version__ as accelerate_version
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from trainer.data import Dataset, Split
from trainer.evaluation import Evaluation
from trainer.loop import Epoch
from trainer.model import MLP

SAMPLES_SHOWN = 10


def build_report(
    dataset: Dataset, train: Split, epochs: list[Epoch], test: Evaluation, net: MLP, accelerator: Accelerator
) -> dict[str, Any]:
    """The content of report.json; `train` is the part of the training set that the net learned from."""
    seconds = sum(epoch.seconds for epoch in epochs)
    return {
        "test": {"accuracy": test.accuracy, "loss": test.loss, "samples": test.samples},
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
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
    }


def draw_samples(split: Split, labels: tuple[int | str, ...], path: Path) -> None:
    """Write the first training images with their labels as a PNG."""
    shown = min(SAMPLES_SHOWN, len(split))
    figure = Figure(figsize=(1.2 * shown, 1.5), layout="constrained")
    for axes, image, label in zip(
        figure.subplots(1, shown, squeeze=False)[0], split.images, split.labels, strict=False
    ):
        axes.imshow(image.numpy(), cmap="gray", vmin=0, vmax=255)
        axes.set_title(f"Label: {labels[int(label)]}", fontsize=9)
        axes.axis("off")
    figure.savefig(path, dpi=120)


def draw_losses(epochs: list[Epoch], validated_on: str, path: Path) -> None:
    """Write the training and validation loss of each epoch as a PNG."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    numbers = [epoch.number for epoch in epochs]
    axes.plot(numbers, [epoch.train_loss for epoch in epochs], marker="o", label="Training Loss")
    axes.plot(
        numbers,
        [epoch.validation.loss for epoch in epochs],
        marker="o",
        label=f"Validation Loss ({validated_on})",
    )
    axes.set_xlabel("Epoch")
    axes.set_ylabel("Loss")
    axes.set_title("Training and Validation Loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
