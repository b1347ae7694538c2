"""A training run from top to bottom: set up, resume, train, test, report."""

import dataclasses
import hashlib
import io
import json
import math
import platform
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate import __version__ as accelerate_version
from accelerate.utils import is_bf16_available, set_seed
from torch import Tensor
from tqdm import tqdm

from serve_cli.errors import CheckFailed, InputError, MnistError
from serve_cli.metrics import score
from serve_cli.process import ending_on_sigterm, print_result, warn
from serve_cli.spec import CLASSES, STATE_DICT, temperature_of
from trainer import checkpoint, plots, run_dir
from trainer.atomic import write_file
from trainer.augment import distort, draw_distortions, generator
from trainer.calibrate import calibrate
from trainer.checkpoint import Checkpoint
from trainer.config import DEFAULT_RECIPE, PROGRAM, TrainConfig
from trainer.data import Dataset, Split, load_dataset, train_val_split
from trainer.distributed import (
    Stopped,
    StopSignal,
    join_processes,
    leave_group,
    local_main_process_first,
    lost_process,
    on_all_processes,
    on_main_process,
    require_same,
    sync_stop,
)
from trainer.evaluate import Evaluation, evaluate, predict
from trainer.model import MLP, Backward, Normalize
from trainer.optim import Optimizer
from trainer.outliers import add_outliers, draw_outliers
from trainer.run_dir import RunStatus

T = TypeVar("T")

CHECK_EVERY = 16
"""Steps between two checks of losses and signals; each costs a reduction."""

LOSS_OF_GUESSING = math.log(CLASSES)

Part = tuple[Tensor, Tensor]
"""Pixels, uint8 or float32 [B, 28, 28] from 0 to 255; targets, float32 [B, 10], are probabilities."""


class OutOfMemory(MnistError):
    """The memory of one process is used up; that process reports it, whichever it is."""

    on_main_process_only = False


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line asks for besides the settings that decide the weights."""

    output: Path
    data_dir: Path | None = None
    overwrite: bool = False
    resume: bool = False
    checkpoint_every: int | None = None
    tracker: str | None = None


@dataclass(frozen=True, kw_only=True)
class EpochMetrics:
    """Metrics of one epoch; `number` and `step` count from 1, `train_loss` is the mean over its samples."""

    number: int
    step: int
    train_loss: float
    validation: Evaluation
    learning_rate: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Run:
    """What stays the same while a run trains; tensors are on the device."""

    config: TrainConfig
    options: Options
    accelerator: Accelerator
    normalize: Normalize
    train: Split
    validation: Split
    validated_on: str
    data_sha256: Mapping[str, str]

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch, the ragged one included."""
        return math.ceil(len(self.train) / self.config.batch_size)

    def batch_size_at(self, position: int) -> int:
        """Samples in the batch at `position` of an epoch."""
        return min(self.config.batch_size, len(self.train) - position * self.config.batch_size)


@dataclass(kw_only=True)
class TrainState:
    """What changes while a run trains; a checkpoint holds all of it.

    `losses` are those of the current epoch, summed over the samples of each step, float64 [steps]: the share
    of this process. `seconds` is the time that the current epoch has taken.
    """

    net: MLP
    optimizer: Optimizer
    backward: Backward
    losses: Tensor
    best_weights: Tensor
    seconds: float = 0.0
    epochs: list[EpochMetrics] = field(default_factory=list)

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return self.optimizer.step_count

    @property
    def best(self) -> EpochMetrics:
        """The epoch with the lowest validation loss so far; there must be one."""
        return min(self.epochs, key=lambda epoch: epoch.validation.loss)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of the state by name."""
        named = {"losses": self.losses, "best_weights": self.best_weights, **self.optimizer.tensors()}
        return {**named, **self.net.state_dict(prefix="net.")}


def train(settings: Mapping[str, Any], options: Options) -> None:
    """Train with `settings`, fields of TrainConfig by name, and leave a run directory.

    Raises:
        InputError: bad data or settings, an output that cannot be written, processes that miss each other.
        CheckFailed: the training diverges.
        Stopped: SIGINT or SIGTERM; the run can go on later.
        MnistError: the system refused a write. All of them in every process of a group.
    """
    join_processes()
    try:
        with ending_on_sigterm(), ExitStack() as stack:
            config, status, saved, options = on_main_process(lambda: set_up(settings, options, stack))
            if status is not RunStatus.FINISHED:
                train_and_test(config, status, saved, options)
            note = " (finished already)" if status is RunStatus.FINISHED else ""
            on_main_process(lambda: print_result(f"Run directory: {options.output}{note}"))
    except MnistError as error:
        if error.on_main_process_only:  # all processes raise it at once
            leave_group()
        raise
    except (RuntimeError, MemoryError) as error:
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in first_line:
            raise OutOfMemory(f"out of memory ({first_line}): lower --hidden or --batch-size") from error
        if (lost := lost_process(error)) is not None:
            raise lost from error
        raise
    leave_group()


def set_up(
    settings: Mapping[str, Any], options: Options, stack: ExitStack
) -> tuple[TrainConfig, RunStatus, Checkpoint | None, Options]:
    """Hold the run directory on `stack`, and find the config and the checkpoint to go on from.

    Raises:
        InputError: bad settings, other settings than those of the run to go on with, no whole checkpoint
            among those that are there, or a directory that is not free.
    """
    run = run_dir.open_run(options.output, overwrite=options.overwrite, resume=options.resume)
    status = stack.enter_context(run)
    if not options.resume or status is RunStatus.EMPTY:
        config = TrainConfig.from_recipe(**{"recipe": DEFAULT_RECIPE, **settings})
        return config, status, None, options
    config = TrainConfig.read(options.output / run_dir.CONFIG)
    config.require_same(settings, options.output)
    if options.data_dir is None:
        options = dataclasses.replace(options, data_dir=run_dir.read_data_dir(options.output))
    else:
        run_dir.write_data_dir(options.output, options.data_dir)
    if status is RunStatus.FINISHED:
        return config, status, None, options
    folder = options.output / run_dir.CHECKPOINTS
    path, saved, skipped = checkpoint.latest(folder)
    if skipped and saved is None:
        raise InputError(f"{skipped[0]}, and no other checkpoint is whole: start again with --overwrite")
    if saved is not None:
        require_version(saved, path)
        TrainConfig.from_dict(saved.state["config"]).require_same(vars(config), options.output)
    for damage in skipped:
        warn(PROGRAM, f"{damage}; it is skipped")
    checkpoint.set_aside(folder, path)
    return config, status, saved, options


def train_and_test(
    config: TrainConfig, status: RunStatus, saved: Checkpoint | None, options: Options
) -> None:
    """Load the data, train from `saved` or from the start, test once, and write the results."""
    torch.set_num_threads(config.threads)
    dataset = local_main_process_first(lambda: load_dataset(config.dataset, options.data_dir))
    data_sha256 = {"train": dataset.train.sha256, "test": dataset.test.sha256}
    require_same((data_sha256, dataset.labels), "their data: give all of them the same files")
    train_split, validation, validated_on = choose_splits(dataset, config)
    accelerator = on_all_processes(lambda: make_accelerator(config, options))
    run = Run(
        config=config,
        options=options,
        accelerator=accelerator,
        normalize=Normalize(config.mean, config.std).to(accelerator.device),
        train=train_split.to(accelerator.device),
        validation=validation.to(accelerator.device),
        validated_on=validated_on,
        data_sha256=data_sha256,
    )
    state = make_state(run)
    if saved is not None:
        restore(state, run, saved)
    elif status is RunStatus.EMPTY:
        on_main_process(lambda: run_dir.begin(options.output, config.to_dict(), options.data_dir))
    warn(PROGRAM, describe_start(run))

    train_epochs(run, state)
    if config.patience is not None:
        state.optimizer.weights.copy_(state.best_weights)

    logits = predict(
        state.net, run.normalize, dataset.test.images.to(accelerator.device), accelerator
    ).numpy()
    validation_logits = None
    if config.validation_fraction > 0:  # else the test set is validated on, and it chooses nothing
        validation_logits = predict(state.net, run.normalize, run.validation.images, accelerator).numpy()
    on_main_process(lambda: write_results(run, state, dataset, validation_logits, logits))


def make_state(run: Run) -> TrainState:
    """The state before the first step."""
    config, device = run.config, run.accelerator.device
    set_seed(config.seed)
    net = MLP(config.hidden).to(device)
    optimizer = Optimizer(net, config, config.epochs * run.steps_per_epoch)
    sum_dtype = torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    return TrainState(
        net=net,
        optimizer=optimizer,
        backward=Backward(net),
        losses=torch.zeros(run.steps_per_epoch, dtype=sum_dtype, device=device),
        best_weights=optimizer.weights.clone(),
    )


@torch.inference_mode()  # Backward computes the gradients, not autograd
def train_epochs(run: Run, state: TrainState) -> None:  # noqa: C901, PLR0912  (the loop stays in one place)
    """The training loop: from where `state` is to the last epoch, or until --patience is over.

    Each process takes its slice of every global batch, and the gradient is that of the whole batch.

    Raises:
        Stopped: a process was asked to stop; all of them do, at the same step, with a checkpoint.
        CheckFailed: a loss or a weight is not finite any more; in all processes.
    """
    config, options, accelerator, losses = run.config, run.options, run.accelerator, state.losses
    saving: Future[Path] | None = None
    prepare_thread(config.threads)
    on_main_process(lambda: start_tracker(run, state.step))
    with (
        ThreadPoolExecutor(
            max_workers=2, initializer=prepare_thread, initargs=(config.threads,)
        ) as background,
        StopSignal() as stop,
        progress_bar(run) as bar,
    ):
        try:
            while state.step < config.epochs * run.steps_per_epoch and not is_patience_over(state, config):
                number, first = state.step // run.steps_per_epoch + 1, state.step % run.steps_per_epoch
                if first == 0:
                    losses.zero_()
                    state.seconds = 0.0
                started = time.perf_counter() - state.seconds
                order = sample_order(len(run.train), config.seed, number).to(accelerator.device)
                batches = make_batches(run, order.split(config.batch_size)[first:], state.step, background)
                for position, parts in enumerate(batches, first):
                    losses[position] = train_step(run, state, parts, run.batch_size_at(position))

                    is_last = position == run.steps_per_epoch - 1
                    is_due = (
                        options.checkpoint_every is not None and state.step % options.checkpoint_every == 0
                    )
                    is_urgent = stop.received and accelerator.num_processes == 1
                    if is_last or is_due or is_urgent or state.step % CHECK_EVERY == 0:
                        diverged = not losses.isfinite().all()
                        diverged, asked = sync_stop(accelerator, diverged, stop.received)
                        state.seconds = time.perf_counter() - started
                        show_progress(bar, run, state, number, position)
                        if diverged:
                            raise CheckFailed(describe_divergence(run, state))
                        if (is_due or asked) and not is_last:
                            saving = save(run, state, saving, background)
                        if asked and not is_last:
                            raise Stopped(asked, state.step)

                step_losses = accelerator.reduce(losses, "sum")  # of all processes
                metrics = EpochMetrics(
                    number=number,
                    step=state.step,
                    train_loss=step_losses.sum().item() / len(run.train),
                    validation=evaluate(state.net, run.normalize, run.validation, accelerator),
                    learning_rate=state.optimizer.learning_rate,
                    seconds=state.seconds,
                )
                if not math.isfinite(metrics.validation.loss):
                    raise CheckFailed(
                        f"training diverged: the validation loss of epoch {number} is "
                        f"{metrics.validation.loss:g}; lower --lr"
                    )
                state.epochs.append(metrics)
                if metrics is state.best:
                    state.best_weights.copy_(state.optimizer.weights)
                saving = save(run, state, saving, background)
                bar.clear()
                on_main_process(partial(log_epoch, run, state, step_losses))
                if asked:
                    raise Stopped(asked, state.step)
            wait_for_save(saving)
        except (CheckFailed, Stopped) as error:
            wait_for_save(saving)
            error.args = (f"{error}; {on_main_process(lambda: describe_way_on(options.output))}",)
            raise
        finally:
            torch.set_flush_denormal(False)
            for tracker in accelerator.trackers:
                tracker.finish()


def train_step(run: Run, state: TrainState, parts: Iterable[Part], batch_size: int) -> Tensor:
    """Take one optimizer step on this process's `parts` of a global batch; return the loss summed over them.

    Two processes, and one that accumulates two parts, work on the same parts and get the same bits.
    """
    gradient = state.optimizer.gradient.zero_()
    losses = []
    with run.accelerator.autocast():
        for pixels, targets in parts:
            losses.append(state.backward(run.normalize(pixels), targets, 1 / batch_size))
    if run.accelerator.num_processes > 1:
        gradient.copy_(run.accelerator.reduce(gradient, "sum"))
    state.optimizer.step()
    return losses[0] if len(losses) == 1 else torch.stack(losses).sum()


def make_batches(
    run: Run, batches: Iterable[Tensor], step: int, background: ThreadPoolExecutor
) -> Iterator[list[Part]]:
    """This process's parts of each of the global `batches`, int64 [B] each; the first one is that of `step`.

    On the CPU the next batch is distorted in the background while the current one is learned from.
    """
    parts = (make_parts(run, batch, number) for number, batch in enumerate(batches, step))
    is_augmented = bool(run.config.distortion or run.config.strangers)
    return prefetch(parts, background) if is_augmented and run.accelerator.device.type == "cpu" else parts


def make_parts(run: Run, batch: Tensor, step: int) -> list[Part]:
    """This process's share of the global `batch`, int64 [B], in --accumulate parts."""
    config, device = run.config, run.accelerator.device
    rank, world = run.accelerator.process_index, run.accelerator.num_processes
    identity = torch.eye(CLASSES, device=device)
    if config.distortion:
        distortions = draw_distortions(len(batch), config.seed, step)
    if config.strangers:
        outliers = draw_outliers(round(config.strangers * len(batch)), config.seed, step)
    parts = []
    for part in range(config.accumulate):
        ours = slice(rank + part * world, None, world * config.accumulate)
        pixels = run.train.images.index_select(0, batch[ours])  # images[batch] is 10 times as slow
        labels = run.train.labels.index_select(0, batch[ours])
        targets = identity.index_select(0, labels)
        if config.distortion:
            pixels = distort(pixels, distortions[ours].to(device), config.distortion)
        if config.strangers:
            pixels, targets = add_outliers(pixels, labels, targets, run.train, outliers[ours].to(device))
        parts.append((pixels, targets))
    return parts


def prefetch(items: Iterator[T], background: ThreadPoolExecutor) -> Iterator[T]:
    """Yield `items`, computing the next one in the background."""
    end = object()
    upcoming = background.submit(next, items, end)
    while (item := upcoming.result()) is not end:
        upcoming = background.submit(next, items, end)
        yield item  # type: ignore[misc]


def prepare_thread(threads: int) -> None:
    """Give this thread the settings that PyTorch keeps for each thread."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)  # Adam's moments become denormal, which x86 computes 8 times as slowly


def sample_order(samples: int, seed: int, epoch: int) -> Tensor:
    """The order of an epoch's samples, int64 [samples]: it depends on seed and epoch alone."""
    return torch.randperm(samples, generator=generator(seed, epoch))


def is_patience_over(state: TrainState, config: TrainConfig) -> bool:
    """Whether the last --patience epochs have brought no lower validation loss."""
    if config.patience is None or not state.epochs:
        return False
    return len(state.epochs) - state.best.number >= config.patience


def describe_divergence(run: Run, state: TrainState) -> str:
    """Which step diverged, for people; a collective call."""
    losses = run.accelerator.reduce(state.losses, "sum")
    position = int(losses.isfinite().logical_not().nonzero()[0])
    epoch = (state.step - 1) // run.steps_per_epoch
    step, rate = epoch * run.steps_per_epoch + position + 1, state.optimizer.learning_rate
    return (
        f"training diverged: the loss of step {step} (epoch {epoch + 1}) is {losses[position]:g}, "
        f"at learning rate {rate:.3g}; lower --lr"
    )


# Checkpoints


def save(
    run: Run, state: TrainState, saving: Future[Path] | None, background: ThreadPoolExecutor
) -> Future[Path] | None:
    """Snapshot `state` now and write it in the background, after `saving`, the write before, is done.

    Raises:
        CheckFailed: the weights are not finite; nothing is written. In all processes.
        MnistError: the system refused the write before. In all processes.
    """
    wait_for_save(saving)
    if not state.optimizer.weights.isfinite().all():
        raise CheckFailed(
            f"training diverged: after step {state.step} some weights are not finite; lower --lr"
        )
    tensors = {**state.tensors(), "losses": run.accelerator.reduce(state.losses, "sum")}
    if not run.accelerator.is_main_process:
        return None
    snapshot = Checkpoint(
        step=state.step,
        tensors={name: tensor.cpu().numpy().copy() for name, tensor in tensors.items()},
        state={
            "epochs": [dataclasses.asdict(epoch) for epoch in state.epochs],
            "seconds": state.seconds,
            "config": run.config.to_dict(),
            "data_sha256": dict(run.data_sha256),
            "environment": environment(run.accelerator),
        },
    )
    return background.submit(checkpoint.save, run.options.output / run_dir.CHECKPOINTS, snapshot)


def wait_for_save(saving: Future[Path] | None) -> None:
    """Wait until the last checkpoint is on the disk.

    Raises:
        MnistError: the system refused; older checkpoints are untouched. In all processes.
    """
    on_main_process(lambda: None if saving is None else saving.result())


def restore(state: TrainState, run: Run, saved: Checkpoint) -> None:
    """Set `state` to what `save` wrote.

    Raises:
        InputError: the run was started on other data.
    """
    before, data_sha256 = saved.state["environment"], saved.state["data_sha256"]
    changed = [name for name, digest in run.data_sha256.items() if digest != data_sha256[name]]
    if changed:
        raise InputError(
            f"{run.options.output} was started on other data ({' and '.join(changed)} images differ): "
            "name the same data with --data-dir, or another --output"
        )
    for name, tensor in state.tensors().items():
        tensor.copy_(torch.tensor(saved.tensors[name]))
    if not run.accelerator.is_main_process:
        state.losses.zero_()  # those in the checkpoint are summed over all processes
    state.optimizer.set_step(saved.step)
    state.seconds = saved.state["seconds"]
    state.epochs = [
        EpochMetrics(**{**epoch, "validation": Evaluation(**epoch["validation"])})
        for epoch in saved.state["epochs"]
    ]
    now = environment(run.accelerator)
    if changed := [f"{name} {before[name]}, now {now[name]}" for name in now if now[name] != before[name]]:
        warn(PROGRAM, f"the run had {', '.join(changed)}: the weights will be equal up to rounding")
    warn(PROGRAM, f"going on after step {saved.step}")


def require_version(saved: Checkpoint, path: Path | None) -> None:
    """Check that a checkpoint holds what this version saves.

    Raises:
        InputError: it is of another version.
    """
    expected = {"epochs", "seconds", "config", "data_sha256", "environment", "step"}
    if saved.state.keys() != expected or "best_weights" not in saved.tensors:
        raise InputError(f"{path} is of another version of this program: start again with --overwrite")


def environment(accelerator: Accelerator) -> dict[str, Any]:
    """What changes the rounding of a run, and so the last bits of its weights."""
    return {
        "processes": accelerator.num_processes,
        "device": accelerator.device.type,
        "torch": torch.__version__,
    }


def describe_way_on(output: Path) -> str:
    """What there is to go on with, for people."""
    path, _, _ = checkpoint.latest(output / run_dir.CHECKPOINTS)
    if path is None:
        return "there is no checkpoint yet, so nothing is kept"
    return f"the last checkpoint is {path}, --resume goes on there"


# Set-up


def choose_splits(dataset: Dataset, config: TrainConfig) -> tuple[Split, Split, str]:
    """Return the training split, the one that is evaluated after each epoch, and the latter's name.

    The tutorial evaluates the test set after each epoch; other recipes hold out a part of the training set.

    Raises:
        InputError: nothing is left to validate on.
    """
    train_split = dataset.train
    if config.limit is not None:
        train_split = train_split.take(torch.arange(min(config.limit, len(train_split))))
    if config.validation_fraction == 0:
        return train_split, dataset.test, "test set"
    train_split, validation = train_val_split(train_split, config.validation_fraction)
    if len(validation) == 0:
        raise InputError(
            f"--validation-fraction {config.validation_fraction} leaves none of {len(train_split):,} "
            "images to validate on: raise it, or --limit"
        )
    return train_split, validation, "held-out part of the training set"


def make_accelerator(config: TrainConfig, options: Options) -> Accelerator:
    """Devices and precision for the processes that are there; the main process has the tracker.

    Raises:
        InputError: the device has no bfloat16.
    """
    if config.mixed_precision == "bf16" and not is_bf16_available(ignore_tpu=True):
        raise InputError("--mixed-precision is bf16, which this device does not have: leave it out")
    return Accelerator(
        cpu=PartialState().device.type == "cpu",
        mixed_precision=config.mixed_precision,
        log_with=options.tracker if PartialState().is_main_process else None,
        project_dir=options.output,
    )


def describe_start(run: Run) -> str:
    """The line at the start of a run: what trains, where and how."""
    config, device = run.config, run.accelerator.device.type
    precision = "bfloat16" if config.mixed_precision == "bf16" else "float32"
    threads = "1 thread" if config.threads == 1 else f"{config.threads} threads"
    return (
        f"recipe {config.recipe}, {config.dataset} ({len(run.train):,} images), "
        f"{count_processes(run.accelerator.num_processes)} on {device}, {precision}, {threads}; "
        f"run directory {run.options.output}"
    )


def count_processes(number: int) -> str:
    """`1 process`, `2 processes`."""
    return "1 process" if number == 1 else f"{number} processes"


# Progress, metrics, tracker


def progress_bar(run: Run) -> "tqdm[Any]":
    """A bar that counts images; the main process shows it where stderr is a terminal."""
    disable = None if run.accelerator.is_main_process else True
    total = run.config.epochs * len(run.train)
    return tqdm(total=total, unit=" images", unit_scale=True, leave=False, disable=disable)


def show_progress(bar: "tqdm[Any]", run: Run, state: TrainState, epoch: int, position: int) -> None:
    """Update the bar, where somebody sees it: reading a loss makes a GPU wait."""
    if bar.disable:
        return
    size = run.batch_size_at(position)
    loss = state.losses[position].item() * run.accelerator.num_processes / size
    bar.set_description(f"Epoch {epoch}/{run.config.epochs}", refresh=False)
    bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
    bar.update((epoch - 1) * len(run.train) + position * run.config.batch_size + size - bar.n)


def log_epoch(run: Run, state: TrainState, step_losses: Tensor) -> None:
    """Print the line of the last epoch, write the metrics of all epochs so far, and track them.

    `step_losses` are summed over the samples of each step and over the processes, float64 [steps].

    Raises:
        OSError: the system refused.
    """
    metrics, validation, log = state.epochs[-1], state.epochs[-1].validation, run.accelerator.log
    # The line that the tutorial prints, with the accuracy added.
    print_result(
        f"Epoch {metrics.number}/{run.config.epochs}, Train Loss: {metrics.train_loss:.4f}, "
        f"Val Loss: {validation.loss:.4f}, Val Accuracy: {validation.accuracy:.2%}"
    )
    if validation.loss > LOSS_OF_GUESSING:
        warn(
            PROGRAM,
            f"the net does not learn: its loss is above {LOSS_OF_GUESSING:.2f}, that of guessing; lower --lr",
        )
    write_metrics(state.epochs, run.options.output)
    if not run.accelerator.trackers:
        return
    first = metrics.step - run.steps_per_epoch + 1
    for position, loss in enumerate(step_losses.tolist()):
        log({"train/step_loss": loss / run.batch_size_at(position)}, step=first + position)
    log(
        {
            "train/loss": metrics.train_loss,
            "train/learning_rate": metrics.learning_rate,
            "train/images_per_second": len(run.train) / metrics.seconds,
            "validation/loss": validation.loss,
            "validation/accuracy": validation.accuracy,
        },
        step=metrics.step,
    )


def start_tracker(run: Run, step: int) -> None:
    """Open the tracker; what it holds from `step` on is replaced."""
    settings = {
        name: value if isinstance(value, (int, float, str)) else str(value)
        for name, value in run.config.to_dict().items()
    }
    run.accelerator.init_trackers(run_dir.TENSORBOARD, settings, {"tensorboard": {"purge_step": step}})


def write_metrics(epochs: list[EpochMetrics], output: Path) -> None:
    """Write a line of JSON for each epoch; the checkpoints hold them, too, so nothing is flushed.

    Raises:
        OSError: the system refused.
    """
    lines = "".join(json.dumps(dataclasses.asdict(epoch)) + "\n" for epoch in epochs)
    (output / run_dir.METRICS).write_text(lines, encoding="ascii")


# Results


def write_results(
    run: Run, state: TrainState, dataset: Dataset, validation_logits: np.ndarray | None, logits: np.ndarray
) -> None:
    """Write weights, report and pictures; `logits` are those of the test set, float32 [N, 10].

    Where `validation_logits`, of the same kind, are given, they calibrate the net.

    Raises:
        OSError: the system refused.
    """
    output, calibration = run.options.output, None
    if validation_logits is not None:
        calibration = calibrate(validation_logits, run.validation.labels.cpu().numpy())
    temperature = temperature_of(calibration or {})
    test = score(logits, dataset.test.labels.numpy(), dataset.labels, temperature)
    stream = io.BytesIO()
    torch.save({name: tensor.cpu().clone() for name, tensor in state.net.state_dict().items()}, stream)
    weights = stream.getvalue()
    report = make_report(run, state, dataset)
    report.update(test=test, calibration=calibration, weights_sha256=hashlib.sha256(weights).hexdigest())
    write_metrics(state.epochs, output)
    write_file(output / STATE_DICT, weights)
    write_file(output / run_dir.REPORT, run_dir.json_bytes(report))
    for line in summarize(report):
        print_result(line)
    draw_pictures(run, state, dataset, test["confusion"], logits / temperature)


def make_report(run: Run, state: TrainState, dataset: Dataset) -> dict[str, Any]:
    """What report.json says of the training and its data."""
    kept = state.epochs[-1] if run.config.patience is None else state.best
    seconds = sum(epoch.seconds for epoch in state.epochs)
    return {
        "test": {},
        "calibration": None,
        "train": {
            "loss": kept.train_loss,
            "samples": len(run.train),
            "seconds": seconds,
            "images_per_second": len(run.train) * len(state.epochs) / seconds,
            "processes": run.accelerator.num_processes,
            "device": run.accelerator.device.type,
        },
        "dataset": {
            "name": dataset.name,
            "labels": list(dataset.labels),
            "train_sha256": dataset.train.sha256,
        },
        "parameters": state.optimizer.weights.numel(),
        "versions": {
            "accelerate": accelerate_version,
            "numpy": np.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
    }


def draw_pictures(
    run: Run, state: TrainState, dataset: Dataset, confusion: list[list[int]], logits: np.ndarray
) -> None:
    """Draw the pictures of a finished run; a failure is a warning, for a run is complete without them.

    The softmax of `logits`, float32 [N, 10], are the probabilities of the test images that users see.
    """
    output, names = run.options.output, dataset.labels
    samples = run.train.take(torch.arange(min(plots.SAMPLES_SHOWN, len(run.train)))).to(torch.device("cpu"))
    images, labels = dataset.test.images.numpy(), dataset.test.labels.numpy()
    try:
        plots.draw_samples(samples.images.numpy(), samples.labels.numpy(), names, output / run_dir.SAMPLES)
        plots.draw_losses(state.epochs, run.validated_on, output / run_dir.LOSSES)
        plots.draw_confusion(confusion, names, output / run_dir.CONFUSION)
        plots.draw_mistakes(images, labels, logits, names, output / run_dir.MISTAKES)
    except Exception as error:  # whatever it is, weights and report are there
        warn(PROGRAM, f"a picture could not be drawn ({error}); the run is complete without it")


def summarize(report: Mapping[str, Any]) -> list[str]:
    """What people want to know at the end of a run."""
    test, calibration, training = report["test"], report["calibration"], report["train"]
    return [
        f"Test Accuracy: {test['accuracy']:.2%} of {test['samples']:,} images, Test Loss: {test['loss']:.4f}",
        *([] if calibration is None else [describe_calibration(calibration)]),
        f"Training took {training['seconds']:.1f} s, {training['images_per_second']:,.0f} images/s "
        f"in {count_processes(training['processes'])} on {training['device']}",
    ]


def describe_calibration(calibration: Mapping[str, Any]) -> str:
    """From which confidence on a prediction is given, and what that does to the validation images."""
    validation = calibration["validation"]
    samples, refused = validation["samples"], validation["refused"]
    answered = samples - round(samples * refused)
    return (
        f'Predictions below {calibration["min_confidence"]:.1%} confidence are "not sure": {refused:.1%} of '
        f"the {samples:,} validation images. Of the other {answered:,}, {validation['errors']:,} are wrong."
    )
