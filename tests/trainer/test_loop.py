"""The loop against plain PyTorch as the oracle, and evaluation that counts every sample once."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

from trainer.config import TrainConfig
from trainer.data import Dataset, Split
from trainer.evaluation import evaluate
from trainer.loop import Epoch, sample_order, train_epochs
from trainer.model import MLP, Normalize
from trainer.progress import progress_bar


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def fit(
    config: TrainConfig, train: Split, validation: Split, accelerator: Accelerator
) -> tuple[MLP, list[Epoch]]:
    set_seed(config.seed)
    net, normalize = MLP(config.hidden), Normalize(config.mean, config.std)
    with progress_bar(speaks=False) as progress:
        epochs = list(train_epochs(net, normalize, train, validation, config, accelerator, progress))
    return net, epochs


class TutorialNet(nn.Module):
    """The class of the tutorial, word for word in what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(28 * 28, 128)
        self.fc2 = nn.Linear(128, 64)
        self.fc3 = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.view(-1, 28 * 28)
        x = torch.relu(self.fc1(x))
        x = torch.relu(self.fc2(x))
        return self.fc3(x)


def test_the_notebook_recipe_equals_the_tutorials_own_loop(
    mnist5k: Dataset, accelerator: Accelerator
) -> None:
    config = TrainConfig(dataset="mnist5k", epochs=2)
    samples = 1000  # 16 steps an epoch: rounding has no time to grow
    train = mnist5k.train.take(torch.arange(samples))
    net, epochs = fit(config, train, mnist5k.test, accelerator)

    set_seed(config.seed)
    tutorial = TutorialNet()
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(tutorial.parameters(), lr=0.001)
    losses = []
    for epoch in (1, 2):
        running = 0.0
        for batch in sample_order(samples, config.seed, epoch).split(64):
            images = (train.images[batch].float() / 255 - 0.5) / 0.5
            optimizer.zero_grad()
            loss = criterion(tutorial(images), train.labels[batch])
            loss.backward()
            optimizer.step()
            running += loss.item() * len(batch)
        losses.append(running / samples)

    assert [epoch.train_loss for epoch in epochs] == pytest.approx(losses, rel=1e-5)
    for name, tensor in tutorial.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)


def test_the_same_seed_gives_the_same_bits_and_another_does_not(
    mnist5k: Dataset, accelerator: Accelerator
) -> None:
    train = mnist5k.train.take(torch.arange(500))
    weights = [
        fit(TrainConfig(seed=seed, epochs=1), train, mnist5k.test, accelerator)[0].fc1.weight
        for seed in (1, 1, 2)
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(("samples", "batch_size"), [(130, 64), (64, 64), (10, 64), (7, 1)])
def test_ragged_batches_train(
    mnist5k: Dataset, accelerator: Accelerator, samples: int, batch_size: int
) -> None:
    train = mnist5k.train.take(torch.arange(samples))
    config = TrainConfig(batch_size=batch_size, epochs=2, schedule="one-cycle")
    _, epochs = fit(config, train, mnist5k.test, accelerator)
    assert [epoch.number for epoch in epochs] == [1, 2]
    assert epochs[1].train_loss < epochs[0].train_loss


def test_the_order_is_a_permutation_that_depends_on_seed_and_epoch() -> None:
    order = sample_order(100, 0, 1)
    assert order.sort().values.tolist() == list(range(100))
    assert torch.equal(order, sample_order(100, 0, 1))
    assert not torch.equal(order, sample_order(100, 0, 2))
    assert not torch.equal(order, sample_order(100, 1, 1))


@pytest.mark.parametrize("samples", [1, 999, 1000, 1001])
def test_evaluation_counts_every_sample_once(
    mnist5k: Dataset, accelerator: Accelerator, samples: int
) -> None:
    split = mnist5k.train.take(torch.arange(samples))
    net, normalize = MLP(), Normalize(0.5, 0.5)
    found = evaluate(net, normalize, split, accelerator)
    with torch.no_grad():
        logits = net(normalize(split.images))
    assert found.samples == samples
    assert found.accuracy == (logits.argmax(dim=1) == split.labels).double().mean().item()
    assert found.loss == pytest.approx(nn.functional.cross_entropy(logits, split.labels).item(), rel=1e-5)
