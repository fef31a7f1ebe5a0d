"""Residual networks: chains of blocks that share one width across a stage."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.zoo.blocks import Classifier, ConvBn, SqueezeExcite
from tests.zoo.entry import entry

IMAGE = (2, 3, 32, 32)


class BasicBlock(nn.Module):
    """Two 3x3 (He et al., CVPR 2016)."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, _groups: int, _inner: int) -> None:
        super().__init__()
        self.conv1 = ConvBn(in_channels, width, 3, stride)
        self.conv2 = ConvBn(width, width, 3, activation=None)
        fits = stride == 1 and in_channels == width
        self.downsample = nn.Identity() if fits else ConvBn(in_channels, width, 1, stride, activation=None)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv2(self.conv1(x)) + self.downsample(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 (grouped in ResNeXt, wider in Wide ResNet), 1x1."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, groups: int, inner: int) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = ConvBn(in_channels, inner, 1)
        self.conv2 = ConvBn(inner, inner, 3, stride, groups=groups)
        self.conv3 = ConvBn(inner, out_channels, 1, activation=None)
        fits = stride == 1 and in_channels == out_channels
        self.downsample = nn.Identity() if fits else ConvBn(in_channels, out_channels, 1, stride, activation=None)

    def forward(self, x: Tensor) -> Tensor:
        identity = self.downsample(x)
        x = self.conv3(self.conv2(self.conv1(x)))
        x += identity
        return torch.relu(x)


class ResNet(nn.Module):
    """Stem, three stages, classifier; `inner` is the bottleneck's inner width over the stage's width."""

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, ...],
        *,
        width: int = 16,
        groups: int = 1,
        inner: float = 1.0,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(ConvBn(3, width, 7, 2), nn.MaxPool2d(3, 2, 1))
        channels = width
        stages = []
        for number, depth in enumerate(depths):
            for position in range(depth):
                stage_width = width * 2**number
                stride = 2 if position == 0 and number > 0 else 1
                stages.append(block(channels, stage_width, stride, groups, int(stage_width * inner)))
                channels = stage_width * block.expansion
        self.stages = nn.Sequential(*stages)
        self.head = Classifier(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(x)))


class PreActivationBlock(nn.Module):
    """BatchNorm and ReLU before each convolution, as Wide ResNet for CIFAR has them (Zagoruyko and Komodakis 2016)."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(0.3)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.shortcut = None if in_channels == width else nn.Conv2d(in_channels, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = torch.relu(self.bn1(x))
        out = self.conv2(self.dropout(torch.relu(self.bn2(self.conv1(activated)))))
        return out + (x if self.shortcut is None else self.shortcut(activated))


class WideResNet(nn.Module):
    def __init__(self, widen: int = 2) -> None:
        super().__init__()
        widths = [16, 16 * widen, 16 * widen, 32 * widen, 32 * widen]
        strides = [1, 1, 2, 1]
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.blocks = nn.Sequential(
            *(PreActivationBlock(widths[n], widths[n + 1], stride) for n, stride in enumerate(strides))
        )
        self.bn = nn.BatchNorm2d(widths[-1])
        self.head = Classifier(widths[-1])

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.bn(self.blocks(self.conv1(x)))))


class RegNetBlock(nn.Module):
    """1x1, grouped 3x3, squeeze-excite in RegNetY, 1x1 (Radosavovic et al., CVPR 2020)."""

    def __init__(self, in_channels: int, width: int, stride: int, group_width: int, squeeze: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            ConvBn(in_channels, width, 1),
            ConvBn(width, width, 3, stride, groups=width // group_width),
        ]
        if squeeze:
            layers.append(SqueezeExcite(width, in_channels // 4))
        layers.append(ConvBn(width, width, 1, activation=None))
        self.body = nn.Sequential(*layers)
        fits = stride == 1 and in_channels == width
        self.shortcut = nn.Identity() if fits else ConvBn(in_channels, width, 1, stride, activation=None)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.shortcut(x) + self.body(x))


class RegNet(nn.Module):
    def __init__(self, squeeze: bool, group_width: int = 8) -> None:
        super().__init__()
        channels = 16
        layers: list[nn.Module] = [ConvBn(3, channels, 3, 2)]
        for width, depth in ((24, 1), (56, 2), (88, 2)):
            for position in range(depth):
                layers.append(RegNetBlock(channels, width, 2 if position == 0 else 1, group_width, squeeze))
                channels = width
        self.layers = nn.Sequential(*layers)
        self.head = Classifier(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x))


class GroupNormBlock(nn.Module):
    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm1 = nn.GroupNorm(groups, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))


class GroupNormNet(nn.Module):
    """Residual network normalised by groups of channels (Wu and He, ECCV 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 24, 3, 2, 1),
            GroupNormBlock(24, 4),
            nn.Conv2d(24, 32, 3, 2, 1),
            GroupNormBlock(32, 8),
        )
        self.head = Classifier(32)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x))


RESIDUAL = {
    "resnet-basic": entry(lambda: ResNet(BasicBlock, (2, 2, 2)), IMAGE),
    "resnet-bottleneck": entry(lambda: ResNet(Bottleneck, (2, 2, 1), width=8), IMAGE),
    "resnext": entry(lambda: ResNet(Bottleneck, (1, 2, 1), width=16, groups=8, inner=2.0), IMAGE),
    "wide-resnet-bottleneck": entry(lambda: ResNet(Bottleneck, (1, 1, 1), width=12, inner=2.0), IMAGE),
    "wide-resnet": entry(WideResNet, IMAGE),
    "regnet-x": entry(lambda: RegNet(squeeze=False), IMAGE),
    "regnet-y": entry(lambda: RegNet(squeeze=True), IMAGE),
    "resnet-groupnorm": entry(GroupNormNet, IMAGE),
}
