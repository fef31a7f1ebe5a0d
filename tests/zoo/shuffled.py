"""Channel shuffle: ShuffleNet 1 and 2."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.zoo.blocks import Classifier, ConvBn
from tests.zoo.entry import entry

IMAGE = (2, 3, 32, 32)


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Reshape (B, C, H, W) to (B, groups, C / groups, H, W), swap, reshape back."""
    batch, channels, height, width = x.shape
    x = x.view(batch, groups, channels // groups, height, width)
    return x.transpose(1, 2).contiguous().view(batch, -1, height, width)


class UnitV1(nn.Module):
    """Grouped 1x1, shuffle, depthwise, grouped 1x1; added, or concatenated with a pool where it strides."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, groups: int) -> None:
        super().__init__()
        self.groups, self.stride = groups, stride
        hidden = out_channels // 4
        added = out_channels - in_channels if stride > 1 else out_channels
        self.reduce = ConvBn(in_channels, hidden, 1, groups=groups)
        self.depthwise = ConvBn(hidden, hidden, 3, stride, groups=hidden, activation=None)
        self.expand = ConvBn(hidden, added, 1, groups=groups, activation=None)
        self.pool = nn.AvgPool2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.expand(self.depthwise(channel_shuffle(self.reduce(x), self.groups)))
        if self.stride > 1:
            return torch.relu(torch.cat([self.pool(x), out], 1))
        return torch.relu(x + out)


class ShuffleNetV1(nn.Module):
    """Zhang et al., CVPR 2018."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            ConvBn(3, 24, 3, 2),
            UnitV1(24, 96, 2, groups),
            UnitV1(96, 96, 1, groups),
            UnitV1(96, 192, 2, groups),
            UnitV1(192, 192, 1, groups),
        )
        self.head = Classifier(192)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x))


class UnitV2(nn.Module):
    """Split in two, one half through 1x1, depthwise, 1x1, concatenated and shuffled; two full branches with stride."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        half = out_channels // 2
        self.branch1 = nn.Sequential(
            ConvBn(in_channels, in_channels, 3, 2, groups=in_channels, activation=None), ConvBn(in_channels, half, 1)
        )
        self.branch2 = nn.Sequential(
            ConvBn(in_channels if stride > 1 else half, half, 1),
            ConvBn(half, half, 3, stride, groups=half, activation=None),
            ConvBn(half, half, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.stride > 1:
            return channel_shuffle(torch.cat([self.branch1(x), self.branch2(x)], 1), 2)
        kept, changed = x.chunk(2, dim=1)
        return channel_shuffle(torch.cat([kept, self.branch2(changed)], 1), 2)


class ShuffleNetV2(nn.Module):
    """Ma et al., ECCV 2018."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            ConvBn(3, 24, 3, 2),
            UnitV2(24, 48, 2),
            UnitV2(48, 48, 1),
            UnitV2(48, 48, 1),
            UnitV2(48, 96, 2),
            UnitV2(96, 96, 1),
            ConvBn(96, 128, 1),
        )
        self.fc = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layers(x).mean([2, 3]))


SHUFFLED = {
    "shufflenet-v1-g2": entry(lambda: ShuffleNetV1(2), IMAGE),
    "shufflenet-v1-g3": entry(lambda: ShuffleNetV1(3), IMAGE),
    "shufflenet-v2": entry(ShuffleNetV2, IMAGE),
}
