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
from serve_cli.process import print_result, warn
from serve_cli.spec import CLASSES, STATE_DICT, temperature_of
from trainer import checkpoint, plots, run_dir
from trainer.atomic import write_file
from trainer.augment import distort, draw_distortions, generator
from trainer.calibrate import calibrate
from trainer.checkpoint import Checkpoint
from trainer.config import DEFAULT_RECIPE, TrainConfig
from trainer.data import Dataset, Split, load_dataset, train_val_split
from trainer.distributed import (
    PROGRAM,
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
    data_sha256: Mapping[str, str]

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch, the ragged one included."""
        return math.ceil(len(self.train) / self.config.batch_size)

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.options.output / run_dir.CHECKPOINTS


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
    seconds: float = 0.0
    epochs: list[EpochMetrics] = field(default_factory=list)

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return self.optimizer.step_count

    @property
    def best(self) -> EpochMetrics | None:
        """The epoch with the lowest validation loss so far."""
        return min(self.epochs, key=lambda epoch: epoch.validation.loss, default=None)


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
        with ExitStack() as stack:
            config, status, saved, options = on_main_process(lambda: set_up(settings, options, stack))
            if status is not RunStatus.FINISHED:
                train_and_test(config, status, saved, options)
            note = " (finished already)" if status is RunStatus.FINISHED else ""
            on_main_process(lambda: print_result(f"Run directory: {options.output}{note}"))
    except MnistError:  # in all processes at once
        leave_group()
        raise
    except (RuntimeError, MemoryError) as error:
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in first_line:
            raise MnistError(f"out of memory ({first_line}): lower --hidden or --batch-size") from error
        raise lost_process(error) or error from error
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
        values = {name: value for name, value in settings.items() if name != "recipe"}
        config = TrainConfig.from_recipe(settings.get("recipe") or DEFAULT_RECIPE, **values)
        return config, status, None, options
    config = TrainConfig.read(options.output / run_dir.CONFIG)
    config.require_same(settings, options.output)
    if options.data_dir is None:
        options = dataclasses.replace(options, data_dir=run_dir.read_data_dir(options.output))
    if status is RunStatus.FINISHED:
        return config, status, None, options
    folder = options.output / run_dir.CHECKPOINTS
    path, saved, skipped = checkpoint.latest(folder)
    if skipped and saved is None:
        raise InputError(f"{skipped[0]}, and no other checkpoint is whole: start again with --overwrite")
    if saved is not None:
        TrainConfig(
            **{**saved.state["config"], "hidden": tuple(saved.state["config"]["hidden"])}
        ).require_same(vars(config), options.output)
    for damage in skipped:
        warn(PROGRAM, f"{damage}; it is skipped")
    checkpoint.set_aside(folder, path)
    return config, status, saved, options


def train_and_test(
    config: TrainConfig, status: RunStatus, saved: Checkpoint | None, options: Options
) -> None:
    """Load the data, train from `saved` or from the start, test once, and write the results."""
    torch.set_num_threads(config.threads)
    torch.set_flush_denormal(True)  # Adam's moments become denormal, which x86 computes 8 times as slowly
    dataset = local_main_process_first(lambda: load_dataset(config.dataset, options.data_dir))
    data_sha256 = {"train": dataset.train.sha256, "test": dataset.test.sha256}
    require_same((data_sha256, dataset.labels), "their data: give all of them the same files")
    train_split, validation, validated_on = choose_splits(dataset, config)
    accelerator = on_all_processes(lambda: make_accelerator(config, options))
    device = accelerator.device
    run = Run(
        config=config,
        options=options,
        accelerator=accelerator,
        normalize=Normalize(config.mean, config.std).to(device),
        train=train_split.to(device),
        validation=validation.to(device),
        data_sha256=data_sha256,
    )
    set_seed(config.seed)
    net = MLP(config.hidden).to(device)
    optimizer = Optimizer(net, config, config.epochs * run.steps_per_epoch)
    state = TrainState(
        net=net,
        optimizer=optimizer,
        backward=Backward(net),
        losses=torch.zeros(run.steps_per_epoch, dtype=sum_dtype(device), device=device),
    )
    if saved is not None:
        restore(state, run, saved)
    elif status is RunStatus.EMPTY:
        on_main_process(lambda: run_dir.begin(options.output, config.to_dict(), options.data_dir))
    warn(PROGRAM, describe_start(run))

    with ThreadPoolExecutor(
        max_workers=2, initializer=prepare_thread, initargs=(config.threads,)
    ) as background:
        train_epochs(run, state, background)
        if config.patience is not None and state.best is not None:
            restore_best(run, state)

    validation_logits, logits = (
        predict(net, run.normalize, split.images.to(device), accelerator)
        for split in (validation, dataset.test)
    )

    def write_results() -> None:
        calibration = None  # where the test set is validated on: it chooses nothing
        if config.validation_fraction > 0:
            calibration = calibrate(validation_logits.numpy(), validation.labels.numpy())
        temperature = temperature_of(calibration or {})
        test = score(logits.numpy(), dataset.test.labels.numpy(), dataset.labels, temperature)
        weights = io.BytesIO()
        torch.save(MLP.state_dict(net.to("cpu")), weights)
        report = make_report(run, state, dataset, test, calibration, weights.getvalue())
        write_metrics(state.epochs, options.output)
        write_file(options.output / STATE_DICT, weights.getvalue())
        write_file(options.output / run_dir.REPORT, run_dir.json_bytes(report))
        scaled = logits.numpy() / temperature
        draw_pictures(state.epochs, validated_on, dataset, train_split, test, scaled, options.output)
        for line in summarize(report):
            print_result(line)

    on_main_process(write_results)


@torch.inference_mode()  # gradients are computed by MLP.backward, not by autograd
def train_epochs(run: Run, state: TrainState, background: ThreadPoolExecutor) -> None:  # noqa: C901
    """The training loop: from where `state` is to the last epoch, or until --patience is over.

    Each process takes its slice of every global batch, and the gradient is that of the whole batch.

    Raises:
        Stopped: a process was asked to stop; all of them do, at the same step, with a checkpoint.
        CheckFailed: a loss or a weight is not finite any more; in all processes.
    """
    config, accelerator, losses = run.config, run.accelerator, state.losses
    world, total = accelerator.num_processes, config.epochs * len(run.train)
    saving: Future[None] | None = None
    on_main_process(lambda: start_tracker(run, state.step))
    with (
        StopSignal() as stop,
        tqdm(total=total, unit=" images", unit_scale=True, leave=False, disable=hide_progress(run)) as bar,
    ):
        try:
            while state.step < config.epochs * run.steps_per_epoch and not is_patience_over(
                state, config.patience
            ):
                number, first = state.step // run.steps_per_epoch + 1, state.step % run.steps_per_epoch
                if first == 0:
                    losses.zero_()
                    state.seconds = 0.0
                started = time.perf_counter() - state.seconds
                batches = sample_order(len(run.train), config.seed, number).split(config.batch_size)[first:]
                steps = enumerate(make_batches(run, batches, state.step, background), first)
                for position, parts in steps:
                    losses[position] = train_step(run, state, parts, len(batches[position - first]))

                    is_last = position == run.steps_per_epoch - 1
                    is_due = (
                        run.options.checkpoint_every is not None
                        and state.step % run.options.checkpoint_every == 0
                    )
                    if is_last or is_due or state.step % CHECK_EVERY == 0 or (world == 1 and stop.received):
                        asked = sync_stop(accelerator, stop.received or find_divergence(losses))
                        state.seconds = time.perf_counter() - started
                        show_progress(bar, run, state, number, position)
                        if isinstance(asked, str):
                            raise CheckFailed(describe_divergence(run, state))
                        if (is_due or asked) and not is_last:
                            saving = save(run, state, saving, background)
                        if asked and not is_last:
                            raise Stopped(asked, state.step)

                metrics = EpochMetrics(
                    number=number,
                    step=state.step,
                    train_loss=accelerator.reduce(losses.sum(), "sum").item() / len(run.train),
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
                saving = save(run, state, saving, background)
                bar.clear()
                on_main_process(lambda metrics=metrics: log_epoch(run, state, metrics))  # type: ignore[misc]
                if asked:
                    raise Stopped(asked, state.step)
        except (CheckFailed, Stopped) as error:
            wait_for_save(saving)
            error.args = (f"{error}; {on_main_process(lambda: describe_way_on(run.checkpoints))}",)
            raise
        finally:
            bar.clear()
    wait_for_save(saving)
    on_main_process(lambda: [tracker.finish() for tracker in accelerator.trackers])


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

    The next batch is distorted in the background while the current one is learned from.
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
    batch = batch.to(device)
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
    """Give a thread the settings that PyTorch keeps for each thread."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)


def sample_order(samples: int, seed: int, epoch: int) -> Tensor:
    """The order of an epoch's samples, int64 [samples]: it depends on seed and epoch alone."""
    return torch.randperm(samples, generator=generator(seed, epoch))


def sum_dtype(device: torch.device) -> torch.dtype:
    """The dtype for sums over many samples: float64 wherever the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def is_patience_over(state: TrainState, patience: int | None) -> bool:
    """Whether the last `patience` epochs have brought no lower validation loss."""
    return (
        patience is not None and state.best is not None and len(state.epochs) - state.best.number >= patience
    )


def find_divergence(losses: Tensor) -> str | None:
    """A reason to stop if one of this process's losses is not finite."""
    return None if losses.isfinite().all() else "diverged"


def describe_divergence(run: Run, state: TrainState) -> str:
    """Which step diverged, for people; a collective call."""
    losses = run.accelerator.reduce(state.losses, "sum")
    position = int(losses.isfinite().logical_not().nonzero()[0])
    epoch = (state.step - 1) // run.steps_per_epoch
    return (
        f"training diverged: the loss of step {epoch * run.steps_per_epoch + position + 1} "
        f"(epoch {epoch + 1}) is {losses[position]:g}, at learning rate {state.optimizer.learning_rate:.3g}; lower --lr"
    )


# Checkpoints


def save(
    run: Run, state: TrainState, saving: "Future[None] | None", background: ThreadPoolExecutor
) -> "Future[None] | None":
    """Snapshot `state` now and write it in the background, after the write before, `saving`, is done.

    Raises:
        CheckFailed: the weights are not finite; nothing is written. In all processes.
        MnistError: the system refused the write before. In all processes.
    """
    wait_for_save(saving)
    if not state.optimizer.flat.isfinite().all():
        raise CheckFailed(
            f"training diverged: after step {state.step} some weights are not finite; lower --lr"
        )
    keep_losses(run, state, run.accelerator.reduce(state.losses, "sum"))
    if not run.accelerator.is_main_process:
        return None
    snapshot = Checkpoint(
        step=state.step,
        tensors={
            name: tensor.detach().cpu().numpy().copy()
            for name, tensor in {
                **state.net.state_dict(prefix="net."),
                **state.optimizer.tensors(),
                "losses": state.losses,
            }.items()
        },
        state={
            "epochs": [dataclasses.asdict(epoch) for epoch in state.epochs],
            "seconds": state.seconds,
            "config": run.config.to_dict(),
            "data_sha256": dict(run.data_sha256),
            "environment": environment(run.accelerator),
        },
    )
    best_step = None if state.best is None else state.best.step
    return background.submit(write_checkpoint, run.checkpoints, snapshot, best_step)


def write_checkpoint(folder: Path, snapshot: Checkpoint, best_step: int | None) -> None:
    """Write one checkpoint, then remove those that are not needed any more."""
    checkpoint.save(folder, snapshot)
    checkpoint.prune(folder, best_step)


def wait_for_save(saving: "Future[None] | None") -> None:
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
    if saved.state["data_sha256"] != run.data_sha256:
        raise InputError(
            f"{run.options.output} was started on other data (sha256 {saved.state['data_sha256']}, now "
            f"{run.data_sha256}): give it the same data with --data-dir, or name another --output"
        )
    load_weights(state.net, saved)
    state.optimizer.restore(saved.step, {name: torch.tensor(array) for name, array in saved.tensors.items()})
    state.seconds = saved.state["seconds"]
    state.epochs = [
        EpochMetrics(**{**epoch, "validation": Evaluation(**epoch["validation"])})
        for epoch in saved.state["epochs"]
    ]
    keep_losses(run, state, torch.tensor(saved.tensors["losses"]))
    before = saved.state["environment"]
    changed = [
        f"{name} {before[name]}, now {now}"
        for name, now in environment(run.accelerator).items()
        if now != before[name]
    ]
    if changed:
        warn(PROGRAM, f"the run had {', '.join(changed)}: the weights will be equal up to rounding")
    warn(PROGRAM, f"going on after step {saved.step}")


def restore_best(run: Run, state: TrainState) -> None:
    """Set the net's weights to those of the best epoch, and drop the metrics of later ones from the report.

    Raises:
        CorruptCheckpoint: that checkpoint is damaged; in all processes.
    """
    best = state.best
    assert best is not None

    def read() -> Checkpoint:
        for path in checkpoint.find(run.checkpoints):
            if checkpoint.step_of(path) == best.step:
                try:
                    return checkpoint.load(path)
                except checkpoint.CorruptCheckpoint as error:
                    error.args = (f"{error}; it is the best one: train again with --overwrite",)
                    raise
        raise MnistError(
            f"the checkpoint of step {best.step}, the best one, is gone: train again with --overwrite"
        )

    load_weights(state.net, on_main_process(read))


def load_weights(net: MLP, saved: Checkpoint) -> None:
    """Copy the weights of a checkpoint into `net`, whose parameters stay views of the optimizer's vector."""
    net.load_state_dict(
        {
            name.removeprefix("net."): torch.tensor(array)
            for name, array in saved.tensors.items()
            if name.startswith("net.")
        }
    )


def keep_losses(run: Run, state: TrainState, losses: Tensor) -> None:
    """Leave `losses`, summed over the processes, to the main process, so that they are counted once."""
    state.losses.copy_(losses if run.accelerator.is_main_process else torch.zeros_like(losses))


def environment(accelerator: Accelerator) -> dict[str, Any]:
    """What changes the rounding of a run, and so the last bits of its weights."""
    return {
        "processes": accelerator.num_processes,
        "device": accelerator.device.type,
        "torch": torch.__version__,
    }


def describe_way_on(folder: Path) -> str:
    """What there is to go on with, for people."""
    path, _, _ = checkpoint.latest(folder)
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
    config, accelerator = run.config, run.accelerator
    precision = "bfloat16" if config.mixed_precision == "bf16" else "float32"
    return (
        f"recipe {config.recipe}, {config.dataset} ({len(run.train):,} images), "
        f"{plural(accelerator.num_processes, 'process', 'processes')} on {accelerator.device.type}, "
        f"{precision}, {plural(config.threads, 'thread')}; run directory {run.options.output}"
    )


def plural(count: int, singular: str, many: str = "") -> str:
    """`1 process`, `2 processes`."""
    return f"{count} {singular if count == 1 else many or singular + 's'}"


# Progress, metrics, tracker


def hide_progress(run: Run) -> bool | None:
    """Whether to hide the progress bar: None shows it where stderr is a terminal."""
    return None if run.accelerator.is_main_process else True


def show_progress(bar: "tqdm[Any]", run: Run, state: TrainState, epoch: int, position: int) -> None:
    """Update the bar, where somebody sees it: reading a loss makes a GPU wait."""
    if bar.disable:
        return
    size = min(run.config.batch_size, len(run.train) - position * run.config.batch_size)
    loss = state.losses[position].item() * run.accelerator.num_processes / size
    bar.set_description(f"Epoch {epoch}/{run.config.epochs}", refresh=False)
    bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
    bar.update((epoch - 1) * len(run.train) + position * run.config.batch_size + size - bar.n)


def log_epoch(run: Run, state: TrainState, metrics: EpochMetrics) -> None:
    """Print the line of an epoch, write the metrics of all epochs so far, and track both.

    Raises:
        OSError: the system refused.
    """
    # The line that the tutorial prints, with the accuracy added.
    print_result(
        f"Epoch {metrics.number}/{run.config.epochs}, Train Loss: {metrics.train_loss:.4f}, "
        f"Val Loss: {metrics.validation.loss:.4f}, Val Accuracy: {metrics.validation.accuracy:.2%}"
    )
    if metrics.train_loss > LOSS_OF_GUESSING:
        warn(
            PROGRAM,
            f"the net does not learn, its loss is above that of guessing ({LOSS_OF_GUESSING:.2f}): lower --lr",
        )
    write_metrics(state.epochs, run.options.output)
    accelerator, samples = run.accelerator, len(run.train)
    if not accelerator.trackers:
        return
    first = metrics.step - run.steps_per_epoch
    for position, loss in enumerate(state.losses.tolist()):
        size = min(run.config.batch_size, samples - position * run.config.batch_size)
        accelerator.log({"train/step_loss": loss / size}, step=first + position + 1)
    accelerator.log(
        {
            "train/loss": metrics.train_loss,
            "train/learning_rate": metrics.learning_rate,
            "train/images_per_second": samples / metrics.seconds,
            "validation/loss": metrics.validation.loss,
            "validation/accuracy": metrics.validation.accuracy,
        },
        step=metrics.step,
    )


def start_tracker(run: Run, step: int) -> None:
    """Open the tracker; what it holds from `step` on is replaced."""
    settings = {
        name: value if isinstance(value, (int, float, str, bool)) else str(value)
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


def make_report(
    run: Run,
    state: TrainState,
    dataset: Dataset,
    test: dict[str, Any],
    calibration: dict[str, Any] | None,
    weights: bytes,
) -> dict[str, Any]:
    """The content of report.json.

    `test` is what metrics.score computed, `calibration` what calibrate did (None where no images were held
    out), `weights` the bytes of the state_dict's file.
    """
    kept = state.best if run.config.patience is not None else state.epochs[-1]
    assert kept is not None
    seconds = sum(epoch.seconds for epoch in state.epochs)
    return {
        "test": test,
        "calibration": calibration,
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
        "parameters": sum(parameter.numel() for parameter in state.net.parameters()),
        "versions": {
            "accelerate": accelerate_version,
            "numpy": np.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }


def draw_pictures(
    epochs: list[EpochMetrics],
    validated_on: str,
    dataset: Dataset,
    train_split: Split,
    test: Mapping[str, Any],
    logits: np.ndarray,
    output: Path,
) -> None:
    """Draw the pictures of a finished run; a failure is a warning, for a run is complete without them.

    `test` is what report.json says of the test set; the softmax of `logits`, float32 [N, 10], are the
    probabilities that users see.
    """
    names, images, labels = dataset.labels, dataset.test.images.numpy(), dataset.test.labels.numpy()
    samples = train_split.images.numpy(), train_split.labels.numpy()
    try:
        plots.draw_samples(*samples, names, output / run_dir.SAMPLES)
        plots.draw_losses(epochs, validated_on, output / run_dir.LOSSES)
        plots.draw_confusion(test["confusion"], names, output / run_dir.CONFUSION)
        plots.draw_mistakes(images, labels, logits, names, output / run_dir.MISTAKES)
    except (OSError, ValueError) as error:
        warn(PROGRAM, f"a picture could not be drawn ({error}); the run is complete without it")


def summarize(report: dict[str, Any]) -> list[str]:
    """What people want to know at the end of a run."""
    test, calibration, timing = report["test"], report["calibration"], report["train"]
    return [
        f"Test Accuracy: {test['accuracy']:.2%} of {test['samples']:,} images, Test Loss: {test['loss']:.4f}",
        *([] if calibration is None else [describe_calibration(calibration)]),
        f"Training took {timing['seconds']:.1f} s, {timing['images_per_second']:,.0f} images/s "
        f"in {plural(timing['processes'], 'process', 'processes')} on {timing['device']}",
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
