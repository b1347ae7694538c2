"""The net of the tutorial, and the module that is deployed: normalisation, net, calibrated softmax in one."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from serve_cli.spec import CLASSES, IMAGE_SIZE


class MLP(nn.Module):
    """The tutorial's net: Linear layers with ReLU between them, named fc1, fc2, fc3.

    With hidden sizes (128, 64) it has 109,386 parameters.
    """

    def __init__(self, hidden: tuple[int, ...] = (128, 64)) -> None:
        super().__init__()
        self.hidden = hidden
        sizes = [IMAGE_SIZE**2, *hidden, CLASSES]
        self.depth = len(sizes) - 1
        self.activation: Callable[[Tensor], Tensor] = (
            torch.relu
        )  # an export tries others on nets that read badly
        for layer in range(1, self.depth + 1):
            setattr(self, f"fc{layer}", nn.Linear(sizes[layer - 1], sizes[layer]))

    def forward(self, pixels: Tensor) -> Tensor:
        """Map normalised float32 `pixels` [N, 28, 28] (or [N, 784]) to logits [N, 10]."""
        x = pixels.flatten(1)  # [N, 784]
        for layer in range(1, self.depth):
            x = self.activation(getattr(self, f"fc{layer}")(x))
        logits: Tensor = getattr(self, f"fc{self.depth}")(x)
        return logits


class Backward:
    """Loss and gradient of an MLP without autograd, whose bookkeeping takes a quarter of a step at batch 64.

    The gradients go into `parameter.grad` of `net`, which must be there and stay the same tensors. Autograd
    computes the same: tests/trainer/test_model.py.
    """

    def __init__(self, net: MLP) -> None:
        layers = [getattr(net, f"fc{layer}") for layer in range(1, net.depth + 1)]
        self.weights = [layer.weight.data for layer in layers]
        self.biases = [layer.bias.data for layer in layers]
        self.gradients = [(layer.weight.grad, layer.bias.grad) for layer in layers]

    def __call__(self, pixels: Tensor, targets: Tensor, scale: float) -> Tensor:
        """Add the gradient of `scale` times the summed cross-entropy; return the sum. Needs inference mode.

        `pixels` are normalised float32 [N, 28, 28], `targets` float32 [N, 10] the probabilities to learn.
        """
        *hidden, last = zip(self.weights, self.biases, strict=True)
        inputs = [pixels.flatten(1)]  # of each layer: [N, 784], [N, 128], [N, 64]
        for weight, bias in hidden:
            inputs.append(torch.addmm(bias, inputs[-1], weight.t()).relu_())
        logits = torch.addmm(last[1], inputs[-1], last[0].t())  # [N, 10]
        log_probabilities = torch.log_softmax(logits.float(), dim=1)
        loss = -(targets * log_probabilities).sum()
        delta = log_probabilities.exp_().sub_(targets).mul_(scale)  # d loss / d logits
        for layer in reversed(range(len(inputs))):
            weight_gradient, bias_gradient = self.gradients[layer]
            weight_gradient.add_(delta.t() @ inputs[layer])
            bias_gradient.add_(delta.sum(dim=0))
            if layer > 0:
                delta = (delta @ self.weights[layer]).mul_(inputs[layer] > 0)
        return loss


class Normalize(nn.Module):
    """From stored pixels to the net's input: x / 255, then minus mean, divided by std."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, image: Tensor) -> Tensor:
        """Map `image` [N, 28, 28], uint8 or float32 from 0 to 255, to float32 of the same shape."""
        return (image / 255).sub_(self.mean).div_(self.std)  # in place: one allocation a batch, not three


class DeployedModel(nn.Module):
    """What every exported file holds: uint8 pixels in, logits and probabilities out.

    Logits are the net's own, probabilities softmax(logits / temperature). A temperature of 1 leaves no trace.
    """

    temperature: Tensor | None

    def __init__(self, net: MLP, normalize: Normalize, temperature: float = 1.0) -> None:
        super().__init__()
        self.normalize = normalize
        self.net = net
        self.register_buffer("temperature", None if temperature == 1 else torch.tensor(temperature))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Map uint8 `image` [N, 28, 28] to (logits, probabilities), both float32 [N, 10]."""
        logits = self.net(self.normalize(image))
        scaled = logits if self.temperature is None else logits / self.temperature
        return logits, torch.softmax(scaled, dim=1)
