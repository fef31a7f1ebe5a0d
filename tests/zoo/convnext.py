"""Channels last inside the block: ConvNeXt; and convolution beside attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.zoo.blocks import ConvBn
from tests.zoo.entry import entry

IMAGE = (2, 3, 32, 32)


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNextBlock(nn.Module):
    """Depthwise 7x7, permute, LayerNorm, Linear, GELU, Linear, layer scale, permute back (Liu et al., CVPR 2022)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.expand = nn.Linear(channels, 4 * channels)
        self.reduce = nn.Linear(4 * channels, channels)
        self.scale = nn.Parameter(0.2 + 0.6 * torch.rand(channels))

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        out = self.scale * self.reduce(nn.functional.gelu(self.expand(out)))
        return x + out.permute(0, 3, 1, 2)


class ConvNext(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 4, stride=4),
            LayerNorm2d(16, eps=1e-6),
            ConvNextBlock(16),
            LayerNorm2d(16, eps=1e-6),
            nn.Conv2d(16, 32, 2, stride=2),
            ConvNextBlock(32),
            ConvNextBlock(32),
        )
        self.norm = nn.LayerNorm(32, eps=1e-6)
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.layers(x).mean((2, 3))))


class Attention(nn.Module):
    """Self-attention over the positions of a map: (B, C, H, W) to the same."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.project = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        tokens = self.norm(x.flatten(2).transpose(1, 2))
        qkv = self.qkv(tokens).reshape(batch, height * width, 3, self.heads, channels // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        weights = torch.softmax(query @ key.transpose(-2, -1) * (channels // self.heads) ** -0.5, -1)
        mixed = (weights @ value).transpose(1, 2).reshape(batch, height * width, channels)
        return x + self.project(mixed).transpose(1, 2).reshape(batch, channels, height, width)


class AttentionHybrid(nn.Module):
    """Convolutions around one attention block: what attention touches stays, the rest can be compressed."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(ConvBn(3, 16, 3, 2), ConvBn(16, 24, 3, 2), ConvBn(24, 32, 3, 2))
        self.attention = Attention(32, 4)
        self.tail = nn.Sequential(ConvBn(32, 48, 3), ConvBn(48, 40, 1))
        self.fc = nn.Linear(40, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.tail(self.attention(self.layers(x))).mean((2, 3)))


CONVNEXT = {
    "convnext": entry(ConvNext, IMAGE),
    "attention-hybrid": entry(AttentionHybrid, IMAGE),
}
