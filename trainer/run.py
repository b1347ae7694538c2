"""A whole run: data, training, test, and the run directory that it leaves."""

import dataclasses
import hashlib
import math
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed

from serve_cli.errors import CheckFailed, InputError
from serve_cli.process import say
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
        InputError: bad data, or an output that cannot be written; in every process of a group.
        CheckFailed: the training loss is no number any more.
    """
    accelerator = start_accelerator()
    with ExitStack() as stack:
        folder, dataset, refused = None, None, None
        with accelerator.main_process_first():  # it downloads, the others find it
            try:
                if accelerator.is_main_process:
                    staged = staged_folder(output, ours=run_directory.FILES, overwrite=overwrite)
                    folder = stack.enter_context(staged)
                dataset = load_dataset(config.dataset, data_dir)
            except InputError as error:
                refused = str(error)
        refusals = [reason for reason in gather_object([refused]) if reason is not None]
        if dataset is None or refusals:
            leave_group(accelerator)
            raise InputError(refusals[0])
        _train(config, dataset, accelerator, folder)
    if accelerator.is_main_process:
        say(f"Run directory: {output}")
    leave_group(accelerator)


def leave_group(accelerator: Accelerator) -> None:
    """Take the process group down in all processes at once: one that exits earlier can abort the others."""
    accelerator.wait_for_everyone()
    accelerator.free_memory()  # the DDP wrapper, too, whose threads use the group
    accelerator.end_training()


def start_accelerator() -> Accelerator:
    """Devices and processes, as the launcher made them; without one, this process alone.

    On the CPU a process computes on one thread unless OMP_NUM_THREADS says otherwise, as accelerate launch
    has it: steady on busy cores, and `mnist train` gives the same bits as a launched run.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    # Without cpu=True a launcher's processes on a machine with no accelerator would train alone, silently.
    return Accelerator(cpu=not torch.accelerator.is_available())


def _train(config: TrainConfig, dataset: Dataset, accelerator: Accelerator, folder: Path | None) -> None:
    """Train and test on every process; the one that has a `folder` writes into it and speaks."""
    train, validation, validated_on = divide(dataset, config)
    if folder is not None:
        run_directory.write_json(folder / run_directory.CONFIG, config.to_dict())
        draw_samples(train, dataset.labels, folder / run_directory.SAMPLES)

    set_seed(config.seed)
    device = accelerator.device
    net = MLP(config.hidden).to(device)
    normalize = Normalize(config.mean, config.std).to(device)
    epochs: list[Epoch] = []
    with progress_bar(speaks=folder is not None) as progress:
        for epoch in train_epochs(
            net, normalize, train.to(device), validation.to(device), config, accelerator, progress
        ):
            require_finite(epoch)
            epochs.append(epoch)
            if folder is not None:
                say(describe(epoch, config.epochs))
                run_directory.append_json_line(folder / run_directory.METRICS, dataclasses.asdict(epoch))

    test = evaluate(net, normalize, dataset.test.to(device), accelerator)
    if folder is not None:
        with (folder / run_directory.WEIGHTS).open("wb") as stream:
            torch.save(net.to("cpu").state_dict(), stream)
        report = build_report(dataset, train, epochs, test, net, accelerator)
        weights = (folder / run_directory.WEIGHTS).read_bytes()
        report["weights_sha256"] = hashlib.sha256(weights).hexdigest()
        run_directory.write_json(folder / run_directory.REPORT, report)
        draw_losses(epochs, validated_on, folder / run_directory.LOSSES)
        for line in summarize(report):
            say(line)


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


def require_finite(epoch: Epoch) -> None:
    """Stop a training that has diverged.

    Raises:
        CheckFailed: the training or validation loss is NaN or infinite.
    """
    if not math.isfinite(epoch.train_loss + epoch.validation.loss):
        raise CheckFailed(
            f"training diverged: the loss of epoch {epoch.number} is {epoch.train_loss:g} "
            f"({epoch.validation.loss:g} on validation); lower --lr. Nothing was written"
        )


def describe(epoch: Epoch, epochs: int) -> str:
    """The line that the tutorial prints after each epoch, with the accuracy added."""
    return (
        f"Epoch {epoch.number}/{epochs}, Train Loss: {epoch.train_loss:.4f}, "
        f"Val Loss: {epoch.validation.loss:.4f}, Val Accuracy: {epoch.validation.accuracy:.2%}"
    )


def summarize(report: dict[str, Any]) -> list[str]:
    """What people want to know at the end of a run."""
    test, train = report["test"], report["train"]
    processes = "1 process" if train["processes"] == 1 else f"{train['processes']} processes"
    return [
        f"Test Accuracy: {test['accuracy']:.2%} of {test['samples']:,} images, Test Loss: {test['loss']:.4f}",
        f"Training took {train['seconds']:.1f} s, {train['images_per_second']:,.0f} images/s "
        f"in {processes} on {train['device']}",
    ]
