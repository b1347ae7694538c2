"""The net of the tutorial and the module that is deployed."""

import pytest
import torch

from trainer.model import MLP, DeployedModel, Normalize


def test_the_notebooks_net() -> None:
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


@pytest.mark.parametrize("hidden", [(5,), (7, 6, 5)])
def test_other_hidden_sizes(hidden: tuple[int, ...]) -> None:
    assert MLP(hidden)(torch.zeros(3, 28, 28)).shape == (3, 10)


def test_normalisation_is_the_tutorials() -> None:
    image = torch.tensor([[0, 255]], dtype=torch.uint8)
    assert Normalize(0.5, 0.5)(image).tolist() == [[-1.0, 1.0]]


def test_the_deployed_module_normalises_and_gives_probabilities() -> None:
    net = MLP()
    image = torch.randint(0, 256, (4, 28, 28), dtype=torch.uint8)
    logits, probabilities = DeployedModel(net, Normalize(0.1, 0.3))(image)
    torch.testing.assert_close(logits, net((image / 255 - 0.1) / 0.3))
    torch.testing.assert_close(probabilities, torch.softmax(logits, dim=1), rtol=0, atol=0)


def test_a_temperature_changes_the_probabilities_alone() -> None:
    net, normalize = MLP(), Normalize(0.1, 0.3)
    image = torch.randint(0, 256, (4, 28, 28), dtype=torch.uint8)
    logits, probabilities = DeployedModel(net, normalize, 2.5)(image)
    assert torch.equal(logits, DeployedModel(net, normalize)(image)[0])
    torch.testing.assert_close(probabilities, torch.softmax(logits / 2.5, dim=1))
