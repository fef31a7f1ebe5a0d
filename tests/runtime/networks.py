"""Small classifiers, images and data files for the tests of the runtime and the evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from onnxcompress.runtime.tensors import TensorInfo


def proto_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, tuple[int, Sequence[int | str | None]]],
    outputs: dict[str, tuple[int, Sequence[int | str | None]]],
    constants: dict[str, Any] | None = None,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info(name, *about) for name, about in inputs.items()],
        [helper.make_tensor_value_info(name, *about) for name, about in outputs.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def classifier(
    *,
    batch: int | str = "n",
    channels: int = 3,
    size: int | None = 8,
    classes: int = 4,
    seed: int = 0,
    softmax: bool = False,
    name: str = "x",
) -> onnx.ModelProto:
    """Conv 3x3 -> Relu -> global average pool -> Flatten -> Gemm (-> Softmax)."""
    generator = np.random.default_rng(seed)
    width = 5
    constants = {
        "w": generator.standard_normal((width, channels, 3, 3), dtype=np.float32),
        "b": generator.standard_normal(width, dtype=np.float32),
        "v": generator.standard_normal((width, classes), dtype=np.float32),
    }
    nodes = [
        helper.make_node("Conv", [name, "w", "b"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "v"], ["s" if softmax else "y"], "gemm"),
    ]
    if softmax:
        nodes.append(helper.make_node("Softmax", ["s"], ["y"], "softmax"))
    side: int | str = size if size is not None else "side"
    shapes = {name: (TensorProto.FLOAT, (batch, channels, side, side))}
    return proto_of(nodes, shapes, {"y": (TensorProto.FLOAT, (batch, classes))}, constants)


def identity(
    shape: Sequence[int | str | None], dtype: int = TensorProto.FLOAT, output_shape: Sequence[int | str | None] = ()
) -> onnx.ModelProto:
    """y = x."""
    node = helper.make_node("Identity", ["x"], ["y"], "same")
    return proto_of([node], {"x": (dtype, shape)}, {"y": (dtype, output_shape or shape)})


def image_input(
    channels: int = 3, size: int | None = 8, batch: int | None = None, dtype: type = np.float32
) -> TensorInfo:
    return TensorInfo("x", np.dtype(dtype), (batch, channels, size, size))


def save_image(path: Path, seed: int = 0, size: tuple[int, int] = (8, 8)) -> np.ndarray:
    """Write a random PNG of (height, width); return its pixels (H, W, 3)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def image_folder(folder: Path, count: int, classes: int = 4) -> np.ndarray:
    """Write `count` images and labels.csv; return the pixels (N, H, W, 3)."""
    pixels = [save_image(folder / f"{n:03}.png", seed=n) for n in range(count)]
    lines = [f"{n:03}.png,{n % classes}" for n in range(count)]
    (folder / "labels.csv").write_text("file,label\n" + "\n".join(lines) + "\n")
    return np.stack(pixels)
