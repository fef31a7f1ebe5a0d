"""Which nodes compute in 8 bits, and why others do not."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from onnxcompress.analysis.bias import differs_by_row
from onnxcompress.analysis.lrn import is_window
from onnxcompress.errors import ModelError
from onnxcompress.graph import Model
from onnxcompress.links import has_input
from onnxcompress.operators import LAYERS, is_standard
from onnxcompress.passes.base import PassContext, Skipped
from onnxcompress.serialization import PROTOBUF_LIMIT_BYTES

"""Operators whose work shrinks with the bits; the others of `OPERATORS` only pass 8-bit values on between them."""

OPERATORS = LAYERS | {
    "Add",
    "AveragePool",
    "Clip",
    "Concat",
    "Flatten",
    "GlobalAveragePool",
    "LeakyRelu",
    "MaxPool",
    "Mul",
    "Pad",
    "Relu",
    "Reshape",
    "Resize",
    "Sigmoid",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
}

_CPU = "CPUExecutionProvider"
_WIDE_GROUP = 16
"""Channels of a group from which on eight bits are no slower than float between conversions on a CPU."""

_SAME_RANGE = frozenset({"Flatten", "MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
_ARITHMETIC = frozenset({"Add", "GlobalAveragePool", "LeakyRelu", "Mul", "Sigmoid"})
"""Operators without weights that eight bits make faster even where float is wanted behind them."""

_RECTIFIERS = frozenset({"Clip", "Relu"})
_SOFTMAX = frozenset({"Softmax", "LogSoftmax"})


def require_one_file(model: Model, asked: str) -> None:
    """Refuse a model that onnxruntime's tools cannot take.

    Raises:
        ModelError: it has more weights than protobuf can hold.
    """
    if model.weight_bytes > PROTOBUF_LIMIT_BYTES:
        raise ModelError(
            f"--quantize {asked}: onnxruntime's converter takes models below 2 GB, this one has "
            f"{model.weight_bytes / 1e9:.2f} GB of weights left; compress it further, or leave --quantize out"
        )


def find_candidates(
    model: Model, context: PassContext, refused: Mapping[str, str] | None = None
) -> tuple[list[gs.Node], list[Skipped]]:
    """Return the nodes that can be quantised, in graph order, and the others with their reasons.

    An operator without weights is a candidate where a candidate gives it its input: elsewhere it would only be
    surrounded by conversions. Where it gains nothing by eight bits, as pools and resizing do not, another candidate has
    to read what it makes, too. A rectifier behind a layer is part of that layer's kernel.

    Args:
        refused: {node: reason} of nodes that are none whatever else they are.
    """
    reasons: dict[str, str] = {}
    made: dict[str, gs.Node] = {}
    for node in model.nodes:
        reason = (refused or {}).get(node.name) or _why_not(model, node, context, made)
        if reason is None:
            made.update({tensor.name: node for tensor in node.outputs})
        else:
            reasons[node.name] = reason
    wanted: set[str] = set()
    for node in [each for each in reversed(model.nodes) if each.name not in reasons]:
        if _gains(node, made) or any(tensor.name in wanted for tensor in node.outputs):
            wanted.update(tensor.name for tensor in node.inputs)
        else:
            reasons[node.name] = "what reads it stays in float"
    chosen = [node for node in model.nodes if node.name not in reasons]
    return chosen, [Skipped(node.name, reasons[node.name]) for node in model.nodes if node.name in reasons]


def why_float_is_faster(node: gs.Node, providers: Collection[str]) -> str | None:
    """Say that a node stays in float for the sake of its time; None where eight bits are not known to be slower.

    A CPU's 8-bit convolutions take one group after another: 2 to 20 times the time of float where these are narrow.
    Those of one channel each, made of one, have a kernel of their own.
    """
    if node.op != "Conv" or _CPU not in providers or not isinstance(node.inputs[1], gs.Constant):
        return None
    groups, (filters, channels) = int(node.attrs.get("group", 1)), node.inputs[1].shape[:2]
    narrow = min(filters // groups, channels)
    if groups == 1 or filters // groups == channels == 1 or narrow >= _WIDE_GROUP:
        return None
    return f"{groups} groups of {channels} to {filters // groups} channels: a CPU is faster in float"


def why_kernels_differ(node: gs.Node) -> str | None:
    """Say that onnxruntime computes something else of a node in eight bits, or cannot; None where it does not."""
    if node.op == "Resize" and node.attrs.get("mode", "nearest") == "cubic":
        return "what a cubic Resize makes beyond its input's range wraps around in eight bits"
    if node.op == "AveragePool":
        if node.attrs.get("ceil_mode", 0) and node.attrs.get("count_include_pad", 0):
            return "with ceil_mode and count_include_pad eight bits are divided by another number"
        if any(step != 1 for step in node.attrs.get("dilations", ())):
            return "AveragePool with dilations has no 8-bit kernel"
    if node.op == "Clip":
        return _why_cuts_otherwise(node)
    return None


def _why_cuts_otherwise(clip: gs.Node) -> str | None:
    """Say that a Clip does not fall away in eight bits: the range that stands for it always has zero in it."""
    low, high = (clip.attrs.get(name) for name in ("min", "max"))
    for position in (1, 2):
        if not has_input(clip, position):
            continue
        if not isinstance(clip.inputs[position], gs.Constant):
            return "its bounds are computed"
        bound = float(clip.inputs[position].values)
        low, high = (bound, high) if position == 1 else (low, bound)
    beyond = (low is not None and low > 0) or (high is not None and high < 0)
    return "it cuts zero off, which a range of eight bits holds" if beyond else None


def float_tensors(model: Model, nodes: Iterable[gs.Node]) -> dict[str, gs.Node]:
    """Return the tensors, computed in float32, that the nodes read and write, each with the first node that does."""
    found: dict[str, gs.Node] = {}
    for node in nodes:
        for tensor in (*node.inputs, *node.outputs):
            if _is_float(model, tensor):
                found.setdefault(tensor.name, node)
    return found


def range_sources(model: Model, nodes: Sequence[gs.Node]) -> dict[str, str]:
    """Return, for each tensor that the nodes read and write, the tensor whose range it takes: most often its own.

    What only moves values keeps its input's range. What a rectifier alone reads takes the rectifier's: the rest of it
    is cut off anyway.
    """
    sources = {name: name for name in float_tensors(model, nodes)}
    outputs = {tensor.name for tensor in model.graph.outputs}
    for node in nodes:
        before, after = node.inputs[0].name, node.outputs[0].name
        if before not in sources or after not in sources:
            continue
        if node.op in _SAME_RANGE:
            sources[after] = sources[before]
        elif node.op in _RECTIFIERS and len(node.inputs[0].outputs) == 1 and before not in outputs:
            sources[before] = after
    return {name: _followed(sources, name) for name in sources}


def _followed(sources: Mapping[str, str], name: str) -> str:
    while sources[name] != name:
        name = sources[name]
    return name


def _gains(node: gs.Node, made: Mapping[str, gs.Node]) -> bool:
    """Whether a candidate is worth eight bits where all that reads it stays in float."""
    if node.op in _RECTIFIERS:
        before = node.inputs[0]
        return len(before.outputs) == 1 and made[before.name].op in LAYERS
    computed = [tensor.name for tensor in node.inputs if not isinstance(tensor, gs.Constant)]
    return node.op in LAYERS or (node.op in _ARITHMETIC and all(name in made for name in computed))


def _why_not(model: Model, node: gs.Node, context: PassContext, made: Collection[str]) -> str | None:
    if not is_standard(node) or node.op not in OPERATORS:
        softmax = node.op in _SOFTMAX
        return f"{node.op} is left in float{': eight bits do not resolve probabilities' if softmax else ''}"
    if context.is_excluded(node.name):
        return "excluded (--exclude)"
    if is_window(node):
        return "the sum of squares of an LRN spans too many magnitudes for eight bits"
    told = why_float_is_faster(node, context.providers) or why_kernels_differ(node)
    if told is not None:
        return told
    data = node.inputs[0]
    if node.op in _RECTIFIERS and not model.captured_names().isdisjoint((data.name, node.outputs[0].name)):
        return "a sub-graph reads what it rectifies or makes"  # the quantizer takes it for the layer's, and drops it
    if node.op in _RECTIFIERS and any(data is tensor for tensor in model.graph.outputs):
        return "what it rectifies is an output"  # the quantizer cuts the range of that, too
    if node.op == "Mul" and node.inputs[1] is data:
        return "squares span too many magnitudes for eight bits"
    if not _is_float(model, data):
        return "its input is not computed in float32"
    if node.op not in LAYERS:
        return None if any(t.name in made for t in node.inputs) else "its input is not quantised"
    if differs_by_row(node):
        return "its bias differs from row to row"
    if len(node.inputs) > 1 and isinstance(node.inputs[1], gs.Constant):
        return None if node.inputs[1].values.dtype == np.float32 else "its weights are not float32"
    if node.op == "MatMul" and _is_float(model, node.inputs[1]):
        return None
    return "its weights are not constant"


def _is_float(model: Model, tensor: gs.Tensor) -> bool:
    if not tensor.name or isinstance(tensor, gs.Constant) or tensor.name not in model.dtypes:
        return False
    return model.dtype_of(tensor) == np.dtype(np.float32)
