"""Networks held together by Concat: DenseNet, Inception-v3; and Xception, their separable relative."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.zoo.blocks import Classifier, ConvBn
from tests.zoo.entry import entry

IMAGE = (2, 3, 32, 32)


class DenseLayer(nn.Module):
    """BatchNorm, ReLU, 1x1, BatchNorm, ReLU, 3x3 over everything before it (Huang et al., CVPR 2017)."""

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.conv1(torch.relu(self.norm1(torch.cat(features, 1))))
        return self.conv2(torch.relu(self.norm2(x)))


class DenseBlock(nn.Module):
    def __init__(self, in_channels: int, growth: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DenseLayer(in_channels + n * growth, growth) for n in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(features))
        return torch.cat(features, 1)


class DenseNet(nn.Module):
    def __init__(self, growth: int = 8) -> None:
        super().__init__()
        layers: list[nn.Module] = [ConvBn(3, 16, 3, 2)]
        channels = 16
        for depth in (3, 4):
            layers.append(DenseBlock(channels, growth, depth))
            channels += depth * growth
            layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels // 2, 1, bias=False)]
            layers.append(nn.AvgPool2d(2))
            channels //= 2
        layers += [DenseBlock(channels, growth, 2), nn.BatchNorm2d(channels + 2 * growth), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.head = Classifier(channels + 2 * growth)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x))


def rectangular(in_channels: int, out_channels: int, kernel: tuple[int, int]) -> nn.Module:
    """Convolution with a kernel of (kH, kW), batch normalisation, ReLU; same padding."""
    padding = (kernel[0] // 2, kernel[1] // 2)
    convolution = nn.Conv2d(in_channels, out_channels, kernel, padding=padding, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels, eps=0.001), nn.ReLU())


class InceptionA(nn.Module):
    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.branch1x1 = ConvBn(in_channels, 16, 1)
        self.branch5x5 = nn.Sequential(ConvBn(in_channels, 12, 1), ConvBn(12, 16, 5))
        self.double3x3 = nn.Sequential(ConvBn(in_channels, 16, 1), ConvBn(16, 24, 3), ConvBn(24, 24, 3))
        self.pool = nn.Sequential(nn.AvgPool2d(3, 1, 1), ConvBn(in_channels, 8, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1x1(x), self.branch5x5(x), self.double3x3(x), self.pool(x)], 1)


class ReductionB(nn.Module):
    """Halves the map: strided conv, strided double conv, and the pooled input itself."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.branch3x3 = ConvBn(in_channels, 32, 3, 2)
        self.double3x3 = nn.Sequential(ConvBn(in_channels, 16, 1), ConvBn(16, 24, 3), ConvBn(24, 24, 3, 2))

    def forward(self, x: Tensor) -> Tensor:
        pooled = nn.functional.max_pool2d(x, 3, 2, 1)
        return torch.cat([self.branch3x3(x), self.double3x3(x), pooled], 1)


class InceptionC(nn.Module):
    """1x7 and 7x1 in turn."""

    def __init__(self, in_channels: int, inner: int) -> None:
        super().__init__()
        self.branch1x1 = ConvBn(in_channels, 24, 1)
        self.branch7x7 = nn.Sequential(
            ConvBn(in_channels, inner, 1), rectangular(inner, inner, (1, 7)), rectangular(inner, 24, (7, 1))
        )
        self.pool = nn.Sequential(nn.AvgPool2d(3, 1, 1), ConvBn(in_channels, 24, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1x1(x), self.branch7x7(x), self.pool(x)], 1)


class InceptionE(nn.Module):
    """A concat inside a concat: 1x3 beside 3x1."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.branch1x1 = ConvBn(in_channels, 24, 1)
        self.reduce = ConvBn(in_channels, 20, 1)
        self.wide, self.high = rectangular(20, 16, (1, 3)), rectangular(20, 16, (3, 1))

    def forward(self, x: Tensor) -> Tensor:
        reduced = self.reduce(x)
        split = torch.cat([self.wide(reduced), self.high(reduced)], 1)
        return torch.cat([self.branch1x1(x), split], 1)


class InceptionV3(nn.Module):
    """Szegedy et al., CVPR 2016."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            ConvBn(3, 16, 3, 2),
            ConvBn(16, 24, 3),
            InceptionA(24),
            InceptionA(64),
            ReductionB(64),
            InceptionC(120, 20),
            InceptionE(72),
        )
        self.head = Classifier(56)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x))


class Separable(nn.Sequential):
    """Depthwise 3x3, 1x1, batch normalisation."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False),
            nn.Conv2d(in_channels, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )


class XceptionBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.ReLU(),
            Separable(in_channels, out_channels),
            nn.ReLU(),
            Separable(out_channels, out_channels),
        ]
        if stride > 1:
            layers.append(nn.MaxPool2d(3, stride, 1))
        self.body = nn.Sequential(*layers)
        fits = stride == 1 and in_channels == out_channels
        self.skip = nn.Identity() if fits else ConvBn(in_channels, out_channels, 1, stride, activation=None)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.skip(x)


class Xception(nn.Module):
    """Chollet, CVPR 2017."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            ConvBn(3, 16, 3, 2),
            ConvBn(16, 32, 3, activation=None),
            XceptionBlock(32, 48, 2),
            XceptionBlock(48, 64, 2),
            XceptionBlock(64, 64, 1),
            nn.ReLU(),
            Separable(64, 96),
            nn.ReLU(),
        )
        self.head = Classifier(96)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x))


CONCATENATED = {
    "densenet": entry(DenseNet, IMAGE),
    "inception-v3": entry(InceptionV3, IMAGE),
    "xception": entry(Xception, IMAGE),
}
