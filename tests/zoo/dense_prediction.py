"""One output a pixel: U-Net, FCN, DeepLab, HRNet, super-resolution, style transfer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.zoo.blocks import ConvBn
from tests.zoo.entry import entry

IMAGE = (2, 3, 32, 32)


def double(in_channels: int, out_channels: int) -> nn.Module:
    return nn.Sequential(ConvBn(in_channels, out_channels), ConvBn(out_channels, out_channels))


class UNet(nn.Module):
    """Down by pooling, up by ConvTranspose, skips concatenated (Ronneberger et al., MICCAI 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = double(3, 12), double(12, 24), double(24, 48)
        self.up2 = nn.ConvTranspose2d(48, 24, 2, stride=2)
        self.merge2 = double(48, 24)
        self.up1 = nn.ConvTranspose2d(24, 12, 2, stride=2)
        self.merge1 = double(24, 12)
        self.out = nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.down1(x)
        coarse = self.down2(functional.max_pool2d(fine, 2))
        bottom = self.bottom(functional.max_pool2d(coarse, 2))
        coarse = self.merge2(torch.cat([coarse, self.up2(bottom)], 1))
        return self.out(self.merge1(torch.cat([fine, self.up1(coarse)], 1)))


class UNetBilinear(nn.Module):
    """Up by bilinear Resize; the skip is padded to fit, as widely copied implementations do."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.bottom = double(3, 12), double(12, 24)
        self.merge = double(36, 12)
        self.out = nn.Conv2d(12, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.down(x)
        up = functional.interpolate(
            self.bottom(functional.max_pool2d(fine, 2)), scale_factor=2, mode="bilinear", align_corners=True
        )
        height, width = fine.shape[2] - up.shape[2], fine.shape[3] - up.shape[3]
        up = functional.pad(up, [width // 2, width - width // 2, height // 2, height - height // 2])
        return torch.sigmoid(self.out(self.merge(torch.cat([fine, up], 1))))


class Backbone(nn.Module):
    """Features at 1/2, 1/4 and 1/8."""

    def __init__(self) -> None:
        super().__init__()
        self.stage1, self.stage2, self.stage3 = ConvBn(3, 16, 3, 2), ConvBn(16, 24, 3, 2), ConvBn(24, 40, 3, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fine = self.stage1(x)
        middle = self.stage2(fine)
        return fine, middle, self.stage3(middle)


class Fcn(nn.Module):
    """Class scores of two depths summed, up by ConvTranspose and Resize (Long et al., CVPR 2015)."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.head = nn.Sequential(ConvBn(40, 32), nn.Dropout(0.1), nn.Conv2d(32, classes, 1))
        self.skip = nn.Conv2d(24, classes, 1)
        self.up = nn.ConvTranspose2d(classes, classes, 4, stride=2, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        _, middle, coarse = self.backbone(x)
        scores = self.up(self.head(coarse)) + self.skip(middle)
        return functional.interpolate(scores, size=x.shape[-2:], mode="bilinear", align_corners=False)


class DeepLab(nn.Module):
    """Dilated branches, image pooling, Resize, a low-level skip (DeepLabV3+: Chen et al., ECCV 2018)."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.branches = nn.ModuleList([ConvBn(40, 16, 1), ConvBn(40, 16, 3, dilation=2), ConvBn(40, 16, 3, dilation=4)])
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvBn(40, 16, 1))
        self.project = nn.Sequential(ConvBn(64, 24, 1), nn.Dropout(0.5))
        self.low = ConvBn(16, 8, 1)
        self.classify = nn.Sequential(ConvBn(32, 24), nn.Conv2d(24, classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        fine, _, coarse = self.backbone(x)
        size = coarse.shape[-2:]
        pooled = functional.interpolate(self.pooled(coarse), size=size, mode="bilinear", align_corners=False)
        mixed = self.project(torch.cat([*(branch(coarse) for branch in self.branches), pooled], 1))
        mixed = functional.interpolate(mixed, size=fine.shape[-2:], mode="bilinear", align_corners=False)
        scores = self.classify(torch.cat([self.low(fine), mixed], 1))
        return functional.interpolate(scores, size=x.shape[-2:], mode="bilinear", align_corners=False)


class Fusion(nn.Module):
    """Every resolution becomes the sum of all of them (Wang et al., TPAMI 2020)."""

    def __init__(self, widths: tuple[int, int, int]) -> None:
        super().__init__()
        high, middle, low = widths
        self.middle_to_high = ConvBn(middle, high, 1, activation=None)
        self.low_to_high = ConvBn(low, high, 1, activation=None)
        self.high_to_middle = ConvBn(high, middle, 3, 2, activation=None)
        self.low_to_middle = ConvBn(low, middle, 1, activation=None)
        self.high_to_low = nn.Sequential(ConvBn(high, high, 3, 2), ConvBn(high, low, 3, 2, activation=None))
        self.middle_to_low = ConvBn(middle, low, 3, 2, activation=None)

    def forward(self, high: Tensor, middle: Tensor, low: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        up = functional.interpolate
        to_high = high + up(self.middle_to_high(middle), scale_factor=2.0) + up(self.low_to_high(low), scale_factor=4.0)
        to_middle = self.high_to_middle(high) + middle + up(self.low_to_middle(low), scale_factor=2.0)
        to_low = self.high_to_low(high) + self.middle_to_low(middle) + low
        return torch.relu(to_high), torch.relu(to_middle), torch.relu(to_low)


class HrNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        widths = (12, 24, 40)
        self.stem = ConvBn(3, 12, 3, 2)
        self.to_middle, self.to_low = ConvBn(12, 24, 3, 2), ConvBn(24, 40, 3, 2)
        self.branches = nn.ModuleList(double(width, width) for width in widths)
        self.fusion1, self.fusion2 = Fusion(widths), Fusion(widths)
        self.head = nn.Sequential(ConvBn(sum(widths), 48, 1), nn.Conv2d(48, 6, 1))

    def forward(self, x: Tensor) -> Tensor:
        high = self.stem(x)
        middle = self.to_middle(high)
        features = self.fusion1(high, middle, self.to_low(middle))
        features = self.fusion2(*(branch(feature) for branch, feature in zip(self.branches, features, strict=True)))
        size = features[0].shape[-2:]
        up = [functional.interpolate(feature, size=size, mode="bilinear") for feature in features[1:]]
        return self.head(torch.cat([features[0], *up], 1))


class SuperResolution(nn.Module):
    """PReLU, a global residual, DepthToSpace (after Shi et al., CVPR 2016, and Ledig et al., CVPR 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 24, 5, padding=2), nn.PReLU(24, init=0.2))
        self.body = nn.Sequential(
            nn.Conv2d(24, 32, 3, padding=1), nn.PReLU(init=0.1), nn.Conv2d(32, 24, 3, padding=1), nn.BatchNorm2d(24)
        )
        self.up = nn.Sequential(nn.Conv2d(24, 16 * 4, 3, padding=1), nn.PixelShuffle(2), nn.PReLU(16, init=0.3))
        self.out = nn.Sequential(nn.Conv2d(16, 3 * 4, 3, padding=1), nn.PixelShuffle(2), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        return self.out(self.up(first + self.body(first)))


class StyleTransfer(nn.Module):
    """Reflection padding, InstanceNorm with and without weights, nearest Resize (Johnson et al., ECCV 2016)."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(
            nn.ReflectionPad2d(2),
            nn.Conv2d(3, 12, 5),
            nn.InstanceNorm2d(12, affine=True),
            nn.ReLU(),
            nn.Conv2d(12, 24, 3, stride=2, padding=1),
            nn.InstanceNorm2d(24),
            nn.LeakyReLU(0.1),
        )
        self.residual = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(24, 24, 3),
            nn.InstanceNorm2d(24, affine=True),
            nn.ELU(),
            nn.ReflectionPad2d(1),
            nn.Conv2d(24, 24, 3),
            nn.InstanceNorm2d(24, affine=True),
        )
        self.up = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(24, 12, 3, padding=1), nn.Softplus()
        )
        self.out = nn.Conv2d(12, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        return torch.tanh(self.out(self.up(x + self.residual(x)))).clamp(-0.9, 0.9)


DENSE_PREDICTION = {
    "unet": entry(UNet, IMAGE),
    "unet-bilinear": entry(UNetBilinear, IMAGE),
    "fcn": entry(Fcn, IMAGE),
    "deeplab": entry(DeepLab, (2, 3, 64, 64)),
    "hrnet": entry(HrNet, IMAGE),
    "super-resolution": entry(SuperResolution, (2, 3, 16, 16)),
    "style-transfer": entry(StyleTransfer, IMAGE),
}
