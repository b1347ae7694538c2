"""A whole run: data, training, test, and the run directory that it leaves."""

import dataclasses
import hashlib
import io
import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import is_bf16_available, set_seed
from torch import Tensor

from serve_cli.errors import CheckFailed, InputError, MnistError
from serve_cli.metrics import score
from serve_cli.process import LAUNCHED, complain, say
from serve_cli.spec import STATE_DICT, temperature_of
from trainer import checkpoint, run_dir
from trainer.atomic import write_file
from trainer.calibrate import calibrate
from trainer.checkpoint import Checkpoint
from trainer.config import DEFAULT_RECIPE, TrainConfig
from trainer.data import Dataset, Split, hold_out, load_dataset
from trainer.evaluate import predict
from trainer.keeper import Keeper
from trainer.learner import Learner
from trainer.loop import Course, Epoch, steps_an_epoch, train_epochs
from trainer.model import MLP, Normalize
from trainer.processes import (
    in_all,
    in_first,
    leave_group,
    one_a_machine_first,
    require_same,
    start_processes,
)
from trainer.progress import progress_bar
from trainer.report import build_report
from trainer.run_dir import Standing
from trainer.signals import Stopped, StopRequest
from trainer.tracker import close_tracker, require_tracker, start_tracker, track


@dataclass(frozen=True, kw_only=True)
class Order:
    """What was asked for on the command line, besides the settings that decide the weights."""

    output: Path
    data_dir: Path | None = None
    overwrite: bool = False
    resume: bool = False
    checkpoint_every: int | None = None
    tracker: str | None = None


@dataclass(frozen=True, kw_only=True)
class Start:
    """What the first process has found out, for all of them; `saved` is the checkpoint to go on from.

    `order` is its own: all of them have to save and to track at the same steps.
    """

    config: TrainConfig
    saved: Checkpoint | None = None
    standing: Standing = Standing.NOTHING
    order: Order


def run(recipe: str | None, flags: Mapping[str, Any], order: Order) -> None:
    """Train as `recipe` and `flags` say, flags that are None left to the recipe, and leave a run directory.

    Raises:
        InputError: bad data or settings, an output that cannot be written, processes that miss each other.
        CheckFailed: the training diverges.
        Stopped: SIGINT or SIGTERM; the run can go on later.
        MnistError: the system refused a write. All of them in every process of a group.
    """
    start_processes()
    try:
        with ExitStack() as stack:
            start = in_first(lambda: prepare(recipe, flags, order, stack))
            if start.standing is not Standing.FINISHED:
                _train_and_test(start, order.data_dir)
            note = " (finished already)" if start.standing is Standing.FINISHED else ""
            in_first(lambda: say(f"Run directory: {order.output}{note}"))
    except MnistError:  # in all processes at once
        leave_group()
        raise
    except (RuntimeError, MemoryError) as error:
        raise _in_one_line(error) from error
    leave_group()


def _in_one_line(error: Exception) -> Exception:
    """What users can do something about; the rest is an error of ours, and stays as it is."""
    lines = str(error).splitlines() or [type(error).__name__]
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in lines[0]:
        return MnistError(f"the memory is used up ({lines[0]}): lower --hidden or --batch-size")
    if PartialState().num_processes > 1:
        return MnistError(f"the group of processes broke ({lines[0]}): start it again with --resume")
    return error


def prepare(recipe: str | None, flags: Mapping[str, Any], order: Order, stack: ExitStack) -> Start:
    """Hold the run directory on `stack`, and settle the config and the checkpoint to go on from.

    Raises:
        InputError: bad settings, others than those of the run to go on with, no whole checkpoint among those
            that are there, or a directory that is not free.
    """
    standing = stack.enter_context(
        run_dir.open_run(order.output, overwrite=order.overwrite, resume=order.resume)
    )
    require_tracker(order.tracker)
    if not order.resume or standing is Standing.NOTHING:
        return Start(config=TrainConfig.from_recipe(recipe or DEFAULT_RECIPE, **flags), order=order)
    config = TrainConfig.read(order.output / run_dir.CONFIG)
    config.require_same({"recipe": recipe, **flags}, order.output)
    if standing is Standing.FINISHED:
        return Start(config=config, standing=standing, order=order)
    saved, skipped = checkpoint.newest(order.output / run_dir.CHECKPOINTS)
    if skipped and saved is None:
        raise InputError(f"{skipped[0][1]}, and no other checkpoint is whole: start again with --overwrite")
    if saved is not None:
        TrainConfig.from_dict(saved.state["config"]).require_same(vars(config), order.output)
    for folder, damage in skipped:
        complain(LAUNCHED, f"{damage}; it is skipped")
        checkpoint.put_aside(folder)
    return Start(config=config, saved=saved, standing=standing, order=order)


def _train_and_test(start: Start, data_dir: Path | None) -> None:
    config, order = start.config, start.order
    torch.set_num_threads(config.threads)
    dataset = one_a_machine_first(lambda: load_dataset(config.dataset, data_dir))
    digests = [split.sha256() for split in (dataset.train, dataset.test)]
    require_same((digests, dataset.labels), "their data: give all of them the same files")
    train, validation, validated_on = divide(dataset, config)
    accelerator = in_all(lambda: start_accelerator(config, order))
    device = accelerator.device

    set_seed(config.seed)
    steps = config.epochs * steps_an_epoch(len(train), config.batch_size)
    learner, course = Learner(config, steps, accelerator), Course()
    normalize = Normalize(config.mean, config.std).to(device)
    root = order.output / run_dir.CHECKPOINTS
    with Keeper(root, learner, course, digests[0], accelerator) as keeper:
        if start.saved is not None:
            keeper.restore(start.saved)
        elif start.standing is Standing.NOTHING:
            in_first(lambda: run_dir.begin(order.output, config.to_dict(), overwrite=order.overwrite))
        _train(keeper, normalize, train.to(device), validation.to(device), order)
        if config.patience is not None and course.best is not None:
            keeper.restore_best(course.best.step)

    validation_logits, logits = (
        predict(learner.net, normalize, split.images.to(device), accelerator)
        for split in (validation, dataset.test)
    )

    def leave_results() -> None:
        calibration = None  # where the test set is validated on: it chooses nothing
        if config.validation_fraction > 0:
            calibration = calibrate(validation_logits.numpy(), validation.labels.numpy())
        temperature = temperature_of(calibration or {})
        test = score(logits.numpy(), dataset.test.labels.numpy(), dataset.labels, temperature)
        report = build_report(dataset, train, course.epochs, test, calibration, learner.net, accelerator)
        write_metrics(course.epochs, order.output)
        leave_weights(order.output, learner.net, report)
        leave_pictures(
            order.output, dataset, train, course.epochs, validated_on, report["test"], logits / temperature
        )
        write_file(order.output / run_dir.REPORT, run_dir.json_bytes(report))
        for line in summarize(report):
            say(line)

    in_first(leave_results)


def _train(
    keeper: Keeper,
    normalize: Normalize,
    train: Split,
    validation: Split,
    order: Order,
) -> None:
    """Train what `keeper` keeps to the end; the splits are on the device."""
    learner, course, accelerator = keeper.learner, keeper.course, keeper.accelerator
    config = learner.config
    in_first(lambda: start_tracker(accelerator, config, learner.step))
    try:
        with progress_bar(speaks=accelerator.is_main_process) as progress, StopRequest() as stop:
            for epoch in train_epochs(
                learner,
                course,
                normalize,
                train,
                validation,
                accelerator,
                progress=progress,
                stop=stop,
                save=keeper.save,
                checkpoint_every=order.checkpoint_every,
            ):
                in_first(partial(tell, epoch, course, order.output, config.epochs))
                in_first(partial(track, accelerator, epoch, course, len(train), config.batch_size))
        keeper.settle()
    except (CheckFailed, Stopped) as error:
        keeper.settle()
        error.args = (f"{error}; {in_first(keeper.way_on)}",)
        raise
    in_first(lambda: close_tracker(accelerator))


def start_accelerator(config: TrainConfig, order: Order) -> Accelerator:
    """Devices and precision for the processes that are there; the first of them has the tracker.

    Raises:
        InputError: the device has no bfloat16.
    """
    if config.mixed_precision == "bf16" and not is_bf16_available(ignore_tpu=True):
        raise InputError("--mixed-precision is bf16, which this device does not have: leave it out")
    return Accelerator(
        cpu=PartialState().device.type == "cpu",
        mixed_precision=config.mixed_precision,
        log_with=order.tracker if PartialState().is_main_process else None,
        project_dir=order.output,
    )


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
        raise InputError(
            f"--validation-fraction {config.validation_fraction} leaves none of {len(train):,} "
            "images to validate on: raise it, or --limit"
        )
    return train, validation, "held-out part of the training set"


def tell(epoch: Epoch, course: Course, output: Path, epochs: int) -> None:
    """Print the line of an epoch and write the metrics of all epochs so far.

    Raises:
        OSError: the system refused.
    """
    say(describe(epoch, epochs))
    write_metrics(course.epochs, output)


def write_metrics(epochs: list[Epoch], output: Path) -> None:
    """Write a line of JSON for each epoch; the checkpoints know them, too, so nothing is flushed.

    Raises:
        OSError: the system refused.
    """
    lines = "".join(json.dumps(dataclasses.asdict(epoch)) + "\n" for epoch in epochs)
    (output / run_dir.METRICS).write_text(lines, encoding="ascii")


def leave_weights(output: Path, net: MLP, report: dict[str, Any]) -> None:
    """Write the plain state_dict, and its hash into `report`.

    Raises:
        OSError: the system refused.
    """
    stream = io.BytesIO()
    torch.save(net.to("cpu").state_dict(), stream)
    report["weights_sha256"] = hashlib.sha256(stream.getvalue()).hexdigest()
    write_file(output / STATE_DICT, stream.getvalue())


def leave_pictures(
    output: Path,
    dataset: Dataset,
    train: Split,
    epochs: list[Epoch],
    validated_on: str,
    test: Mapping[str, Any],
    logits: Tensor,
) -> None:
    """Draw the pictures of a run; `test` is what report.json says of the test set.

    The softmax of `logits`, float32 [N, 10], is what users see of it.

    Raises:
        OSError: the system refused.
    """
    from trainer import plots  # 0.4 s of matplotlib, which no training need wait for

    labels, images = dataset.labels, dataset.test.images
    plots.draw_samples(train, labels, output / run_dir.SAMPLES)
    plots.draw_losses(epochs, validated_on, output / run_dir.LOSSES)
    plots.draw_confusion(test["confusion"], labels, output / run_dir.CONFUSION)
    plots.draw_mistakes(images, dataset.test.labels, logits, labels, output / run_dir.MISTAKES)


def describe(epoch: Epoch, epochs: int) -> str:
    """The line that the tutorial prints after each epoch, with the accuracy added."""
    return (
        f"Epoch {epoch.number}/{epochs}, Train Loss: {epoch.train_loss:.4f}, "
        f"Val Loss: {epoch.validation.loss:.4f}, Val Accuracy: {epoch.validation.accuracy:.2%}"
    )


def summarize(report: dict[str, Any]) -> list[str]:
    """What people want to know at the end of a run."""
    test, calibration, train = report["test"], report["calibration"], report["train"]
    processes = "1 process" if train["processes"] == 1 else f"{train['processes']} processes"
    return [
        f"Test Accuracy: {test['accuracy']:.2%} of {test['samples']:,} images, Test Loss: {test['loss']:.4f}",
        *([] if calibration is None else [describe_calibration(calibration)]),
        f"Training took {train['seconds']:.1f} s, {train['images_per_second']:,.0f} images/s "
        f"in {processes} on {train['device']}",
    ]


def describe_calibration(calibration: Mapping[str, Any]) -> str:
    """From which confidence on an answer is given, and what that does to the held-out images."""
    validation = calibration["validation"]
    return (
        f"Not sure below {calibration['min_confidence']:.1%}: {validation['refused']:.2%} of "
        f"{validation['samples']:,} held-out images, {validation['errors']:,} of the other answers wrong"
    )
