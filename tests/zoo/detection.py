"""Backbone, neck and several outputs: YOLO."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.zoo.blocks import ConvBn
from tests.zoo.entry import entry


def conv(in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1) -> nn.Module:
    return ConvBn(in_channels, out_channels, kernel, stride, activation=nn.SiLU)


class Focus(nn.Module):
    """Space to depth by strided slices, as YOLOv5's first layer."""

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.conv = conv(12, out_channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        corners = [x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]]
        return self.conv(torch.cat(corners, 1))


class Residual(nn.Module):
    def __init__(self, channels: int, shortcut: bool) -> None:
        super().__init__()
        self.shortcut = shortcut
        self.body = nn.Sequential(conv(channels, channels, 3), conv(channels, channels, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.shortcut else self.body(x)


class C2f(nn.Module):
    """1x1, chunk in two, residuals in a row, everything concatenated, 1x1 (YOLOv8)."""

    def __init__(self, in_channels: int, out_channels: int, depth: int, shortcut: bool) -> None:
        super().__init__()
        half = out_channels // 2
        self.first = conv(in_channels, 2 * half)
        self.last = conv((2 + depth) * half, out_channels)
        self.blocks = nn.ModuleList(Residual(half, shortcut) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.first(x).chunk(2, 1))
        for block in self.blocks:
            parts.append(block(parts[-1]))
        return self.last(torch.cat(parts, 1))


class C3(nn.Module):
    """Two 1x1 side by side, residuals on one, concatenated, 1x1 (YOLOv5)."""

    def __init__(self, in_channels: int, out_channels: int, depth: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.left, self.right = conv(in_channels, half), conv(in_channels, half)
        self.blocks = nn.Sequential(*(Residual(half, True) for _ in range(depth)))
        self.last = conv(2 * half, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.cat([self.blocks(self.left(x)), self.right(x)], 1))


class Sppf(nn.Module):
    """Three pools in a row, all concatenated."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.last = conv(channels, channels // 2), conv(2 * channels, channels)
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        pooled = [self.first(x)]
        for _ in range(3):
            pooled.append(self.pool(pooled[-1]))
        return self.last(torch.cat(pooled, 1))


class Head(nn.Module):
    """Boxes and classes by separate convolutions, concatenated."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.box = nn.Sequential(conv(channels, 16, 3), nn.Conv2d(16, 4 * 4, 1))
        self.cls = nn.Sequential(conv(channels, 16, 3), nn.Conv2d(16, classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.box(x), torch.sigmoid(self.cls(x))], 1)


class YoloV8(nn.Module):
    """Feature pyramid up and down again, one output each at 1/8 and 1/16, or both flattened into one."""

    def __init__(self, classes: int = 4, flattened: bool = False) -> None:
        super().__init__()
        self.flattened = flattened
        self.fine = nn.Sequential(conv(3, 12, 3, 2), conv(12, 24, 3, 2), C2f(24, 24, 1, True), conv(24, 32, 3, 2))
        self.fine_block = C2f(32, 32, 2, True)
        self.coarse = nn.Sequential(conv(32, 48, 3, 2), C2f(48, 48, 1, True), Sppf(48))
        self.up_block = C2f(80, 32, 1, False)
        self.down = conv(32, 32, 3, 2)
        self.down_block = C2f(80, 48, 1, False)
        self.head_fine, self.head_coarse = Head(32, classes), Head(48, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        fine = self.fine_block(self.fine(x))
        coarse = self.coarse(fine)
        merged = self.up_block(torch.cat([functional.interpolate(coarse, scale_factor=2.0), fine], 1))
        lowered = self.down_block(torch.cat([self.down(merged), coarse], 1))
        outputs = (self.head_fine(merged), self.head_coarse(lowered))
        if self.flattened:
            return (torch.cat([output.flatten(2) for output in outputs], 2),)
        return outputs


class YoloV5(nn.Module):
    """Anchors as YOLOv5 has them: (B, 2 * 9, H, W) viewed as (B, 2, H, W, 9)."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(Focus(16), conv(16, 24, 3, 2), C3(24, 24, 1), conv(24, 32, 3, 2), Sppf(32))
        self.detect = nn.Conv2d(32, 2 * 9, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.detect(self.backbone(x))
        batch, _, height, width = out.shape
        return out.view(batch, 2, 9, height, width).permute(0, 1, 3, 4, 2).contiguous()


DETECTION = {
    "yolov8": entry(YoloV8, (2, 3, 64, 64)),
    "yolov8-flattened": entry(lambda: YoloV8(flattened=True), (2, 3, 64, 64)),
    "yolov5": entry(YoloV5, (2, 3, 64, 64)),
}
