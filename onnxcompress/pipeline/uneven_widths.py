"""Widths that leave onnxruntime's blocks of channels: depthwise convolutions that get slower by having less to do."""

from __future__ import annotations

from onnxcompress.graph import Model
from onnxcompress.recipe import Recipe
from onnxcompress.runtime.block import fast_multiple
from onnxcompress.runtime.providers import CPU, provider_name


def uneven_width_warnings(before: Model, after: Model, recipe: Recipe) -> tuple[str, ...]:
    """Say that pruning left depthwise convolutions with odd widths, where no measured latency would show it."""
    if recipe.latency or recipe.dry_run or not recipe.prune_share:
        return ()
    if CPU not in map(provider_name, recipe.provider):
        return ()
    multiple = fast_multiple(CPU)
    added = _uneven_depthwise(after, multiple) - _uneven_depthwise(before, multiple)
    if added <= 0:
        return ()
    left = f"{added} depthwise convolutions have" if added > 1 else "A depthwise convolution has"
    return (
        f"{left} been left with channels that are no multiple of {multiple}, for which onnxruntime on the CPU takes "
        f"longer than for all of them: give --round-to {multiple}, or measure latency",
    )


def _uneven_depthwise(model: Model, multiple: int) -> int:
    """Return how many depthwise convolutions have a number of channels that is no such multiple."""
    shapes = [
        node.inputs[1].shape
        for node in model.nodes
        if node.op == "Conv" and model.is_constant(node.inputs[1]) and int(node.attrs.get("group", 1)) > 1
    ]
    return sum(shape[1] == 1 and shape[0] % multiple != 0 for shape in shapes if shape)
