"""What one process of a group does in test_world: train, evaluate, and leave what it saw as JSON.

torchrun --nproc-per-node N -m tests.trainer.world RESULT.json SAMPLES EPOCHS [FLAG=JSON ...]
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from trainer.config import TrainConfig
from trainer.data import Split, load_dataset
from trainer.evaluate import evaluate, predict
from trainer.learner import Learner
from trainer.loop import Course, steps_an_epoch, train_epochs
from trainer.model import Normalize
from trainer.processes import leave_group, start_processes
from trainer.progress import progress_bar
from trainer.signals import StopRequest

SIZES = (1, 2, 3, 5, 127, 1000)
"""Of the sets whose evaluation is compared: below, around and above the number of processes."""


def main(arguments: Sequence[str]) -> None:
    """Be one process; the first one writes the result."""
    result, samples, epochs = Path(arguments[0]), int(arguments[1]), int(arguments[2])
    flags = {name: json.loads(value) for name, _, value in (part.partition("=") for part in arguments[3:])}
    torch.set_num_threads(1)
    state = start_processes()
    dataset = load_dataset("mnist5k", None)
    config = TrainConfig.from_recipe("notebook", epochs=epochs, **flags)
    train = dataset.train.take(torch.arange(samples))
    accelerator = Accelerator(cpu=state.device.type == "cpu", mixed_precision=config.mixed_precision)
    learner, _, losses = fit(config, train, dataset.test, accelerator)
    normalize = Normalize(config.mean, config.std).to(accelerator.device)
    found = {
        "processes": accelerator.num_processes,
        "losses": losses,
        "test": vars(evaluate(learner.net, normalize, dataset.test.to(accelerator.device), accelerator)),
        "logits": [
            predict(
                learner.net, normalize, dataset.test.images[:size].to(accelerator.device), accelerator
            ).tolist()
            for size in SIZES
        ],
        "weights": [parameter.tolist() for parameter in learner.net.parameters()],
    }
    if accelerator.is_main_process:
        result.write_text(json.dumps(found))
    accelerator.free_memory()
    leave_group()


def fit(
    config: TrainConfig, train: Split, validation: Split, accelerator: Accelerator
) -> tuple[Learner, Course, list[float]]:
    """Train; return the learner, the course and the mean loss of each step."""
    set_seed(config.seed)
    steps = steps_an_epoch(len(train), config.batch_size)
    learner, course = Learner(config, config.epochs * steps, accelerator), Course()
    normalize = Normalize(config.mean, config.std).to(accelerator.device)
    losses: list[float] = []
    with progress_bar(speaks=False) as progress:
        for _ in train_epochs(
            learner,
            course,
            normalize,
            train.to(accelerator.device),
            validation.to(accelerator.device),
            accelerator,
            progress=progress,
            stop=StopRequest(),
            save=lambda: None,
        ):
            sums = accelerator.reduce(course.losses, "sum").tolist()
            sizes = [min(config.batch_size, len(train) - at * config.batch_size) for at in range(steps)]
            losses += [loss / size for loss, size in zip(sums, sizes, strict=True)]
    return learner, course, losses


if __name__ == "__main__":
    main(sys.argv[1:])
