"""Trains a network of the GoogLeNet family; without options the one of `googlenet-digits.onnx`.

`python models/train.py --out googlenet-digits.onnx` takes the digits written by `digits.py` and a few minutes on one
thread. The seed fixes the result on one machine and one version of torch.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import torch
from torch import Tensor
from torch.nn import functional

from export import to_onnx, write_model
from googlenet import STEMS, GoogLeNet


class Split(NamedTuple):
    """Images (N, C, H, W) uint8 and their labels (N,) int64."""

    images: Tensor
    labels: Tensor


def read_split(path: Path) -> Split:
    """Read `images` uint8 (N, H, W, C) and `labels` (N,) of an .npz file; SystemExit where it cannot."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images, labels = arrays["images"], arrays["labels"]
    except (OSError, KeyError, ValueError) as error:
        raise SystemExit(f"{path}: cannot be read as .npz with images and labels ({error})") from error
    if images.dtype != np.uint8 or images.ndim != 4 or labels.shape != images.shape[:1]:
        raise SystemExit(
            f"{path}: expected images uint8 (N, H, W, C) and labels (N,), "
            f"found {images.dtype} {images.shape} and {labels.shape}"
        )
    return Split(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels.astype(np.int64)))


def to_input(images: Tensor) -> Tensor:
    """Scale uint8 to float32 in [0, 1]: the preset `unit`."""
    return images.to(torch.float32) / 255


def shifted(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Move each image by up to `padding` pixels in both directions, zeros moving in."""
    if padding == 0:
        return images
    count, _, height, width = images.shape
    padded = functional.pad(images, (padding,) * 4)
    tops, lefts = torch.randint(0, 2 * padding + 1, (2, count), generator=generator).tolist()
    windows = zip(padded, tops, lefts, strict=True)
    return torch.stack([image[:, top : top + height, left : left + width] for image, top, left in windows])


def accuracy(network: GoogLeNet, split: Split) -> float:
    """Top-1 accuracy in percent."""
    network.eval()
    with torch.inference_mode():
        hits = sum(
            int((network(to_input(images)).argmax(1) == labels).sum())
            for images, labels in zip(split.images.split(256), split.labels.split(256), strict=True)
        )
    return 100 * hits / len(split.labels)


def train(network: GoogLeNet, split: Split, *, epochs: int, batch: int, rate: float, padding: int, seed: int) -> None:
    """Train by AdamW under a one-cycle schedule; the last weights are kept, no test image decides anything."""
    generator = torch.Generator().manual_seed(seed)
    steps = len(split.labels) // batch
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=epochs * steps)
    start = time.monotonic()
    for epoch in range(epochs):
        network.train()
        total = 0.0
        order = torch.randperm(len(split.labels), generator=generator)
        for chosen in order[: steps * batch].split(batch):
            images = shifted(split.images[chosen], padding, generator)
            loss = functional.cross_entropy(network(to_input(images)), split.labels[chosen], label_smoothing=0.1)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        logging.info("epoch %d/%d: loss %.4f, %.0f s", epoch + 1, epochs, total / steps, time.monotonic() - start)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train a network of the GoogLeNet family.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--train", type=Path, default=Path("models/digits-train.npz"), help="images and labels, .npz")
    parser.add_argument("--test", type=Path, default=Path("models/digits-test.npz"), help="the same, for the last line")
    parser.add_argument("--out", type=Path, help="the .onnx file to write")
    parser.add_argument("--weights", type=Path, help="the checkpoint to write, for export.py")
    parser.add_argument("--width", type=float, default=0.25, help="multiplier of every layer's filters")
    parser.add_argument("--stem", choices=sorted(STEMS), default="small")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--rate", type=float, default=4e-3, help="highest learning rate")
    parser.add_argument("--padding", type=int, default=4, help="images are shifted by up to so many pixels")
    parser.add_argument("--opset", type=int, default=17)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args(argv)
    if arguments.out is None and arguments.weights is None:
        parser.error("nothing to write: give --out, --weights or both")
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse(argv)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    training, test = read_split(arguments.train), read_split(arguments.test)
    config = {
        "num_classes": int(training.labels.max()) + 1,
        "in_channels": training.images.shape[1],
        "width": arguments.width,
        "stem": arguments.stem,
    }
    network = GoogLeNet(**config, aux_logits=False)
    train(
        network,
        training,
        epochs=arguments.epochs,
        batch=arguments.batch,
        rate=arguments.rate,
        padding=arguments.padding,
        seed=arguments.seed,
    )
    logging.info("top-1 on %d test images: %.2f %%", len(test.labels), accuracy(network, test))
    if arguments.weights is not None:
        temporary = arguments.weights.with_name(f".{arguments.weights.name}.tmp")
        torch.save({"config": config, "state_dict": network.state_dict()}, temporary)
        os.replace(temporary, arguments.weights)
    if arguments.out is not None:
        model = to_onnx(network, (to_input(test.images[:2]),), opset=arguments.opset, dynamic_batch=True)
        onnx.checker.check_model(model, full_check=True)
        write_model(arguments.out, model)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
