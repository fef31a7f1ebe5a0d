"""A small convolutional classifier of synthetic images, trained here in a second, and what damages it."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from export import to_onnx
from onnxcompress.graph import Model
from onnxcompress.passes.base import LABELS, PassContext, Provenance, Samples
from onnxcompress.passes.pruning import FilterPruning, PruningConfig

CLASSES = 4
SIZE = 12


def images(count: int, seed: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return noisy images (N, 1, 12, 12) of a bright stripe (standing or lying) in one of two halves, and classes."""
    drawn = np.random.default_rng(seed)
    labels = drawn.integers(0, CLASSES, count)
    pixels = drawn.normal(0.0, 0.7, (count, 1, SIZE, SIZE)).astype(np.float32)
    for image, label in zip(pixels, labels, strict=True):
        at = int(drawn.integers(1, 5)) + (6 if label % 2 else 0)
        if label < 2:
            image[0, at, :] += 1.0
        else:
            image[0, :, at] += 1.0
    return pixels, labels.astype(np.int64)


def samples(count: int, seed: int, *, labels: bool = False, batch: int = 32) -> Samples:
    """Return a callable that starts a stream of the images, named as the network's input."""
    pixels, classes = images(count, seed)

    def stream() -> Iterator[dict[str, npt.NDArray[np.generic]]]:
        for start in range(0, count, batch):
            part = {"input": pixels[start : start + batch]}
            yield {**part, LABELS: classes[start : start + batch]} if labels else part

    return stream


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = (
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(x + self.second(functional.relu(self.first(x))))


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        Residual(16),
        Residual(16),
        nn.Flatten(),
        nn.Linear(16 * 36, CLASSES),
        nn.Softmax(1),
    )


@functools.cache
def trained() -> bytes:
    """Return the trained network as ONNX, about 95 % right."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = network()
        optimizer = torch.optim.Adam(net.parameters(), 3e-3)
        pixels, labels = (torch.from_numpy(array) for array in images(1024, 1))
        for _ in range(150):
            at = torch.randperm(len(labels))[:64]
            loss = functional.nll_loss(net(pixels[at]).clamp_min(1e-6).log(), labels[at])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    proto = to_onnx(net, (pixels[:2],), opset=17, output_names=["prob"], dynamic_batch=True)
    return bytes(proto.SerializeToString())


def original() -> Model:
    return Model.from_bytes(trained())


def pruned(ratio: float = 0.7) -> tuple[Model, Provenance]:
    """Return the network with the weakest filters gone and nothing done about it."""
    model, config = original(), PruningConfig(ratio)
    result = FilterPruning(config).apply(model, FilterPruning(config).plan(model, PassContext()), PassContext())
    return result.model, result.provenance


def accuracy(model: Model, seed: int = 99) -> float:
    """Return the share of 500 fresh images that the model recognises, by onnxruntime."""
    import onnxruntime

    pixels, labels = images(500, seed)
    session = onnxruntime.InferenceSession(model.to_bytes(), providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {"input": pixels})
    return float((scores.argmax(1) == labels).mean())
