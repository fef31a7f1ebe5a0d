"""One and three dimensions, several inputs, recurrence."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.zoo.blocks import ConvBn
from tests.zoo.entry import entry


def conv1d(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Module:
    convolution = nn.Conv1d(in_channels, out_channels, kernel, stride, kernel // 2)
    return nn.Sequential(convolution, nn.BatchNorm1d(out_channels), nn.ReLU())


class AudioBlock(nn.Module):
    """Dilated residual over time, as WaveNet's relatives have it."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, 3, padding=dilation, dilation=dilation)
        self.gate = nn.Conv1d(channels, channels, 3, padding=dilation, dilation=dilation)
        self.project = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.project(torch.tanh(self.conv(x)) * torch.sigmoid(self.gate(x)))


class AudioNet(nn.Module):
    """Raw samples: a long strided kernel, dilated residuals, mean over time (after Dai et al., ICASSP 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            conv1d(1, 24, 21, 4),
            nn.MaxPool1d(4),
            AudioBlock(24, 1),
            AudioBlock(24, 2),
            conv1d(24, 40, 3),
            nn.AvgPool1d(2),
            conv1d(40, 40, 3),
        )
        self.fc = nn.Linear(40, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.log_softmax(self.fc(self.layers(x).mean(2)), 1)


class VideoBlock(nn.Module):
    """2-D in space, then 1-D in time, with a residual (Tran et al., CVPR 2018)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.space = nn.Conv3d(in_channels, 24, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False)
        self.norm1 = nn.BatchNorm3d(24)
        self.time = nn.Conv3d(24, out_channels, (3, 1, 1), (stride, 1, 1), (1, 0, 0), bias=False)
        self.norm2 = nn.BatchNorm3d(out_channels)
        self.shortcut = nn.Conv3d(in_channels, out_channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm2(self.time(torch.relu(self.norm1(self.space(x)))))
        return torch.relu(out + self.shortcut(x))


class VideoNet(nn.Module):
    """3x3x3 first, then factorised blocks; Flatten to Gemm over 1x2x2 positions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv3d(3, 12, 3, padding=1), nn.BatchNorm3d(12), nn.ReLU(), nn.MaxPool3d(2))
        self.blocks = nn.Sequential(VideoBlock(12, 16, 1), VideoBlock(16, 32, 2))
        self.pool = nn.AvgPool3d(2)
        self.fc = nn.Linear(32 * 1 * 2 * 2, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.blocks(self.stem(x))).flatten(1))


class Siamese(nn.Module):
    """Two inputs through one tower: every weight is used by two convolutions; two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(ConvBn(3, 16, 3, 2), ConvBn(16, 32, 3, 2), ConvBn(32, 24, 3))
        self.merge = nn.Sequential(ConvBn(48, 32, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.same = nn.Linear(32, 1)

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        first, second = self.tower(left), self.tower(right)
        distance = (first - second).abs().mean((1, 2, 3))
        return self.same(self.merge(torch.cat([first, second], 1))), distance


class Crnn(nn.Module):
    """Convolutions read a line of text, an LSTM what they saw: its state is left alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            ConvBn(1, 16),
            nn.MaxPool2d(2),
            ConvBn(16, 32),
            nn.MaxPool2d((2, 1)),
            ConvBn(32, 24, 3),
            nn.MaxPool2d((4, 1)),
        )
        self.lstm = nn.LSTM(24, 20, bidirectional=True, batch_first=True)
        self.fc = nn.Linear(40, 12)

    def forward(self, x: Tensor) -> Tensor:
        columns = self.layers(x).squeeze(2).permute(0, 2, 1)
        return self.fc(self.lstm(columns)[0])


SIGNALS = {
    "audio-1d": entry(AudioNet, (2, 1, 512)),
    "video-3d": entry(VideoNet, (2, 3, 8, 16, 16)),
    "siamese": entry(Siamese, (2, 3, 32, 32), (2, 3, 32, 32)),
    "crnn": entry(Crnn, (2, 1, 16, 32)),
}
