"""Exports GoogLeNet to ONNX: `python models/export.py --weights googlenet.pth --out googlenet.onnx`.

Takes a state dict as published for torchvision's googlenet, or a checkpoint written by `train.py`, which carries the
network's configuration with it. Without `--weights` the weights are random, from `--seed`.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import pickle
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import onnx
import torch
from torch import Tensor, nn

from googlenet import STEMS, GoogLeNet

Exporter = Literal["torchscript", "dynamo"]

# What the exporters say about themselves: the old one that it is the old one, and notes about torch's own insides.
EXPORTER_NOTES = (
    "You are using the legacy TorchScript-based ONNX export",
    "The feature will be removed",
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    "It is recommended that constant folding be turned off",
)


def to_onnx(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    *,
    exporter: Exporter = "torchscript",
    opset: int | None = None,
    input_names: Sequence[str] = ("input",),
    output_names: Sequence[str] = ("logits",),
    dynamic_batch: bool = False,
    keep_batchnorm: bool = False,
) -> onnx.ModelProto:
    """Export `model` in evaluation mode.

    Args:
        model: left in evaluation mode.
        inputs: example inputs, (B, ...) each; B >= 2 with a dynamic batch, because torch.export specialises on 1.
        exporter: torch's TorchScript exporter or its torch.export-based one.
        opset: of the default domain; None takes the exporter's own default.
        input_names, output_names: names of the graph's inputs and outputs.
        dynamic_batch: the first axis of every input and output is named `batch` and left open.
        keep_batchnorm: keep the BatchNormalization nodes that both exporters fold into the Conv before them;
            TorchScript only.
    """
    if keep_batchnorm and exporter == "dynamo":
        raise ValueError("the dynamo exporter always folds BatchNormalization: keep_batchnorm needs torchscript")
    model.eval()
    common: dict[str, Any] = {
        "opset_version": opset,
        "input_names": list(input_names),
        "output_names": list(output_names),
    }
    with warnings.catch_warnings():
        for message in EXPORTER_NOTES:
            warnings.filterwarnings("ignore", message=message)
        if exporter == "dynamo":
            open_axes = tuple({0: torch.export.Dim("batch")} for _ in inputs) if dynamic_batch else None
            program = torch.onnx.export(model, inputs, dynamo=True, dynamic_shapes=open_axes, verbose=False, **common)
            assert program is not None
            return program.model_proto
        stream = io.BytesIO()
        names = (*input_names, *output_names)
        torch.onnx.export(
            model,
            inputs,
            stream,  # type: ignore[arg-type]  # the old exporter takes one; the new one's annotation stands for both
            dynamo=False,
            dynamic_axes={name: {0: "batch"} for name in names} if dynamic_batch else None,
            training=torch.onnx.TrainingMode.PRESERVE if keep_batchnorm else torch.onnx.TrainingMode.EVAL,
            **common,
        )
        return onnx.load_model_from_string(stream.getvalue())


def load_network(weights: Path | None, defaults: Mapping[str, Any]) -> GoogLeNet:
    """Build GoogLeNet without auxiliary heads; a checkpoint's own configuration goes before `defaults`."""
    if weights is None:
        return GoogLeNet(**defaults, aux_logits=False)
    try:
        checkpoint = torch.load(weights, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise SystemExit(f"{weights}: cannot be read as a torch checkpoint ({error})") from error
    state = checkpoint.get("state_dict", checkpoint)
    configuration = {**defaults, **checkpoint.get("config", {})}
    network = GoogLeNet(**configuration, aux_logits="aux1.fc1.weight" in state)
    try:
        network.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise SystemExit(f"{weights}: does not fit the network of {configuration}: {error}") from error
    return network.drop_auxiliary()


def write_model(path: Path, model: onnx.ModelProto) -> None:
    """Write `model`; the file appears whole or not at all."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(model.SerializeToString(deterministic=True))
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Export GoogLeNet to ONNX.")
    parser.add_argument("--model", choices=["googlenet"], default="googlenet")
    parser.add_argument("--weights", type=Path, help="state dict or checkpoint (default: random weights)")
    parser.add_argument("--out", type=Path, required=True, help="the .onnx file to write")
    parser.add_argument("--exporter", choices=["torchscript", "dynamo"], default="torchscript")
    parser.add_argument("--opset", type=int, help="default: the exporter's own")
    parser.add_argument("--dynamic-batch", action="store_true", help="leave the batch size open")
    parser.add_argument("--keep-batchnorm", action="store_true", help="do not fold BatchNormalization (torchscript)")
    parser.add_argument("--transform-input", action="store_true", help="for torchvision's published weights")
    parser.add_argument("--seed", type=int, default=0, help="of random weights")
    parser.add_argument("--num-classes", type=int, default=1000)
    parser.add_argument("--in-channels", type=int, default=3)
    parser.add_argument("--size", type=int, help="input height and width (default: the stem's, 224 for imagenet)")
    parser.add_argument("--width", type=float, default=1.0, help="multiplier of every layer's filters")
    parser.add_argument("--stem", choices=sorted(STEMS), default="imagenet")
    arguments = parser.parse_args(argv)
    if arguments.keep_batchnorm and arguments.exporter == "dynamo":
        parser.error("--keep-batchnorm needs --exporter torchscript: the dynamo exporter always folds")
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse(argv)
    torch.manual_seed(arguments.seed)
    names = ("num_classes", "in_channels", "width", "stem", "transform_input")
    network = load_network(arguments.weights, {name: getattr(arguments, name) for name in names})
    size = arguments.size or STEMS[network.stem].input_size
    example = torch.randn(2 if arguments.dynamic_batch else 1, network.in_channels, size, size)
    model = to_onnx(
        network,
        (example,),
        exporter=arguments.exporter,
        opset=arguments.opset,
        dynamic_batch=arguments.dynamic_batch,
        keep_batchnorm=arguments.keep_batchnorm,
    )
    onnx.checker.check_model(model, full_check=True)
    write_model(arguments.out, model)
    logging.info("%s: %d bytes", arguments.out, arguments.out.stat().st_size)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
