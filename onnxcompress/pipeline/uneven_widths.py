"""Widths that leave onnxruntime's blocks of channels: depthwise convolutions that get slower by having less to do."""

from __future__ import annotations

from onnxcompress.graph import Model
from onnxcompress.recipe import Recipe

_BLOCK = 8
"""Channels that the narrowest of its kernels for several at once takes; a depthwise convolution has no other."""


def uneven_width_warnings(before: Model, after: Model, recipe: Recipe) -> tuple[str, ...]:
    """Say that pruning left depthwise convolutions with odd widths, where no measured latency would show it."""
    if recipe.latency or recipe.dry_run or not recipe.prune_share or "cpu" not in recipe.provider:
        return ()
    added = _uneven_depthwise(after) - _uneven_depthwise(before)
    if added <= 0:
        return ()
    left = f"{added} depthwise convolutions have" if added > 1 else "A depthwise convolution has"
    return (
        f"{left} been left with channels that are no multiple of {_BLOCK}, for which onnxruntime on the CPU takes "
        f"longer than for all of them: give --round-to {_BLOCK}, or measure latency",
    )


def _uneven_depthwise(model: Model) -> int:
    """Return how many depthwise convolutions have a number of channels that no block divides."""
    shapes = [
        node.inputs[1].shape
        for node in model.nodes
        if node.op == "Conv" and model.is_constant(node.inputs[1]) and int(node.attrs.get("group", 1)) > 1
    ]
    return sum(shape[1] == 1 and shape[0] % _BLOCK != 0 for shape in shapes if shape)
