"""Small networks, from LeNet-5 to CIFAR-style ResNets, whose depth, width and normalization are plain arguments."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def mlp(*widths: int) -> nn.Sequential:
    """Fully connected ReLU network on flattened inputs: `mlp(64, 128, 10)` has one hidden layer of 128 units."""
    if len(widths) < 2 or min(widths) < 1:
        raise ValueError(f"mlp needs at least an input and an output width, all positive, got widths={widths}")
    layers: list[nn.Module] = [nn.Flatten()]
    for inner, outer in zip(widths[:-1], widths[1:], strict=True):
        layers += [nn.Linear(inner, outer), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def lenet(channels: int, size: int, classes: int) -> nn.Sequential:
    """LeNet-5 for square images of `size` pixels: two 5x5 convolutions and three linear layers, tanh and mean pooling.

    Images of 28 pixels are padded to 32 as in the paper; smaller ones (down to 14) keep their size in the first
    convolution. The output is a plain linear layer where the paper has Gaussian units.

    Reference: LeCun, Bottou, Bengio, Haffner (1998), Gradient-Based Learning Applied to Document Recognition.
    """
    if size < 14:
        raise ValueError(f"lenet needs images of at least 14 pixels, got size={size}")
    pad = 2 if size <= 28 else 0
    side = ((size + 2 * pad - 4) // 2 - 4) // 2
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5, padding=pad),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * side**2, 120),
        nn.Tanh(),
        nn.Linear(120, 84),
        nn.Tanh(),
        nn.Linear(84, classes),
    )


def resnet(depth: int, width: int, channels: int, classes: int, batch_norm: bool = True) -> nn.Sequential:
    """CIFAR-style ResNet of 6n+2 layers: three stages of n blocks with `width`, 2 x and 4 x `width` filters.

    Shortcuts are parameter-free (subsampled, padded with zeros). Without batch norm, convolutions get biases and the
    last one of each block starts at zero, so that deep networks still begin near the identity.

    Reference: He, Zhang, Ren, Sun (2016), Deep Residual Learning for Image Recognition, section 4.2; the start at
    zero from Zhang, Dauphin, Ma (2019), Fixup Initialization.
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"depth must be 6n+2 with n at least 1 (8, 14, 20, ...), got depth={depth}")
    if width < 1:
        raise ValueError(f"width must be positive, got width={width}")
    layers: list[nn.Module] = [_convolution(channels, width, 1, batch_norm), nn.ReLU()]
    inner = width
    for stage in range(3):
        for block in range((depth - 2) // 6):
            outer = width * 2**stage
            layers.append(_Block(inner, outer, 2 if stage and not block else 1, batch_norm))
            inner = outer
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inner, classes))


def _convolution(inner: int, outer: int, stride: int, batch_norm: bool) -> nn.Sequential:
    convolution = nn.Conv2d(inner, outer, 3, stride, 1, bias=not batch_norm)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    if not batch_norm:
        nn.init.zeros_(convolution.bias)
        return nn.Sequential(convolution)
    return nn.Sequential(convolution, nn.BatchNorm2d(outer))


class _Block(nn.Module):
    def __init__(self, inner: int, outer: int, stride: int, batch_norm: bool) -> None:
        super().__init__()
        self.first = _convolution(inner, outer, stride, batch_norm)
        self.second = _convolution(outer, outer, 1, batch_norm)
        self.stride, self.new = stride, outer - inner
        if not batch_norm:
            nn.init.zeros_(self.second[0].weight)

    def forward(self, x: Tensor) -> Tensor:
        change = self.second(torch.relu(self.first(x)))
        if self.stride > 1 or self.new:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new))
        return torch.relu(x + change)
