"""A whole run: data, training, test, and the run directory that it leaves."""

import dataclasses
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from serve_cli.errors import InputError
from trainer import run_directory
from trainer.config import TrainConfig
from trainer.data import Dataset, Split, hold_out, load_dataset
from trainer.evaluation import evaluate
from trainer.loop import Epoch, train_epochs
from trainer.model import MLP, Normalize
from trainer.progress import progress_bar
from trainer.report import build_report, draw_losses, draw_samples
from trainer.staging import staged_folder


def run(config: TrainConfig, *, data_dir: Path | None, output: Path, overwrite: bool) -> None:
    """Train as `config` says and leave the run directory at `output`.

    Raises:
        InputError: bad data, or an output that cannot be written.
    """
    # Without cpu=True a launcher's processes on a machine with no accelerator would train alone, silently.
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    if accelerator.is_main_process:
        with staged_folder(output, marker=run_directory.CONFIG, overwrite=overwrite) as folder:
            _train(config, data_dir, accelerator, folder)
        accelerator.print(f"Run directory: {output}")
    else:
        _train(config, data_dir, accelerator, None)
    accelerator.end_training()


def _train(config: TrainConfig, data_dir: Path | None, accelerator: Accelerator, folder: Path | None) -> None:
    """Train and test on every process; the one that has a `folder` writes into it."""
    with accelerator.main_process_first():  # the first one downloads, the others find it
        dataset = load_dataset(config.dataset, data_dir)
    train, validation, validated_on = divide(dataset, config)
    if folder is not None:
        run_directory.write_json(folder / run_directory.CONFIG, config.to_dict())
        draw_samples(train, dataset.labels, folder / run_directory.SAMPLES)

    set_seed(config.seed)
    device = accelerator.device
    net = MLP(config.hidden).to(device)
    normalize = Normalize(config.mean, config.std).to(device)
    epochs: list[Epoch] = []
    with progress_bar(speaks=accelerator.is_main_process) as progress:
        for epoch in train_epochs(
            net, normalize, train.to(device), validation.to(device), config, accelerator, progress
        ):
            epochs.append(epoch)
            accelerator.print(describe(epoch, config.epochs), flush=True)
            if folder is not None:
                run_directory.append_json_line(folder / run_directory.METRICS, dataclasses.asdict(epoch))

    test = evaluate(net, normalize, dataset.test.to(device), accelerator)
    accelerator.print(
        f"Test Accuracy: {test.accuracy:.2%} of {test.samples:,} images, Test Loss: {test.loss:.4f}"
    )
    if folder is not None:
        torch.save(net.to("cpu").state_dict(), folder / run_directory.WEIGHTS)
        report = build_report(dataset, train, epochs, test, net, accelerator)
        run_directory.write_json(folder / run_directory.REPORT, report)
        draw_losses(epochs, validated_on, folder / run_directory.LOSSES)


def divide(dataset: Dataset, config: TrainConfig) -> tuple[Split, Split, str]:
    """Return the training split, the one that is looked at after each epoch, and the latter's name.

    The tutorial looks at the test set after each epoch; other recipes hold out a part of the training set.

    Raises:
        InputError: nothing is left to validate on.
    """
    train = dataset.train
    if config.limit is not None:
        train = train.take(torch.arange(min(config.limit, len(train))))
    if config.validation_fraction == 0:
        return train, dataset.test, "test set"
    train, validation = hold_out(train, config.validation_fraction)
    if len(validation) == 0:
        raise InputError(f"--limit {config.limit} leaves no image to validate on: raise it")
    return train, validation, "held-out part of the training set"


def describe(epoch: Epoch, epochs: int) -> str:
    """The line that the tutorial prints after each epoch, with the accuracy added."""
    return (
        f"Epoch {epoch.number}/{epochs}, Train Loss: {epoch.train_loss:.4f}, "
        f"Val Loss: {epoch.validation.loss:.4f}, Val Accuracy: {epoch.validation.accuracy:.2%}"
    )
