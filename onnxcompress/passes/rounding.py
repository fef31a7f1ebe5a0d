"""How much a network makes of a rounding: its weights moved by the last place that they hold.

A rewrite that is exact in numbers rounds elsewhere. Where a network differs from itself by as much, once its weights
are moved by one unit in the last place, no comparison tells such a rewrite from a wrong one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxcompress.graph import Model
from onnxcompress.operators import LAYERS
from onnxcompress.passes.execution import WeightMakers

Array = npt.NDArray[Any]


def moved_weights(model: Model, made: WeightMakers, seed: int) -> WeightMakers:
    """Return what makes the model's weights, each number moved up or down by about one unit in its last place.

    Args:
        model: its constants that Conv, ConvTranspose, Gemm and MatMul read are moved, but for bfloat16.
        made: weights that are made when they are read; see `run_model`.
        seed: draws the directions.
    """
    weights: dict[str, gs.Constant] = {
        tensor.name: tensor
        for node in model.nodes
        if node.op in LAYERS
        for tensor in node.inputs
        if isinstance(tensor, gs.Constant) and model.dtype_of(tensor).kind == "f"
    }
    makers: dict[str, Callable[[], Array]] = dict(made)
    for number, (name, tensor) in enumerate(weights.items()):
        read = made.get(name) or partial(model.values, tensor)
        makers[name] = partial(_moved, read, (seed, number))
    return makers


def _moved(read: Callable[[], Array], seed: tuple[int, int]) -> Array:
    values = read()
    up = np.random.default_rng(seed).integers(0, 2, values.shape, np.int8)
    # Wider types are computed in float32.
    step = np.finfo(np.float16 if values.dtype == np.float16 else np.float32).eps
    moved: Array = values * np.where(up, 1 + step, 1 - step).astype(values.dtype)
    return moved
