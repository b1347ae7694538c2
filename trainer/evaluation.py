"""Loss and accuracy over a split, every sample counted exactly once on any number of processes."""

from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.functional import cross_entropy

from trainer.data import Split
from trainer.model import Normalize

BATCH = 1000
"""Images a forward pass; it changes speed and memory, not the result."""


@dataclass(frozen=True)
class Evaluation:
    """Mean cross-entropy `loss`, `accuracy` (0 to 1) and the number of `samples` they stand for."""

    loss: float
    accuracy: float
    samples: int


@torch.inference_mode()
def evaluate(net: nn.Module, normalize: Normalize, split: Split, accelerator: Accelerator) -> Evaluation:
    """Evaluate `net` on all of `split`; each process takes its share and the sums are added up."""
    net = accelerator.unwrap_model(net)
    share = slice(accelerator.process_index, None, accelerator.num_processes)
    sums = torch.zeros(2, dtype=sum_dtype(accelerator.device), device=accelerator.device)  # loss, correct
    for images, labels in zip(
        split.images[share].split(BATCH), split.labels[share].split(BATCH), strict=True
    ):
        logits = net(normalize(images))  # [N, 10]
        sums[0] += cross_entropy(logits, labels, reduction="sum")
        sums[1] += (logits.argmax(dim=1) == labels).sum()
    loss, correct = accelerator.reduce(sums, "sum").tolist()
    return Evaluation(loss / len(split), correct / len(split), len(split))


def sum_dtype(device: torch.device) -> torch.dtype:
    """The dtype for sums over many samples: float64 wherever the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64
