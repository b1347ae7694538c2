"""Adam, Muon and the schedule against PyTorch's own and against float64."""

import math

import pytest
import torch
from torch import Tensor

from trainer.config import TrainConfig
from trainer.model import MLP
from trainer.optim import MOMENTUM, NEWTON_SCHULZ, NEWTON_SCHULZ_STEPS, Optimizer, one_cycle, orthogonalize

STEPS = 20


@pytest.mark.parametrize("total", [1, 2, 3, 10, 63, 1000])
@pytest.mark.filterwarnings("ignore:Detected call of")
def test_one_cycle_is_the_schedule_of_pytorch(total: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.3, total_steps=total, cycle_momentum=False)
    for step in range(total):
        assert one_cycle(step, total, 0.3) == pytest.approx(schedule.get_last_lr()[0], rel=1e-9)
        if step < total - 1:
            schedule.step()


def newton_schulz(matrix: Tensor) -> Tensor:
    """Muon's polynomial a X + b (X Xt) X + c (X Xt)^2 X, five times, as it is written, of a bfloat16 X."""
    a, b, c = NEWTON_SCHULZ
    x = matrix.bfloat16().double()
    x /= x.norm()
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.t()
        x = a * x + b * gram @ x + c * gram @ gram @ x
    return x


@pytest.mark.parametrize("shape", [(128, 784), (64, 128), (128, 64), (1, 9), (9, 1), (30, 30)])
def test_orthogonalize_is_muons_polynomial(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    found = orthogonalize(matrix)
    torch.testing.assert_close(found.double(), newton_schulz(matrix), rtol=0, atol=1e-4)
    singular_values = torch.linalg.svdvals(found)
    assert 0.6 < singular_values.min() <= singular_values.max() < 1.3 or shape == (30, 30)
    assert not orthogonalize(torch.zeros(shape)).any()


def gradients(net: MLP) -> list[list[Tensor]]:
    """Random gradients for STEPS steps."""
    torch.manual_seed(1)
    return [[torch.randn_like(each) * 1e-3 for each in net.parameters()] for _ in range(STEPS)]


def take_steps(net: MLP, config: TrainConfig) -> None:
    optimizer = Optimizer(net, config, STEPS)
    for step in gradients(net):
        for parameter, gradient in zip(net.parameters(), step, strict=True):
            assert parameter.grad is not None
            parameter.grad.copy_(gradient)
        with torch.inference_mode():
            optimizer.step()


def twins() -> tuple[MLP, MLP]:
    torch.manual_seed(0)
    first = MLP((16, 8))
    second = MLP((16, 8))
    second.load_state_dict(first.state_dict())
    return first, second


def test_muon_moves_the_hidden_matrices_and_adam_the_rest() -> None:
    """Muon in float64, written a second time: PyTorch's own computes all of it in bfloat16."""
    ours, theirs = twins()
    start, by_adam = twins()
    config = TrainConfig(optimizer="muon", lr=0.01, weight_decay=0.1, schedule="one-cycle")
    take_steps(ours, config)
    take_steps(by_adam, TrainConfig(lr=0.01, weight_decay=0.1, schedule="one-cycle"))
    steps = [dict(zip(dict(theirs.named_parameters()), step, strict=True)) for step in gradients(theirs)]
    for name, other in by_adam.named_parameters():
        mine = ours.get_parameter(name)
        if name not in ("fc1.weight", "fc2.weight"):
            assert torch.equal(mine, other), name
            continue
        expected = start.get_parameter(name).detach().double()
        momentum = torch.zeros_like(expected)
        for number, step in enumerate(steps):
            rate, gradient = one_cycle(number, STEPS, 0.01), step[name].double()
            momentum = MOMENTUM * momentum + (1 - MOMENTUM) * gradient
            update = newton_schulz((1 - MOMENTUM) * gradient + MOMENTUM * momentum)
            expected -= rate * 0.1 * expected + rate * 0.2 * math.sqrt(max(expected.shape)) * update
        torch.testing.assert_close(mine.double(), expected, rtol=0, atol=1e-4)


def test_the_rate_is_constant_or_one_cycle_and_goes_on_after_a_resume() -> None:
    constant = Optimizer(MLP(), TrainConfig(lr=0.5), 10)
    cycle = Optimizer(MLP(), TrainConfig(lr=0.5, schedule="one-cycle"), 10)
    for step in (0, 7):
        constant.set_step(step)
        cycle.set_step(step)
        assert constant.learning_rate == 0.5
        assert cycle.learning_rate == one_cycle(step, 10, 0.5)
