"""The loop against plain PyTorch as the oracle, and evaluation that counts every sample once."""

import copy

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn

from serve_cli.errors import CheckFailed
from tests.trainer.world import fit
from trainer.augment import distort, draw
from trainer.config import TrainConfig
from trainer.data import Dataset, Split
from trainer.evaluate import Evaluation, evaluate
from trainer.learner import Learner
from trainer.loop import Course, Epoch, is_patience_over, learn, sample_order
from trainer.model import MLP, Normalize
from trainer.outliers import draw_strangers, make_strangers


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


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
    learner, course, step_losses = fit(config, train, mnist5k.test, accelerator)

    set_seed(config.seed)
    tutorial = TutorialNet()
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(tutorial.parameters(), lr=0.001)
    losses, expected = [], []
    for epoch in (1, 2):
        running = 0.0
        for batch in sample_order(samples, config.seed, epoch).split(64):
            images = (train.images[batch].float() / 255 - 0.5) / 0.5
            optimizer.zero_grad()
            loss = criterion(tutorial(images), train.labels[batch])
            loss.backward()
            optimizer.step()
            running += loss.item() * len(batch)
            expected.append(loss.item())
        losses.append(running / samples)

    assert [epoch.train_loss for epoch in course.epochs] == pytest.approx(losses, rel=1e-5)
    assert step_losses == pytest.approx(expected, rel=1e-5)
    for name, tensor in tutorial.state_dict().items():
        torch.testing.assert_close(learner.net.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)


def test_the_same_seed_gives_the_same_bits_and_another_does_not(
    mnist5k: Dataset, accelerator: Accelerator
) -> None:
    train = mnist5k.train.take(torch.arange(500))
    weights = [
        fit(TrainConfig(seed=seed, epochs=1), train, mnist5k.test, accelerator)[0].net.fc1.weight
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
    _, course, _ = fit(config, train, mnist5k.test, accelerator)
    assert [epoch.number for epoch in course.epochs] == [1, 2]
    assert course.epochs[1].train_loss < course.epochs[0].train_loss


def with_strangers(images: Tensor, train: Split, batch: Tensor, numbers: Tensor) -> Tensor:
    """`images` of `batch`, the first of them strangers, one by one."""
    images = images.clone()
    for row, number in enumerate(numbers):
        other = train.images[int(number[1] * len(train))].float()
        label = train.labels[batch[row : row + 1]]
        images[row] = make_strangers(images[row : row + 1], other[None], label, number[None])[0]
    return images


def loss_with_strangers(logits: Tensor, labels: Tensor, strange: int) -> Tensor:
    """The mean over a batch of -log p(label), and for its first ones over all ten labels alike."""
    surprise = -logits.log_softmax(dim=1)
    of_digits = [surprise[row, labels[row]] for row in range(strange, len(labels))]
    return torch.stack([*surprise[:strange].mean(dim=1), *of_digits]).mean()


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_a_recipe_with_everything_equals_plain_pytorch(
    mnist5k: Dataset, accelerator: Accelerator, optimizer: str
) -> None:
    """Weight decay, one-cycle, distortions, strangers and Muon, each written down a second time."""
    config = TrainConfig(
        epochs=2,
        batch_size=100,
        optimizer=optimizer,
        lr=5e-3,
        weight_decay=0.1,
        schedule="one-cycle",
        distortion=1.0,
        strangers=0.247,
        accumulate=3 if optimizer == "adam" else 1,
    )
    samples = 730
    train = mnist5k.train.take(torch.arange(samples))
    learner, _, losses = fit(config, train, mnist5k.test, accelerator)

    set_seed(config.seed)
    net = TutorialNet()
    by_muon = [net.fc1.weight, net.fc2.weight] if optimizer == "muon" else []
    rest = [parameter for parameter in net.parameters() if not any(parameter is each for each in by_muon)]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(rest, lr=5e-3, weight_decay=0.1)]
    if by_muon:
        optimizers += [torch.optim.Muon(by_muon, lr=5e-3, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")]
    schedules = [
        torch.optim.lr_scheduler.OneCycleLR(each, 5e-3, total_steps=16, cycle_momentum=False)
        for each in optimizers
    ]
    batches = [*sample_order(samples, 0, 1).split(100), *sample_order(samples, 0, 2).split(100)]
    expected = []
    for step, batch in enumerate(batches):
        images = distort(train.images[batch], draw(len(batch), config.seed, step), 1.0)
        strange = {100: 25, 30: 7}[len(batch)]  # of 24.7 and 7.41
        images = with_strangers(images, train, batch, draw_strangers(strange, config.seed, step))
        loss = loss_with_strangers(net((images / 255 - 0.5) / 0.5), train.labels[batch], strange)
        net.zero_grad()
        loss.backward()
        for each, schedule in zip(optimizers, schedules, strict=True):
            each.step()
            schedule.step()
        expected.append(loss.item())

    # Muon computes in bfloat16 and makes the smallest gradients as large as the others, rounding included:
    # with eight sets of CPU instructions losses were off by up to 1e-4 in step 8 and by up to 7e-4 later.
    assert losses[:8] == pytest.approx(expected[:8], rel=1e-5 if optimizer == "adam" else 5e-4)
    assert losses == pytest.approx(expected, rel=1e-5 if optimizer == "adam" else 5e-3)
    if optimizer == "adam":
        for ours, theirs in zip(learner.net.parameters(), net.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("strange", [0, 20])
@pytest.mark.parametrize("parts", [1, 2, 7, 100])
def test_accumulated_gradients_are_those_of_the_whole_batch(
    mnist5k: Dataset, accelerator: Accelerator, parts: int, strange: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the mean loss; the weights would not tell, for Adam does not see the scale of a gradient."""
    set_seed(0)
    config = TrainConfig(accumulate=parts, batch_size=100, strangers=strange / 65)
    learner, normalize = Learner(config, 10, accelerator), Normalize(0.5, 0.5)
    monkeypatch.setattr(learner, "update", lambda: None)
    batch = torch.arange(65)
    learn(learner, normalize, mnist5k.train, batch, accelerator)

    expected = copy.deepcopy(learner.net)
    expected.zero_grad()
    images, labels = mnist5k.train.images[batch].float(), mnist5k.train.labels[batch]
    images = with_strangers(images, mnist5k.train, batch, draw_strangers(strange, config.seed, 0))
    loss_with_strangers(expected(normalize(images)), labels, strange).backward()
    for ours, theirs in zip(learner.net.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-7)


def test_without_strangers_the_gradients_are_those_of_plain_labels_to_the_bit(
    mnist5k: Dataset, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_seed(0)
    learner, normalize = Learner(TrainConfig(), 10, accelerator), Normalize(0.5, 0.5)
    monkeypatch.setattr(learner, "update", lambda: None)
    batch = torch.arange(64)
    loss = learn(learner, normalize, mnist5k.train, batch, accelerator)

    expected = copy.deepcopy(learner.net)
    expected.zero_grad()
    logits = expected(normalize(mnist5k.train.images[batch]))
    plain = nn.functional.cross_entropy(logits, mnist5k.train.labels[batch], reduction="sum")
    plain.backward(torch.tensor(1 / 64))
    assert torch.equal(loss, plain)
    for ours, theirs in zip(learner.net.parameters(), expected.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize("strangers", [0.1, 0.5])
def test_batches_too_small_for_a_stranger_train(
    mnist5k: Dataset, accelerator: Accelerator, strangers: float
) -> None:
    """The last batch holds one image, and round(0.5) strangers."""
    train = mnist5k.train.take(torch.arange(129))
    config = TrainConfig(epochs=2, strangers=strangers)
    _, course, _ = fit(config, train, mnist5k.test, accelerator)
    assert [epoch.number for epoch in course.epochs] == [1, 2]


def test_a_loss_that_is_no_number_stops_with_step_and_learning_rate(
    mnist5k: Dataset, accelerator: Accelerator
) -> None:
    train = mnist5k.train.take(torch.arange(1000))
    with pytest.raises(
        CheckFailed, match=r"the loss of step 2 \(epoch 1\) is (nan|inf), at learning rate 1e\+30"
    ):
        fit(TrainConfig(lr=1e30), train, mnist5k.test, accelerator)


def test_patience() -> None:
    def course(*losses: float) -> Course:
        return Course(
            epochs=[
                Epoch(
                    number=number,
                    step=number,
                    train_loss=1.0,
                    validation=Evaluation(loss, 0.5, 10),
                    learning_rate=1.0,
                    seconds=1.0,
                )
                for number, loss in enumerate(losses, 1)
            ]
        )

    assert not is_patience_over(course(), 1)
    assert not is_patience_over(course(3.0, 2.0), 1)
    assert not is_patience_over(course(3.0, 2.0, 2.5), 2)
    assert is_patience_over(course(3.0, 2.0, 2.5, 2.0), 2)
    assert not is_patience_over(course(3.0, 4.0, 5.0), None)


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
