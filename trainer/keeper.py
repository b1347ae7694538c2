"""Between a run and its checkpoints: what is saved, by which process, and how it comes back into all."""

import dataclasses
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from serve_cli.errors import CheckFailed, InputError
from serve_cli.process import LAUNCHED, complain
from trainer import checkpoint
from trainer.checkpoint import Checkpoint, Damaged
from trainer.evaluate import Evaluation
from trainer.learner import Learner
from trainer.loop import Course, Epoch, sum_dtype
from trainer.processes import in_first

LOSSES = "losses"
"""The name of the current epoch's losses among the arrays of a checkpoint."""


class Keeper:
    """Saves `learner` and `course` of a run below `root`, and restores them; a context, as it writes late."""

    def __init__(
        self, root: Path, learner: Learner, course: Course, data_sha256: str, accelerator: Accelerator
    ) -> None:
        self.root = root
        self.learner = learner
        self.course = course
        self.data_sha256 = data_sha256
        self.accelerator = accelerator
        self.writer = ThreadPoolExecutor(max_workers=1)
        self.writing: Future[None] | None = None

    def __enter__(self) -> "Keeper":
        return self

    def __exit__(self, *error: object) -> None:
        self.writer.shutdown()  # while the run directory is still ours

    def save(self) -> None:
        """Take a checkpoint of this moment; the disk gets it while training goes on, which waits for none.

        Raises:
            CheckFailed: the weights are not finite; nothing is written.
            MnistError: the system refused the one before; older ones are untouched. Both in all processes.
        """
        self.settle()
        if not self.learner.is_finite():
            raise CheckFailed(
                f"training diverged: after step {self.learner.step} some weights are not finite; lower --lr"
            )
        self._hold(self.accelerator.reduce(self.course.losses, "sum"))
        if self.accelerator.is_main_process:
            self.writing = self.writer.submit(self._write, self._checkpoint(), self.course.best)

    def settle(self) -> None:
        """Wait until what was saved is on the disk.

        Raises:
            MnistError: the system refused; older checkpoints are untouched. In all processes.
        """
        in_first(lambda: None if self.writing is None else self.writing.result())

    def restore(self, saved: Checkpoint) -> None:
        """Bring `learner` and `course` back to where they were saved.

        Raises:
            InputError: the run was started on other data.
        """
        state = saved.state
        if state["data_sha256"] != self.data_sha256:
            raise InputError(
                f"{self.root.parent} was started on other data (sha256 {state['data_sha256'][:12]}…, now "
                f"{self.data_sha256[:12]}…): bring that back, or name another --output"
            )
        self.learner.restore(saved.step, saved.model, saved.training, state["schedules"])
        self.course.epochs = [
            Epoch(**{**epoch, "validation": Evaluation(**epoch["validation"])}) for epoch in state["epochs"]
        ]
        self.course.seconds = state["seconds"]
        device = self.accelerator.device
        self._hold(torch.tensor(saved.training[LOSSES], dtype=sum_dtype(device), device=device))
        changed = [
            f"{name} {state['environment'][name]}, now {now}"
            for name, now in self._environment().items()
            if now != state["environment"][name]
        ]
        if changed:
            complain(LAUNCHED, f"the run had {', '.join(changed)}: the weights will be equal up to rounding")
        complain(LAUNCHED, f"going on after step {saved.step}")

    def restore_best(self, step: int) -> None:
        """Set the net's weights to what they were after `step`, which was the best.

        Raises:
            Damaged: that checkpoint is not whole any more; in all processes.
        """
        saved = in_first(lambda: self._best(step))
        self.learner.restore_net(saved.model)

    def _best(self, step: int) -> Checkpoint:
        try:
            return checkpoint.read(self.root / checkpoint.folder_name(step))
        except Damaged as damage:
            raise Damaged(f"{damage}; it was the best one: train again with --overwrite") from damage

    def way_on(self) -> str:
        """What there is to go on with, for people."""
        saved, _ = checkpoint.newest(self.root)
        if saved is None:
            return "there is no checkpoint yet, so nothing is kept"
        return (
            f"the last checkpoint is {self.root / checkpoint.folder_name(saved.step)}, --resume goes on there"
        )

    def _hold(self, losses: Tensor) -> None:
        """Leave `losses`, summed over the processes, to the first of them, so that they are counted once."""
        self.course.losses = losses if self.accelerator.is_main_process else torch.zeros_like(losses)

    def _write(self, moment: Checkpoint, best: Epoch | None) -> None:
        checkpoint.write(self.root, moment)
        checkpoint.prune(self.root, None if best is None else best.step)

    def _checkpoint(self) -> Checkpoint:
        model, training = self.learner.arrays()
        losses = self.course.losses.cpu().numpy().copy()
        return Checkpoint(
            step=self.learner.step, model=model, training={**training, LOSSES: losses}, state=self._state()
        )

    def _state(self) -> Mapping[str, Any]:
        return {
            "step": self.learner.step,
            "epochs": [dataclasses.asdict(epoch) for epoch in self.course.epochs],
            "seconds": self.course.seconds,
            "schedules": self.learner.schedule_states(),
            "config": self.learner.config.to_dict(),
            "data_sha256": self.data_sha256,
            "environment": self._environment(),
        }

    def _environment(self) -> dict[str, Any]:
        """What changes the rounding of a run, and so the last bits of its weights."""
        return {
            "processes": self.accelerator.num_processes,
            "device": self.accelerator.device.type,
            "torch": torch.__version__,
        }
