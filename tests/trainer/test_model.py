"""The net of the tutorial, its gradients without autograd, and the module that is deployed."""

import copy

import pytest
import torch
from torch import Tensor

from trainer.model import MLP, Backward, DeployedModel, Normalize


def test_the_net_is_the_tutorials() -> None:
    net = MLP()
    shapes = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    assert shapes == {
        "fc1.weight": (128, 784),
        "fc1.bias": (128,),
        "fc2.weight": (64, 128),
        "fc2.bias": (64,),
        "fc3.weight": (10, 64),
        "fc3.bias": (10,),
    }
    assert sum(parameter.numel() for parameter in net.parameters()) == 109_386


def zero_gradients(net: MLP) -> MLP:
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return net


def example(net: MLP, samples: int) -> tuple[Tensor, Tensor, MLP]:
    """Pixels, soft targets and a copy of `net` for autograd."""
    torch.manual_seed(samples)
    targets = torch.rand(samples, 10).pow(4)
    return torch.randn(samples, 28, 28), targets / targets.sum(dim=1, keepdim=True), copy.deepcopy(net)


def assert_same_gradients(ours: MLP, theirs: MLP) -> None:
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize("hidden", [(128, 64), (5,), (7, 6, 5), (300, 1)])
@pytest.mark.parametrize("samples", [1, 64])
def test_loss_and_gradients_are_those_of_autograd(hidden: tuple[int, ...], samples: int) -> None:
    """With targets that are probabilities, as outliers have them."""
    net = zero_gradients(MLP(hidden))
    pixels, targets, expected = example(net, samples)
    with torch.inference_mode():
        loss = Backward(net)(pixels, targets, 1 / samples)
    by_autograd = torch.nn.functional.cross_entropy(expected(pixels), targets, reduction="sum")
    (by_autograd / samples).backward()
    torch.testing.assert_close(loss, by_autograd.detach())
    assert_same_gradients(net, expected)


def test_gradients_of_parts_add_up_to_those_of_the_batch() -> None:
    net = zero_gradients(MLP())
    pixels, targets, whole = example(net, 50)
    with torch.inference_mode():
        loss = Backward(zero_gradients(whole))(pixels, targets, 1 / 50)
        backward = Backward(net)
        parts = [backward(pixels[part::3], targets[part::3], 1 / 50) for part in range(3)]
    torch.testing.assert_close(torch.stack(parts).sum(), loss)
    assert_same_gradients(net, whole)


def test_normalisation_is_the_tutorials() -> None:
    image = torch.tensor([[0, 255]], dtype=torch.uint8)
    assert Normalize(0.5, 0.5)(image).tolist() == [[-1.0, 1.0]]


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_deployed_module_normalises_and_gives_calibrated_probabilities(temperature: float) -> None:
    net = MLP()
    image = torch.randint(0, 256, (4, 28, 28), dtype=torch.uint8)
    logits, probabilities = DeployedModel(net, Normalize(0.1, 0.3), temperature)(image)
    torch.testing.assert_close(logits, net((image / 255 - 0.1) / 0.3))
    torch.testing.assert_close(probabilities, torch.softmax(logits / temperature, dim=1), rtol=0, atol=0)
