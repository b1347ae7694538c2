"""What learns: the net, its optimizers and schedules, and how a checkpoint holds them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Adam, Muon, Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from trainer.checkpoint import Arrays
from trainer.config import TrainConfig
from trainer.model import MLP


class Learner:
    """The net in training: `net` as it is, `model` as Accelerate has wrapped it for its processes."""

    def __init__(self, config: TrainConfig, steps: int, accelerator: Accelerator) -> None:
        """Build it for `steps` steps; the first weights come from torch's global seed, so set that before."""
        self.config = config
        self.net = MLP(config.hidden).to(accelerator.device)
        self.optimizers = make_optimizers(self.net, config)
        self.schedules = [
            OneCycleLR(optimizer, max_lr=config.lr, total_steps=steps, cycle_momentum=False)
            for optimizer in self.optimizers
            if config.schedule == "one-cycle"
        ]
        self.model: nn.Module = accelerator.prepare(self.net)
        self.step = 0
        """Optimizer steps taken."""

    @property
    def learning_rate(self) -> float:
        """The learning rate of the step to come."""
        return float(self.optimizers[0].param_groups[0]["lr"])

    def update(self) -> None:
        """Take a step with the gradients that are there."""
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        for schedule in self.schedules:
            schedule.step()
        self.step += 1

    def is_finite(self) -> bool:
        """Whether every weight is a number."""
        return all(bool(parameter.isfinite().all()) for parameter in self.net.parameters())

    def arrays(self) -> tuple[Arrays, Arrays]:
        """Copies of the net's weights and of the optimizers' state, as a checkpoint holds them."""
        state = {
            f"{name}.{key}": value
            for name, parameter in self.net.named_parameters()
            for optimizer in self.optimizers
            for key, value in optimizer.state.get(parameter, {}).items()
        }
        return _to_arrays(self.net.state_dict()), _to_arrays(state)

    def schedule_states(self) -> list[dict[str, Any]]:
        """The state of each schedule, in JSON values."""
        return [schedule.state_dict() for schedule in self.schedules]

    def restore(
        self, step: int, model: Arrays, state: Arrays, schedules: Sequence[Mapping[str, Any]]
    ) -> None:
        """Go back to what `arrays` and `schedule_states` gave after `step` steps.

        Raises:
            KeyError, RuntimeError: the arrays are those of another net.
        """
        self.restore_net(model)
        names = {parameter: name for name, parameter in self.net.named_parameters()}
        tensors = {name: torch.tensor(array) for name, array in state.items()}
        for optimizer in self.optimizers:
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            states = {
                index: _below(f"{names[parameter]}.", tensors) for index, parameter in enumerate(parameters)
            }
            optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
        for schedule, saved in zip(self.schedules, schedules, strict=True):
            schedule.load_state_dict(dict(saved))
            for group, rate in zip(schedule.optimizer.param_groups, schedule.get_last_lr(), strict=True):
                group["lr"] = rate
        self.step = step

    def restore_net(self, model: Arrays) -> None:
        """Set the net's weights to what `arrays` gave."""
        self.net.load_state_dict({name: torch.tensor(array) for name, array in model.items()})


def make_optimizers(net: MLP, config: TrainConfig) -> list[Optimizer]:
    """Adam; or Muon for the matrices of the hidden layers, and Adam for the rest, as Muon is meant.

    Both decay weights apart from the gradient, as AdamW does. Muon (Jordan et al. 2024) makes each update
    orthogonal; scaled as in "Muon is Scalable for LLM Training" (Liu et al. 2025), its steps are as large as
    Adam's, and one learning rate serves both.
    """
    parameters = dict(net.named_parameters())
    matrices = [f"fc{layer}.weight" for layer in range(1, net.depth)] if config.optimizer == "muon" else []
    adam = Adam(
        [parameter for name, parameter in parameters.items() if name not in matrices],
        lr=config.lr,
        weight_decay=config.weight_decay,
        decoupled_weight_decay=True,
        fused=True,
    )
    if not matrices:
        return [adam]
    muon = Muon(
        [parameters[name] for name in matrices],
        lr=config.lr,
        weight_decay=config.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    return [adam, muon]


def _to_arrays(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in tensors.items()}


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
