"""Depthwise networks: MobileNet 1 to 3, MNASNet, EfficientNet, GhostNet."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tests.zoo.blocks import Classifier, ConvBn, SqueezeExcite
from tests.zoo.entry import entry

IMAGE = (2, 3, 32, 32)


class MobileNetV1(nn.Module):
    """Depthwise 3x3 and 1x1 in turn (Howard et al. 2017)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [ConvBn(3, 16, 3, 2)]
        channels = 16
        for width, stride in ((32, 1), (48, 2), (48, 1), (96, 2)):
            layers += [ConvBn(channels, channels, 3, stride, groups=channels), ConvBn(channels, width, 1)]
            channels = width
        self.layers = nn.Sequential(*layers)
        self.head = Classifier(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x))


class Stage(NamedTuple):
    """One inverted residual block."""

    out_channels: int
    expand: float
    kernel: int
    stride: int
    squeeze: bool = False
    activation: Callable[[], nn.Module] = nn.ReLU6


class InvertedResidual(nn.Module):
    """1x1 up, depthwise, squeeze-excite, linear 1x1 down; residual where shapes allow (Sandler et al., CVPR 2018)."""

    def __init__(self, in_channels: int, stage: Stage, gate: Callable[[], nn.Module], squeeze_by: int) -> None:
        super().__init__()
        hidden = int(in_channels * stage.expand)
        layers: list[nn.Module] = []
        if hidden != in_channels:
            layers.append(ConvBn(in_channels, hidden, 1, activation=stage.activation))
        layers.append(ConvBn(hidden, hidden, stage.kernel, stage.stride, groups=hidden, activation=stage.activation))
        if stage.squeeze:
            layers.append(SqueezeExcite(hidden, max(4, hidden // squeeze_by), stage.activation, gate))
        layers.append(ConvBn(hidden, stage.out_channels, 1, activation=None))
        self.block = nn.Sequential(*layers)
        self.residual = stage.stride == 1 and in_channels == stage.out_channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x) if self.residual else self.block(x)


class InvertedResidualNet(nn.Module):
    """Stem, inverted residuals, 1x1, head: what MobileNetV2, V3, MNASNet and EfficientNet have in common."""

    def __init__(
        self,
        stages: tuple[Stage, ...],
        *,
        activation: Callable[[], nn.Module] = nn.ReLU6,
        gate: Callable[[], nn.Module] = nn.Sigmoid,
        squeeze_by: int = 4,
        hidden_head: bool = False,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [ConvBn(3, 16, 3, 2, activation=activation)]
        channels = 16
        for stage in stages:
            layers.append(InvertedResidual(channels, stage, gate, squeeze_by))
            channels = stage.out_channels
        layers.append(ConvBn(channels, 96, 1, activation=activation))
        self.layers = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier: nn.Module = nn.Sequential(nn.Dropout(0.2), nn.Linear(96, 10))
        if hidden_head:
            self.classifier = nn.Sequential(nn.Linear(96, 64), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.pool(self.layers(x)), 1))


def mobilenet_v2() -> nn.Module:
    return InvertedResidualNet((Stage(16, 1, 3, 1), Stage(24, 6, 3, 2), Stage(24, 6, 3, 1), Stage(32, 6, 3, 2)))


def mobilenet_v3() -> nn.Module:
    swish = nn.Hardswish
    stages = (
        Stage(16, 1, 3, 2, True, nn.ReLU),
        Stage(24, 4.5, 3, 1, False, nn.ReLU),
        Stage(24, 3.5, 3, 1, False, nn.ReLU),
        Stage(40, 4, 5, 2, True, swish),
        Stage(40, 6, 5, 1, True, swish),
    )
    return InvertedResidualNet(stages, activation=swish, gate=nn.Hardsigmoid, hidden_head=True)


def mnasnet() -> nn.Module:
    stages = (Stage(16, 1, 3, 1), Stage(24, 3, 3, 2), Stage(24, 3, 3, 1), Stage(40, 3, 5, 2), Stage(40, 3, 5, 1))
    return InvertedResidualNet(tuple(stage._replace(activation=nn.ReLU) for stage in stages), activation=nn.ReLU)


def efficientnet() -> nn.Module:
    stages = (
        Stage(16, 1, 3, 1, True),
        Stage(24, 6, 3, 2, True),
        Stage(24, 6, 3, 1, True),
        Stage(40, 6, 5, 2, True),
        Stage(40, 6, 5, 1, True),
    )
    silu = tuple(stage._replace(activation=nn.SiLU) for stage in stages)
    return InvertedResidualNet(silu, activation=nn.SiLU, squeeze_by=24)


class GhostModule(nn.Module):
    """Half of the channels by 1x1, the rest by a depthwise conv of them; a slice where the width is odd."""

    def __init__(self, in_channels: int, out_channels: int, activated: bool = True) -> None:
        super().__init__()
        self.out_channels = out_channels
        primary = math.ceil(out_channels / 2)
        activation = nn.ReLU if activated else None
        self.primary = ConvBn(in_channels, primary, 1, activation=activation)
        self.cheap = ConvBn(primary, primary, 3, groups=primary, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        primary = self.primary(x)
        return torch.cat([primary, self.cheap(primary)], 1)[:, : self.out_channels]


class GhostBottleneck(nn.Module):
    """Ghost module up, depthwise stride, squeeze-excite, ghost module down (Han et al., CVPR 2020)."""

    def __init__(self, in_channels: int, hidden: int, out_channels: int, stride: int, squeeze: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = [GhostModule(in_channels, hidden)]
        if stride > 1:
            layers.append(ConvBn(hidden, hidden, 3, stride, groups=hidden, activation=None))
        if squeeze:
            layers.append(SqueezeExcite(hidden, hidden // 4, gate=nn.Hardsigmoid))
        layers.append(GhostModule(hidden, out_channels, activated=False))
        self.body = nn.Sequential(*layers)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                ConvBn(in_channels, in_channels, 3, stride, groups=in_channels, activation=None),
                ConvBn(in_channels, out_channels, 1, activation=None),
            )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.shortcut(x)


class GhostNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            ConvBn(3, 16, 3, 2),
            GhostBottleneck(16, 16, 16, 1, False),
            GhostBottleneck(16, 48, 25, 2, False),
            GhostBottleneck(25, 72, 25, 1, True),
            GhostBottleneck(25, 72, 40, 2, True),
            ConvBn(40, 96, 1),
        )
        self.head = Classifier(96)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x))


MOBILE = {
    "mobilenet-v1": entry(MobileNetV1, IMAGE),
    "mobilenet-v2": entry(mobilenet_v2, IMAGE),
    "mobilenet-v3": entry(mobilenet_v3, IMAGE),
    "mnasnet": entry(mnasnet, IMAGE),
    "efficientnet": entry(efficientnet, IMAGE),
    "ghostnet": entry(GhostNet, IMAGE),
}
