"""Logits of a whole split, every sample exactly once on any number of processes."""

from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

from trainer.data import Split
from trainer.model import MLP, Normalize

BATCH = 1000
"""Images a forward pass; it changes speed and memory, not the result."""


@dataclass(frozen=True)
class Evaluation:
    """Mean cross-entropy `loss`, `accuracy` (0 to 1) and the number of `samples` they stand for."""

    loss: float
    accuracy: float
    samples: int


def evaluate(net: MLP, normalize: Normalize, split: Split, accelerator: Accelerator) -> Evaluation:
    """Evaluate `net` on all of `split`; all processes get the same answer."""
    logits = predict(net, normalize, split.images, accelerator)
    labels = split.labels.cpu()
    return Evaluation(
        loss=cross_entropy(logits.double(), labels).item(),
        accuracy=(logits.argmax(dim=1) == labels).double().mean().item(),
        samples=len(split),
    )


@torch.inference_mode()
def predict(net: MLP, normalize: Normalize, images: Tensor, accelerator: Accelerator) -> Tensor:
    """Logits of uint8 `images` [N, 28, 28] as float32 [N, 10] on the CPU, in their order, in all processes.

    Each process computes every n-th of them, so that shares differ by one image at most.
    """
    rank, world = accelerator.process_index, accelerator.num_processes
    share = torch.cat([net(normalize(batch)) for batch in images[rank::world].split(BATCH)])
    longest = -(-len(images) // world)
    shares = accelerator.gather(pad(share, (0, 0, 0, longest - len(share))))  # [world * longest, 10]
    in_order = shares.view(world, longest, -1).transpose(0, 1).flatten(0, 1)
    return in_order[: len(images)].cpu()
