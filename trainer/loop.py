"""The training loop, all of it in sight."""

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from accelerate import Accelerator
from rich.progress import Progress
from torch import Tensor
from torch.nn.functional import cross_entropy

from serve_cli.errors import CheckFailed
from trainer.augment import distort, draw
from trainer.data import Split
from trainer.evaluate import Evaluation, evaluate
from trainer.generator import generator
from trainer.learner import Learner
from trainer.model import Normalize
from trainer.outliers import draw_strangers, mix_in
from trainer.signals import ASK_TO_STOP, Stopped, StopRequest

PAUSE_EVERY = 16
"""Steps between two looks at losses, signals and the progress bar: seldom enough to cost nothing."""


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What one epoch left; `number` and `step` count from 1, `train_loss` is the mean over its samples."""

    number: int
    step: int
    train_loss: float
    validation: Evaluation
    learning_rate: float
    seconds: float


@dataclass
class Course:
    """How far a run has come, besides its learner: the epochs behind it, and the current one up to now."""

    epochs: list[Epoch] = field(default_factory=list)
    losses: Tensor = field(default_factory=lambda: torch.zeros(0))
    """Of the current epoch, summed over the samples of each step, float64 [steps]; this process's share."""
    seconds: float = 0.0
    """Of the current epoch."""

    @property
    def best(self) -> Epoch | None:
        """The epoch with the lowest validation loss so far."""
        return min(self.epochs, key=lambda epoch: epoch.validation.loss, default=None)


def train_epochs(
    learner: Learner,
    course: Course,
    normalize: Normalize,
    train: Split,
    validation: Split,
    accelerator: Accelerator,
    *,
    progress: Progress,
    stop: StopRequest,
    save: Callable[[], None],
    checkpoint_every: int | None = None,
) -> Iterator[Epoch]:
    """Train from where `learner` and `course` stand, yielding after each epoch; tensors are on the device.

    Each process takes its slice of every batch, and the gradient is that of the whole batch. `save` is called
    in all processes at once: after each epoch, every `checkpoint_every` steps, and before a stop.

    Raises:
        Stopped: a process was asked to stop; all of them do, at the same step.
        CheckFailed: the loss is not finite any more; in all processes.
    """
    config = learner.config
    per_epoch = steps_an_epoch(len(train), config.batch_size)
    world = accelerator.num_processes
    bar = progress.add_task("", total=config.epochs * len(train), loss="")
    while learner.step < config.epochs * per_epoch and not is_patience_over(course, config.patience):
        number = learner.step // per_epoch + 1
        first = learner.step % per_epoch
        if first == 0:
            course.losses = torch.zeros(
                per_epoch, dtype=sum_dtype(accelerator.device), device=accelerator.device
            )
            course.seconds = 0.0
        begun = time.perf_counter() - course.seconds
        order = sample_order(len(train), config.seed, number).to(accelerator.device)
        for position, batch in enumerate(order.split(config.batch_size)[first:], first):
            course.losses[position] = learn(learner, normalize, train, batch, accelerator)
            is_last = position == per_epoch - 1
            is_due = checkpoint_every is not None and learner.step % checkpoint_every == 0
            if is_last or is_due or learner.step % PAUSE_EVERY == 0 or (world == 1 and stop.received):
                asked = agree(learner, course, stop, accelerator)
                if not progress.disable:  # only where somebody watches, for reading a loss makes a GPU wait
                    progress.update(
                        bar,
                        description=f"Epoch {number}/{config.epochs}",
                        completed=(number - 1) * len(train) + position * config.batch_size + len(batch),
                        loss=f"loss {course.losses[position].item() * world / len(batch):.4f}",
                    )
                course.seconds = time.perf_counter() - begun
                if (is_due or asked) and not is_last:
                    save()
                if asked and not is_last:
                    raise Stopped(asked, learner.step)
        train_loss = accelerator.reduce(course.losses.sum(), "sum").item() / len(train)
        epoch = Epoch(
            number=number,
            step=learner.step,
            train_loss=train_loss,
            validation=evaluate(learner.net, normalize, validation, accelerator),
            learning_rate=learner.learning_rate,
            seconds=course.seconds,
        )
        if not math.isfinite(epoch.validation.loss):
            raise CheckFailed(
                f"training diverged: the validation loss of epoch {number} is {epoch.validation.loss:g}; "
                "lower --lr"
            )
        course.epochs.append(epoch)
        save()
        yield epoch
        if asked:
            raise Stopped(asked, learner.step)


def learn(
    learner: Learner, normalize: Normalize, train: Split, batch: Tensor, accelerator: Accelerator
) -> Tensor:
    """Take one optimizer step on the global `batch`, int64 [B]; return the loss summed over our share.

    Two processes, and one that accumulates two parts, work on the same parts and get the same bits.
    """
    config, rank, world = learner.config, accelerator.process_index, accelerator.num_processes
    if config.distortion:
        numbers = draw(len(batch), config.seed, learner.step)
    if config.strangers:
        strange = draw_strangers(round(config.strangers * len(batch)), config.seed, learner.step)
    losses = []
    for part in range(config.accumulate):
        ours = slice(rank + part * world, None, world * config.accumulate)
        share = batch[ours]
        images = train.images.index_select(0, share)  # uint8 [B, 28, 28]; images[share] is 10 times slower
        targets = train.labels.index_select(0, share)
        if config.distortion:
            images = distort(images, numbers[ours].to(accelerator.device), config.distortion)
        if config.strangers:
            images, targets = mix_in(images, targets, train, strange[ours].to(accelerator.device))
        is_last = part == config.accumulate - 1
        with nullcontext() if is_last else accelerator.no_sync(learner.model):
            logits = learner.model(normalize(images))  # [B, 10]
            loss = cross_entropy(logits, targets, reduction="sum")
            # Of the mean over the batch: DDP averages over the processes. Accelerate's own backward would add
            # the loss scaling of fp16 alone, which there is none of.
            loss.backward(constant(world / len(batch), accelerator.device))
        losses.append(loss.detach())
    learner.update()
    return losses[0] if len(losses) == 1 else torch.stack(losses).sum()


@lru_cache(maxsize=4)
def constant(value: float, device: torch.device) -> Tensor:
    """A number as a tensor, made once: one for whole batches and one for the ragged one."""
    return torch.tensor(value, device=device)


def agree(
    learner: Learner, course: Course, stop: StopRequest, accelerator: Accelerator
) -> signal.Signals | None:
    """Tell all processes what one has noticed: a signal, which is returned, or a loss that is no number.

    Raises:
        CheckFailed: a loss is not finite; in all processes.
    """
    is_bad = not course.losses.isfinite().all()
    noticed = [float(stop.received == number) for number in ASK_TO_STOP] + [float(is_bad)]
    if accelerator.num_processes > 1:
        noticed = accelerator.reduce(torch.tensor(noticed, device=accelerator.device), "sum").tolist()
    if noticed[-1]:
        losses = accelerator.reduce(course.losses, "sum")
        position = int(losses.isfinite().logical_not().nonzero()[0])
        epoch, behind = divmod(learner.step - 1, len(losses))
        step = learner.step - behind + position
        raise CheckFailed(
            f"training diverged: the loss of step {step} (epoch {epoch + 1}) is {losses[position]:g}, "
            f"at learning rate {learner.learning_rate:.3g}; lower --lr"
        )
    return next((number for number, votes in zip(ASK_TO_STOP, noticed, strict=False) if votes), None)


def is_patience_over(course: Course, patience: int | None) -> bool:
    """Whether the last `patience` epochs have brought no lower validation loss."""
    best = course.best
    return patience is not None and best is not None and len(course.epochs) - best.number >= patience


def steps_an_epoch(samples: int, batch_size: int) -> int:
    """How many batches, the ragged one included."""
    return -(-samples // batch_size)


def sum_dtype(device: torch.device) -> torch.dtype:
    """The dtype for sums over many samples: float64 wherever the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def sample_order(samples: int, seed: int, epoch: int) -> Tensor:
    """The order of an epoch's samples, int64 [samples]: it depends on seed and epoch alone."""
    return torch.randperm(samples, generator=generator(seed, epoch))
