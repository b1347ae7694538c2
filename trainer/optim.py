"""Adam and Muon over one flat vector of parameters, and the one-cycle schedule."""

import math

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector
from torch.optim.adam import adam

from trainer.config import TrainConfig
from trainer.model import MLP

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
"""Adam's constants, PyTorch's defaults (Kingma and Ba 2015)."""

MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
"""Muon's constants, PyTorch's defaults (Jordan et al. 2024)."""

FIRST_RATE, LAST_RATE, WARM_UP = 1 / 25, 1 / 25 / 1e4, 0.3
"""One-cycle: first and last rate as shares of the peak, and the warm-up's share of the steps; PyTorch's."""


class Optimizer:
    """Adam; or Muon for the matrices of the hidden layers and Adam for the rest, as Muon is meant.

    Both decay weights apart from the gradient, as AdamW does. The net's parameters become views of one flat
    vector, their gradients of another: Adam is one call, the gradient of a group of processes one all-reduce.
    PyTorch's functional Adam is used: its Optimizer classes import torch._dynamo, which takes 1.5 s and more.
    """

    def __init__(self, net: MLP, config: TrainConfig, total_steps: int) -> None:
        self.config = config
        self.total_steps = total_steps
        self.step_count = 0
        self.step_tensor = torch.zeros((), device=next(net.parameters()).device)  # Adam counts in a tensor
        self.matrices = (
            [f"fc{layer}.weight" for layer in range(1, net.depth)] if config.optimizer == "muon" else []
        )
        named = dict(net.named_parameters())
        ordered = [named[name] for name in self.matrices] + [
            parameter for name, parameter in named.items() if name not in self.matrices
        ]
        self.weights = parameters_to_vector(ordered).detach()
        self.gradient = torch.zeros_like(self.weights)
        self.exp_avg = torch.zeros_like(self.weights)  # Adam's first moment, Muon's momentum
        self.exp_avg_sq = torch.zeros_like(self.weights)  # Adam's second moment, unused by Muon
        sizes = [parameter.numel() for parameter in ordered]
        for parameter, value, gradient in zip(
            ordered, self.weights.split(sizes), self.gradient.split(sizes), strict=True
        ):
            parameter.data = value.view_as(parameter)
            parameter.grad = gradient.view_as(parameter)
        self.by_muon = sum(sizes[: len(self.matrices)])
        self.by_adam = [
            vector[self.by_muon :] for vector in (self.weights, self.gradient, self.exp_avg, self.exp_avg_sq)
        ]
        self.muon_shapes = [named[name].shape for name in self.matrices]

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        if self.config.schedule == "constant":
            return self.config.lr
        return one_cycle(self.step_count, self.total_steps, self.config.lr)

    def step(self) -> None:
        """Update the parameters with the gradient; call it in torch.inference_mode."""
        rate, decay = self.learning_rate, self.config.weight_decay
        if self.matrices:
            self._muon(rate, decay)
        adam(
            [self.by_adam[0]],
            [self.by_adam[1]],
            [self.by_adam[2]],
            [self.by_adam[3]],
            max_exp_avg_sqs=[],
            state_steps=[self.step_tensor],
            fused=True,
            decoupled_weight_decay=True,
            amsgrad=False,
            beta1=BETA1,
            beta2=BETA2,
            lr=rate,
            weight_decay=decay,
            eps=EPSILON,
            maximize=False,
        )
        self.step_count += 1

    def _muon(self, rate: float, decay: float) -> None:
        """Muon with Nesterov momentum; its updates are scaled to be as large as Adam's.

        The scale is that of "Muon is Scalable for LLM Training" (Liu et al. 2025); one rate fits both.
        """
        sizes = [shape.numel() for shape in self.muon_shapes]
        parts = (
            vector[: self.by_muon].split(sizes) for vector in (self.weights, self.gradient, self.exp_avg)
        )
        for shape, weight, gradient, momentum in zip(self.muon_shapes, *parts, strict=True):
            momentum.lerp_(gradient, 1 - MOMENTUM)
            update = orthogonalize(gradient.lerp(momentum, MOMENTUM).view(shape))
            weight.mul_(1 - rate * decay)
            weight.view(shape).add_(update, alpha=-rate * 0.2 * math.sqrt(max(shape)))

    def set_step(self, step_count: int) -> None:
        """Go on after `step_count` steps."""
        self.step_count = step_count
        self.step_tensor.fill_(step_count)

    def tensors(self) -> dict[str, Tensor]:
        """The state that a checkpoint holds, by name."""
        return {"exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq}


def orthogonalize(matrix: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrix, approximately, by Muon's quintic Newton-Schulz iteration.

    X <- a X + b (X Xt) X + c (X Xt)^2 X is done on the small Gram matrix X Xt, in float32: for 128x784 that
    is half of the work, and processors without bfloat16 emulate it, 30 times as slowly. The matrix is rounded
    to bfloat16 first, as PyTorch's Muon does: the noise in directions with little gradient is worth 0.1
    points on MNIST's test set (LOG.md).
    """
    a, b, c = NEWTON_SCHULZ
    matrix = matrix.bfloat16().float()
    x = matrix if len(matrix) <= matrix.shape[1] else matrix.t()
    x = x / x.norm().clamp(min=1e-7)
    gram = x @ x.t()
    product = None
    for step in range(NEWTON_SCHULZ_STEPS):
        factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal().add_(a)
        product = factor if product is None else factor @ product
        if step < NEWTON_SCHULZ_STEPS - 1:
            gram = factor @ gram @ factor
    assert product is not None
    x = product @ x
    return x if len(matrix) <= matrix.shape[1] else x.t()


def one_cycle(step: int, total_steps: int, peak: float) -> float:
    """The learning rate of `step` (from 0) of `total_steps`: up to `peak` and down again, along cosines.

    Smith and Topin, "Super-Convergence" (2018), as PyTorch's OneCycleLR computes it.
    """
    top = WARM_UP * total_steps - 1
    if step <= top:
        start, end, share = peak * FIRST_RATE, peak, step / top
    else:
        start, end, share = peak, peak * LAST_RATE, (step - top) / (total_steps - 1 - top)
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))
