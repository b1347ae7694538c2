"""The training loop, all of it in sight."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from rich.progress import Progress
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import Adam
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from trainer.config import TrainConfig
from trainer.data import Split
from trainer.evaluation import Evaluation, evaluate, sum_dtype
from trainer.model import MLP, Normalize


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What one epoch left; `number` counts from 1, `train_loss` is the mean over its samples."""

    number: int
    train_loss: float
    validation: Evaluation
    seconds: float


def train_epochs(
    net: MLP,
    normalize: Normalize,
    train: Split,
    validation: Split,
    config: TrainConfig,
    accelerator: Accelerator,
    progress: Progress,
) -> Iterator[Epoch]:
    """Train `net` in place, yielding after each epoch; all tensors must be on the accelerator's device.

    Each process takes its slice of every batch, and the gradient is that of the whole batch.
    """
    steps = config.epochs * -(-len(train) // config.batch_size)
    optimizer = Adam(
        net.parameters(),
        lr=config.lr,
        weight_decay=config.weight_decay,
        decoupled_weight_decay=True,
        fused=True,
    )
    schedule = learning_rate_schedule(optimizer, config, steps)
    model, optimizer = accelerator.prepare(net, optimizer)
    rank, world = accelerator.process_index, accelerator.num_processes

    for number in range(1, config.epochs + 1):
        start = time.perf_counter()
        bar = progress.add_task(f"Epoch {number}/{config.epochs}", total=len(train))
        loss_sum = torch.zeros((), dtype=sum_dtype(accelerator.device), device=accelerator.device)
        for batch in (
            sample_order(len(train), config.seed, number).to(accelerator.device).split(config.batch_size)
        ):
            index = batch[rank::world]
            logits = model(normalize(train.images[index]))  # [B, 10]
            loss = cross_entropy(logits, train.labels[index], reduction="sum")
            accelerator.backward(loss * (world / len(batch)))  # DDP averages over the processes
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            loss_sum += loss.detach()
            progress.advance(bar, len(batch))
        train_loss = accelerator.reduce(loss_sum, "sum").item() / len(train)
        seconds = time.perf_counter() - start
        progress.remove_task(bar)
        yield Epoch(
            number=number,
            train_loss=train_loss,
            validation=evaluate(net, normalize, validation, accelerator),
            seconds=seconds,
        )


def sample_order(samples: int, seed: int, epoch: int) -> Tensor:
    """The order of an epoch's samples, int64 [samples]: it depends on seed and epoch alone."""
    state = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)
    return torch.randperm(samples, generator=torch.Generator().manual_seed(int(state[0] >> 1)))


def learning_rate_schedule(optimizer: Adam, config: TrainConfig, steps: int) -> LRScheduler:
    """The schedule of `config`, to be stepped once a global batch."""
    if config.schedule == "one-cycle":
        return OneCycleLR(optimizer, max_lr=config.lr, total_steps=steps, cycle_momentum=False)
    return LambdaLR(optimizer, lambda _: 1.0)
