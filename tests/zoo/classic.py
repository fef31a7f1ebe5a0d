"""Plain stacks and branches: AlexNet, VGG, SqueezeNet, GoogLeNet."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from googlenet import GoogLeNet
from tests.zoo.entry import entry

IMAGE = (2, 3, 32, 32)


class AlexNet(nn.Module):
    """Large kernels with stride, overlapping pools, three Linear layers over a flattened 3x3 map."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 24, 11, stride=4, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(24, 48, 5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(48, 64, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(64, 40, 3, padding=1),
            nn.ReLU(inplace=True),
        )
        self.classifier = nn.Sequential(
            nn.Dropout(),
            nn.Linear(40 * 3 * 3, 96),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(96, 64),
            nn.ReLU(inplace=True),
            nn.Linear(64, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))


class Vgg(nn.Module):
    """3x3 stacks; Flatten to Gemm with 4x4 positions a channel."""

    def __init__(self, batchnorm: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in (16, 16, 0, 32, 32, 0, 48, 48, 0):
            if width == 0:
                layers.append(nn.MaxPool2d(2))
                continue
            layers.append(nn.Conv2d(channels, width, 3, padding=1))
            if batchnorm:
                layers.append(nn.BatchNorm2d(width))
            layers.append(nn.ReLU(inplace=True))
            channels = width
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((4, 4))
        self.classifier = nn.Sequential(
            nn.Linear(48 * 4 * 4, 64), nn.ReLU(True), nn.Dropout(), nn.Linear(64, 10), nn.Softmax(1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class Fire(nn.Module):
    """Squeeze 1x1, expand 1x1 beside 3x3, concatenated."""

    def __init__(self, in_channels: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(in_channels, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.squeeze(x))
        return torch.cat([torch.relu(self.expand1x1(x)), torch.relu(self.expand3x3(x))], 1)


class SqueezeNet(nn.Module):
    """Fire modules, a classifier that is a Conv."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 32, 3, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, ceil_mode=True),
            Fire(32, 8, 24),
            Fire(48, 8, 24),
            nn.MaxPool2d(3, stride=2, ceil_mode=True),
            Fire(48, 12, 32),
        )
        self.classifier = nn.Sequential(
            nn.Dropout(), nn.Conv2d(64, 10, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(self.classifier(self.features(x)), 1)


def googlenet(**options: object) -> nn.Module:
    return GoogLeNet(10, width=0.125, aux_logits=False, **options)  # type: ignore[arg-type]


CLASSIC = {
    "alexnet": entry(AlexNet, (2, 3, 63, 63)),
    "vgg": entry(lambda: Vgg(batchnorm=False), IMAGE),
    "vgg-bn": entry(lambda: Vgg(batchnorm=True), IMAGE),
    "squeezenet": entry(SqueezeNet, (2, 3, 64, 64)),
    "googlenet": entry(lambda: googlenet(stem="small"), IMAGE),
    "googlenet-transform": entry(lambda: googlenet(transform_input=True), (2, 3, 64, 64)),
}
