"""Trains a network of the GoogLeNet family; without options the one of `googlenet-digits.onnx`.

`python models/train.py --out googlenet-digits.onnx` takes the digits written by `digits.py` and a few minutes on one
thread. The seed fixes the result on one machine and one version of torch.

`torchrun --nproc-per-node N models/train.py ...` shares each batch among N processes: GPUs, or cores of a CPU.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import pickle
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from export import to_onnx, write_model
from googlenet import STEMS, GoogLeNet
from onnxcompress.errors import OnnxCompressError
from onnxcompress.runtime.data import open_dataset
from onnxcompress.runtime.preprocess import Preprocess
from onnxcompress.runtime.tensors import TensorInfo

# Pixels as they are; images of another size are resized to cover it, and their centre is cropped.
AS_PIXELS = Preprocess("pixels", adaptable=True)

_DECIDE_NOTHING = ("test", "out", "weights", "checkpoint", "resume", "opset", "threads", "verbose")
"""Options that may change when a training goes on."""


class Split(NamedTuple):
    """Images (N, H, W, C) uint8 and their labels (N,) int64."""

    images: Tensor
    labels: Tensor


class Processes(NamedTuple):
    """Which of how many processes this is."""

    rank: int = 0
    size: int = 1


def read_split(path: Path, split: str, size: int, channels: int) -> Split:
    """Decode a folder of images or an .npz file, whole, in every form that `onnxcompress --train` takes images in.

    `split` chooses between the parts of a file that holds several.

    Raises:
        SystemExit: it cannot be read, or has no labels.
    """
    info = TensorInfo("pixels", np.dtype(np.uint8), (None, size, size, channels))
    try:
        dataset = open_dataset(path, [info], preprocess=AS_PIXELS, split=split)
        if not dataset.has_labels:
            raise SystemExit(f"{path}: has no labels")
        batches = [(batch.inputs["pixels"], batch.labels) for batch in dataset.batches(500)]
    except OnnxCompressError as error:
        raise SystemExit(str(error)) from error
    images, labels = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
    return Split(torch.from_numpy(images), torch.from_numpy(labels))


def to_input(images: Tensor) -> Tensor:
    """Scale uint8 (N, H, W, C) to float32 (N, C, H, W) in [0, 1], the preset `unit`; the memory keeps channels last."""
    return images.permute(0, 3, 1, 2).to(torch.float32) / 255


def varied(images: Tensor, size: int, padding: int, generator: torch.Generator, *, mirror: bool = False) -> Tensor:
    """Cut a random square of `size` out of each image (N, H, W, C) within `padding` zeros; mirror every second.

    He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2.
    """
    count, height, width, _ = images.shape
    padded = functional.pad(images, (0, 0, padding, padding, padding, padding))
    tops = torch.randint(0, height + 2 * padding - size + 1, (count, 1), generator=generator)
    lefts = torch.randint(0, width + 2 * padding - size + 1, (count, 1), generator=generator)
    rows, columns = tops + torch.arange(size), lefts + torch.arange(size)
    if mirror:
        flipped = torch.rand(count, 1, generator=generator) < 0.5
        columns = torch.where(flipped, columns.flip(1), columns)
    rows, columns = rows.to(images.device), columns.to(images.device)
    numbers = torch.arange(count, device=images.device)
    return padded[numbers[:, None, None], rows[:, :, None], columns[:, None, :]]


def cut_out(images: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Blacken a square of up to `side` pixels in each image (N, H, W, C), its centre anywhere in it.

    DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", arXiv:1708.04552, 2017.
    """
    count, height, width, _ = images.shape
    tops = torch.randint(0, height, (count, 1), generator=generator) - side // 2
    lefts = torch.randint(0, width, (count, 1), generator=generator) - side // 2
    rows, columns = torch.arange(height) - tops, torch.arange(width) - lefts
    rows, columns = (rows >= 0) & (rows < side), (columns >= 0) & (columns < side)
    return images.masked_fill((rows[:, :, None] & columns[:, None, :])[..., None].to(images.device), 0)


def accuracy(network: nn.Module, split: Split, device: torch.device) -> float:
    """Top-1 accuracy in percent."""
    network.eval()
    with torch.inference_mode():
        hits = sum(
            int((network(to_input(images.to(device))).argmax(1) == labels.to(device)).sum())
            for images, labels in zip(split.images.split(250), split.labels.split(250), strict=True)
        )
    return 100 * hits / len(split.labels)


class Progress:
    """A training: network, optimizer and schedule, kept in a file after every epoch where one is named."""

    def __init__(self, network: GoogLeNet, arguments: argparse.Namespace, steps: int) -> None:
        self.network = network
        self.done = 0
        self._file: Path | None = arguments.checkpoint
        self._options = {name: str(value) for name, value in vars(arguments).items() if name not in _DECIDE_NOTHING}
        self.optimizer = _optimizer(network, arguments)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, max_lr=arguments.rate, total_steps=arguments.epochs * steps
        )

    def _parts(self) -> dict[str, Any]:
        return {"network": self.network, "optimizer": self.optimizer, "schedule": self.schedule}

    def save(self) -> None:
        """Write what another run needs to go on; the file appears whole or not at all."""
        if self._file is not None:
            states = {name: part.state_dict() for name, part in self._parts().items()}
            write_checkpoint(self._file, {**states, "done": self.done, "options": self._options})

    def load(self) -> None:
        """Go on from the file, where it is there.

        Raises:
            SystemExit: it is no checkpoint, or one of a training with other options.
        """
        if self._file is None or not self._file.exists():
            return
        saved = read_checkpoint(self._file, "--checkpoint", ("options", "done", *self._parts()))
        other = [name for name, value in self._options.items() if saved["options"].get(name) != value]
        if other:
            words = ", ".join(f"--{name.replace('_', '-')} {saved['options'].get(name)}" for name in other)
            raise SystemExit(f"{self._file}: belongs to a training with {words}; give that, or leave --resume out")
        for name, part in self._parts().items():
            part.load_state_dict(saved[name])
        self.done = saved["done"]
        logging.info("%s: goes on after epoch %d", self._file, self.done)


def train(progress: Progress, split: Split, arguments: argparse.Namespace, processes: Processes) -> None:
    """Train under a one-cycle schedule; the last weights are kept, no test image decides anything."""
    device = next(progress.network.parameters()).device
    network: nn.Module = progress.network
    if processes.size > 1:
        network = nn.parallel.DistributedDataParallel(network)
    share = arguments.batch // processes.size
    steps = len(split.labels) // arguments.batch
    # All of them at once: small images, which are cut and mirrored where they are used.
    split = Split(split.images.to(device), split.labels.to(device))
    start = time.monotonic()
    for epoch in range(progress.done, arguments.epochs):
        network.train()
        total = torch.zeros((), dtype=torch.float64, device=device)
        size = split.images.shape[1]
        if epoch < arguments.early_epochs:
            size = arguments.early_size or size
        # One order in every process, which takes its share of each batch and varies it in its own way.
        order = torch.randperm(len(split.labels), generator=_generator(arguments.seed, epoch, 0))
        generator = _generator(arguments.seed, epoch, 1 + processes.rank)
        torch.manual_seed(generator.initial_seed())  # of dropout, so that a resumed run is the same
        for step in range(steps):
            first = step * arguments.batch + processes.rank * share
            chosen = order[first : first + share].to(device)
            images = varied(split.images[chosen], size, arguments.padding, generator, mirror=arguments.mirror)
            if arguments.cutout:
                images = cut_out(images, arguments.cutout, generator)
            with torch.autocast(device.type, torch.bfloat16, enabled=arguments.bf16):
                logits = network(to_input(images))
                loss = functional.cross_entropy(logits, split.labels[chosen], label_smoothing=0.1)
            progress.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            progress.optimizer.step()
            progress.schedule.step()
            total += loss.detach()  # not read here: that would wait for an accelerator at every step
            if step % 50 == 49:
                logging.debug(
                    "step %d: loss %.4f, %.0f s", step + 1, float(total) / (step + 1), time.monotonic() - start
                )
        progress.done = epoch + 1
        seconds = time.monotonic() - start
        if processes.rank == 0:
            logging.info("epoch %d/%d: loss %.4f, %.0f s", epoch + 1, arguments.epochs, float(total) / steps, seconds)
            progress.save()


def _optimizer(network: nn.Module, arguments: argparse.Namespace) -> torch.optim.Optimizer:
    if arguments.optimizer == "adamw":
        return torch.optim.AdamW(network.parameters(), lr=arguments.rate, weight_decay=0.05)
    return torch.optim.SGD(
        network.parameters(), lr=arguments.rate, momentum=0.9, nesterov=True, weight_decay=5e-4, foreach=True
    )


def _generator(*seeds: int) -> torch.Generator:
    state = np.random.SeedSequence(seeds).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> 1))


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a torch file; it appears whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    torch.save(content, temporary)
    os.replace(temporary, path)


def load_weights(network: nn.Module, config: dict[str, Any], path: Path) -> None:
    """Give a network the weights that an earlier training of the same network wrote."""
    saved = read_checkpoint(path, "--weights", ("config", "state_dict"))
    if saved["config"] != config:
        raise SystemExit(
            f"{path}: belongs to the network {saved['config']}, not to {config}; give the options it was made with"
        )
    network.load_state_dict(saved["state_dict"])


def read_checkpoint(path: Path, option: str, keys: Sequence[str]) -> dict[str, Any]:
    """Return what `write_checkpoint` wrote.

    Raises:
        SystemExit: it is not what `option` writes, or lacks one of the keys.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        return {key: saved[key] for key in keys}
    except (OSError, EOFError, LookupError, TypeError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:200]
        raise SystemExit(f"{path}: is no checkpoint of {option} ({reason})") from error


@contextlib.contextmanager
def joined_processes() -> Iterator[Processes]:
    """Join the processes that torchrun started, where it did."""
    if "WORLD_SIZE" not in os.environ:
        yield Processes()
        return
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield Processes(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train a network of the GoogLeNet family.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    data = "a folder of images, or .npz with images and labels"
    parser.add_argument("--train", type=Path, default=Path("models/digits-train.npz"), help=data)
    parser.add_argument("--test", type=Path, default=Path("models/digits-test.npz"), help="the same, for the last line")
    parser.add_argument("--out", type=Path, help="the .onnx file to write")
    parser.add_argument("--weights", type=Path, help="the checkpoint to write, for export.py")
    parser.add_argument("--start", type=Path, help="a checkpoint of --weights to begin with, instead of random weights")
    parser.add_argument("--checkpoint", type=Path, help="where progress is kept after every epoch")
    parser.add_argument("--resume", action="store_true", help="go on from --checkpoint")
    parser.add_argument("--width", type=float, default=0.25, help="multiplier of every layer's filters")
    parser.add_argument("--stem", choices=sorted(STEMS), default="small")
    parser.add_argument("--size", type=int, help="height and width of the input (default: the stem's)")
    parser.add_argument("--channels", type=int, choices=[1, 3], default=1, help="1: grey, 3: RGB")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=48, help="images of a step, in all processes together")
    parser.add_argument("--optimizer", choices=["adamw", "sgd"], default="adamw")
    parser.add_argument("--rate", type=float, default=4e-3, help="highest learning rate")
    parser.add_argument("--padding", type=int, default=4, help="images are shifted by up to so many pixels")
    parser.add_argument("--mirror", action="store_true", help="mirror every second image")
    parser.add_argument("--cutout", type=int, default=0, help="blacken a square of this side in each image; 0: none")
    parser.add_argument("--early-size", type=int, help="train on squares of this size first, which is faster")
    parser.add_argument("--early-epochs", type=int, default=0, help="for so many epochs")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16 where torch's autocast does")
    parser.add_argument("--opset", type=int, default=17)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("-v", "--verbose", action="store_true", help="report within epochs")
    arguments = parser.parse_args(argv)
    if arguments.out is None and arguments.weights is None:
        parser.error("nothing to write: give --out, --weights or both")
    if arguments.resume and arguments.checkpoint is None:
        parser.error("--resume goes on from a file: give --checkpoint")
    problem = next(_problems(arguments), None)
    if problem is not None:
        parser.error(problem)
    return arguments


def _problems(arguments: argparse.Namespace) -> Iterator[str]:
    """Find what would end the run only after a while, at worst once the training is done."""
    for name in ("out", "weights", "checkpoint"):
        path: Path | None = getattr(arguments, name)
        if path is not None and (path.is_dir() or not os.access(path.parent, os.W_OK)):
            yield f"--{name} {path}: is a folder, or lies in none that can be written to"
    for name in ("epochs", "batch", "threads", "width", "rate"):
        if not getattr(arguments, name) > 0:
            yield f"--{name} {getattr(arguments, name)}: expected a number above 0"
    for name in ("padding", "cutout", "early_epochs", "seed"):
        if getattr(arguments, name) < 0:
            yield f"--{name.replace('_', '-')} {getattr(arguments, name)}: expected 0 or more"
    most = (arguments.size or STEMS[arguments.stem].input_size) + 2 * arguments.padding
    if arguments.early_size is not None and not 0 < arguments.early_size <= most:
        yield f"--early-size {arguments.early_size}: expected at most {most}, the size with --padding on both sides"


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse(argv)
    logging.getLogger().setLevel(logging.DEBUG if arguments.verbose else logging.INFO)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    size = arguments.size or STEMS[arguments.stem].input_size
    training = read_split(arguments.train, "train", size, arguments.channels)
    test = read_split(arguments.test, "test", size, arguments.channels)
    classes = int(training.labels.max()) + 1
    if int(test.labels.max()) >= classes:
        raise SystemExit(
            f"{arguments.test}: label {int(test.labels.max())} is not a class of {arguments.train}, which has {classes}"
        )
    config = {
        "num_classes": classes,
        "in_channels": arguments.channels,
        "width": arguments.width,
        "stem": arguments.stem,
    }
    with joined_processes() as processes:
        if arguments.batch % processes.size or len(training.labels) < arguments.batch:
            raise SystemExit(
                f"--batch {arguments.batch}: {processes.size} processes need equal shares of it, "
                f"and the {len(training.labels)} training images at least one batch"
            )
        device = torch.device("cuda", processes.rank) if torch.cuda.is_available() else torch.device("cpu")
        network = GoogLeNet(**config, aux_logits=False)
        if arguments.start is not None:
            load_weights(network, config, arguments.start)
        network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        progress = Progress(network, arguments, len(training.labels) // arguments.batch)
        if arguments.resume:
            progress.load()
        train(progress, training, arguments, processes)
    if processes.rank == 0:
        write(network, config, test, arguments, device)


def write(
    network: GoogLeNet, config: dict[str, Any], test: Split, arguments: argparse.Namespace, device: torch.device
) -> None:
    """Say how good the network is and write what was asked for."""
    logging.info("top-1 on %d test images: %.2f %%", len(test.labels), accuracy(network, test, device))
    network.to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    if arguments.weights is not None:
        write_checkpoint(arguments.weights, {"config": config, "state_dict": network.state_dict()})
    if arguments.out is not None:
        example = to_input(test.images[:2]).contiguous()
        model = to_onnx(network, (example,), opset=arguments.opset, dynamic_batch=True)
        onnx.checker.check_model(model, full_check=True)
        write_model(arguments.out, model)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
