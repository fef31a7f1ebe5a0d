"""GoogLeNet with batch normalisation, under torchvision's parameter names.

A state dict published for torchvision's `googlenet` loads strictly into `GoogLeNet()`. `width`, `stem`, `in_channels`
and `num_classes` give smaller members of the same family.

Szegedy et al., "Going Deeper with Convolutions", CVPR 2015; Ioffe and Szegedy, "Batch Normalization", ICML 2015.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


class Filters(NamedTuple):
    """Filters of one inception module's convolutions, as in Table 1 of the paper."""

    conv1x1: int
    reduce3x3: int
    conv3x3: int
    reduce5x5: int
    conv5x5: int
    pool_projection: int


class Stem(NamedTuple):
    """What stands before the first inception module; it divides height and width by 8, 4, 2 or 1."""

    kernel: int
    stride: int
    early_pool: bool
    late_pool: bool
    input_size: int


INCEPTIONS = {
    "inception3a": Filters(64, 96, 128, 16, 32, 32),
    "inception3b": Filters(128, 128, 192, 32, 96, 64),
    "inception4a": Filters(192, 96, 208, 16, 48, 64),
    "inception4b": Filters(160, 112, 224, 24, 64, 64),
    "inception4c": Filters(128, 128, 256, 24, 64, 64),
    "inception4d": Filters(112, 144, 288, 32, 64, 64),
    "inception4e": Filters(256, 160, 320, 32, 128, 128),
    "inception5a": Filters(256, 160, 320, 32, 128, 128),
    "inception5b": Filters(384, 192, 384, 48, 128, 128),
}

STEMS = {
    "imagenet": Stem(kernel=7, stride=2, early_pool=True, late_pool=True, input_size=224),
    "small": Stem(kernel=3, stride=1, early_pool=False, late_pool=True, input_size=32),
    "pooled": Stem(kernel=3, stride=1, early_pool=True, late_pool=False, input_size=32),
    "twice-pooled": Stem(kernel=3, stride=1, early_pool=True, late_pool=True, input_size=32),
    "tiny": Stem(kernel=3, stride=1, early_pool=False, late_pool=False, input_size=16),
}


def scaled(filters: int, width: float) -> int:
    """`filters * width` to the nearest multiple of 8, at least 8: the widths of the paper are such multiples."""
    return max(8, int(filters * width / 8 + 0.5) * 8)


class BasicConv2d(nn.Module):
    """Convolution without bias, batch normalisation, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)), inplace=True)


class Inception(nn.Module):
    """Four branches side by side, concatenated: (B, in_channels, H, W) to (B, out_channels, H, W)."""

    def __init__(self, in_channels: int, filters: Filters) -> None:
        super().__init__()
        self.out_channels = filters.conv1x1 + filters.conv3x3 + filters.conv5x5 + filters.pool_projection
        self.branch1 = BasicConv2d(in_channels, filters.conv1x1, 1)
        self.branch2 = nn.Sequential(
            BasicConv2d(in_channels, filters.reduce3x3, 1), BasicConv2d(filters.reduce3x3, filters.conv3x3, 3)
        )
        # The paper has a 5x5 kernel here; torchvision's weights were trained with 3x3 (its issue 906).
        self.branch3 = nn.Sequential(
            BasicConv2d(in_channels, filters.reduce5x5, 1), BasicConv2d(filters.reduce5x5, filters.conv5x5, 3)
        )
        self.branch4 = nn.Sequential(
            nn.MaxPool2d(3, stride=1, padding=1, ceil_mode=True), BasicConv2d(in_channels, filters.pool_projection, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class InceptionAux(nn.Module):
    """Auxiliary classifier, for training only: (B, in_channels, H, W) to (B, num_classes)."""

    def __init__(self, in_channels: int, num_classes: int, width: float) -> None:
        super().__init__()
        filters = scaled(128, width)
        self.conv = BasicConv2d(in_channels, filters, 1)
        self.fc1 = nn.Linear(filters * 4 * 4, scaled(1024, width))
        self.fc2 = nn.Linear(scaled(1024, width), num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(functional.adaptive_avg_pool2d(x, (4, 4)))
        x = functional.relu(self.fc1(torch.flatten(x, 1)), inplace=True)
        logits: Tensor = self.fc2(functional.dropout(x, 0.7, self.training))
        return logits


class GoogLeNet(nn.Module):
    """The network; in training mode with `aux_logits` it returns (logits, aux2 logits, aux1 logits), else logits.

    Args:
        num_classes: size of the output, (B, num_classes).
        in_channels: of the input, (B, in_channels, H, W).
        width: multiplier of every layer's filters.
        stem: a key of `STEMS`.
        aux_logits: whether the two auxiliary classifiers exist.
        transform_input: expects ImageNet-normalised RGB and maps it to the (x - 0.5) / 0.5 of the published weights.
    """

    inception3a: Inception
    inception3b: Inception
    inception4a: Inception
    inception4b: Inception
    inception4c: Inception
    inception4d: Inception
    inception4e: Inception
    inception5a: Inception
    inception5b: Inception

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        in_channels: int = 3,
        width: float = 1.0,
        stem: str = "imagenet",
        aux_logits: bool = True,
        transform_input: bool = False,
    ) -> None:
        super().__init__()
        if transform_input and in_channels != 3:
            raise ValueError(f"transform_input maps RGB: it needs in_channels=3, not {in_channels}")
        self.in_channels, self.stem, self.transform_input = in_channels, stem, transform_input
        start = STEMS[stem]
        self.conv1 = BasicConv2d(in_channels, scaled(64, width), start.kernel, start.stride)
        self.maxpool1 = nn.MaxPool2d(3, stride=2, ceil_mode=True) if start.early_pool else nn.Identity()
        self.conv2 = BasicConv2d(scaled(64, width), scaled(64, width), 1)
        self.conv3 = BasicConv2d(scaled(64, width), scaled(192, width), 3)
        self.maxpool2 = nn.MaxPool2d(3, stride=2, ceil_mode=True) if start.late_pool else nn.Identity()
        channels = scaled(192, width)
        for name, filters in INCEPTIONS.items():
            module = Inception(channels, Filters(*(scaled(count, width) for count in filters)))
            self.add_module(name, module)
            channels = module.out_channels
            if name == "inception3b":
                self.maxpool3 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
            elif name == "inception4e":
                self.maxpool4 = nn.MaxPool2d(2, stride=2, ceil_mode=True)
        self.aux1 = InceptionAux(self.inception4a.out_channels, num_classes, width) if aux_logits else None
        self.aux2 = InceptionAux(self.inception4d.out_channels, num_classes, width) if aux_logits else None
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(channels, num_classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")

    def drop_auxiliary(self) -> GoogLeNet:
        """Remove the auxiliary classifiers, which no inference uses."""
        self.aux1 = self.aux2 = None
        return self

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        if self.transform_input:
            x = self._transform(x)
        x = self.maxpool1(self.conv1(x))
        x = self.maxpool2(self.conv3(self.conv2(x)))
        x = self.maxpool3(self.inception3b(self.inception3a(x)))
        behind_4a = self.inception4a(x)
        behind_4d = self.inception4d(self.inception4c(self.inception4b(behind_4a)))
        x = self.maxpool4(self.inception4e(behind_4d))
        x = self.inception5b(self.inception5a(x))
        logits: Tensor = self.fc(self.dropout(torch.flatten(self.avgpool(x), 1)))
        if self.training and self.aux1 is not None and self.aux2 is not None:
            return logits, self.aux2(behind_4d), self.aux1(behind_4a)
        return logits

    @staticmethod
    def _transform(x: Tensor) -> Tensor:
        scales, shifts = (0.229, 0.224, 0.225), (0.485, 0.456, 0.406)
        channels = [
            x[:, number : number + 1] * (scale / 0.5) + (shift - 0.5) / 0.5
            for number, (scale, shift) in enumerate(zip(scales, shifts, strict=True))
        ]
        return torch.cat(channels, 1)
