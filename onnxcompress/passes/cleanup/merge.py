"""Two linear layers with nothing between them become one where that costs less.

With z = A x + a and y = B z + b, y = (B A) x + (B a + b). One of two convolutions must be 1x1 of stride 1 without
padding, so that the product keeps the other's kernel; where it is the first and the second pads with zeros, `a` must be
zero, for what the second sees in the padding is 0 and not `a`. Gemm and MatMul are matrices throughout.

The product of I x M and M x O layers costs I O, so it pays where M is not much smaller than both: two layers that were
written apart, or the last factor of one split and the first factor of the next one. Products are taken in double
precision and rounded once.

As a step of the clean-up it runs before everything else. After a split it runs once more, behind the recovery: a refit
looks for each layer's output, which a merged pair no longer has. There it joins neighbours only (what is between them
is a tensor of the original): the factors of one split stay as they were asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxcompress.analysis.cost import Shapes, node_macs, sample_shapes
from onnxcompress.analysis.lrn import is_window
from onnxcompress.graph import Model
from onnxcompress.linalg.spectrum import Matrix
from onnxcompress.links import has_input
from onnxcompress.operators import is_standard
from onnxcompress.passes.base import Decision, PassContext, Plan, Provenance, Skipped
from onnxcompress.passes.cleanup.rule import (
    Rule,
    excluded,
    pinned_names,
    rewrite_pairs,
)
from onnxcompress.passes.recovery.refit_layers import bias_of, slope_of, weight_of, write_bias
from onnxcompress.passes.tucker.sites import why_no_float_constant

_LINEAR = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class _Cost:
    """What a pair costs apart and merged; MACs are None where a size is not known."""

    params: tuple[int, int]
    macs: tuple[int, int] | None

    @property
    def pays(self) -> bool:
        """Whether neither grows and one shrinks."""
        pairs = [self.params, *([self.macs] if self.macs is not None else [])]
        return all(after <= before for before, after in pairs) and any(after < before for before, after in pairs)


class LinearMerging(Rule):
    """Merges a linear layer into the linear layer that alone reads it."""

    name: ClassVar[str] = "merge"
    does: ClassVar[str] = "merges linear layers without a nonlinearity between them"
    tidies: ClassVar[bool] = True

    def found(self, model: Model, context: PassContext) -> Iterator[Decision | Skipped]:
        """Yield pairs that are cheaper as one; a pair that may not be merged says why."""
        pinned = pinned_names(model)
        outputs = None if context.original is None else {t.name for n in context.original.nodes for t in n.outputs}
        shapes: Shapes | None = None
        taken: set[str] = set()
        for second in model.nodes:
            first = _pair(model, second, pinned)
            if first is None or (outputs is not None and first.outputs[0].name not in outputs):
                continue
            shapes = sample_shapes(model)[0] if shapes is None else shapes
            reason = excluded([first, second], context) or _why_not(model, first, second)
            if reason is None and taken & {first.name, second.name}:
                reason = f"'{first.name}' or '{second.name}' takes part in another pair first"
            cost = None if reason else _cost(model, first, second, shapes)
            if reason is not None or cost is None:
                yield Skipped(second.name, str(reason))
                continue
            if not cost.pays:
                continue  # as the factors of a split are: nothing to tell
            taken |= {first.name, second.name}
            macs = None if cost.macs is None else list(cost.macs)
            yield {"node": second.name, "first": first.name, "params": list(cost.params), "macs": macs}

    def rewrite(self, model: Model, plan: Plan, context: PassContext) -> Provenance:
        """Merge the planned pairs.

        Raises:
            RecipeError: the plan names nodes that the model does not have.
        """
        rewrite_pairs(model, plan, "first", lambda second, first, _: _merge(model, first, second))
        return {}


def has_linear_neighbours(model: Model) -> bool:
    """Whether there is a linear layer that a linear layer alone reads."""
    pinned = pinned_names(model)
    return any(_pair(model, node, pinned) is not None for node in model.nodes)


def _pair(model: Model, second: gs.Node, pinned: frozenset[str]) -> gs.Node | None:
    """Return the linear node of the same operator that only `second` reads, None where there is none."""
    if not _is_linear(second) or not second.inputs[0].inputs:
        return None
    between = second.inputs[0]
    first = between.inputs[0]
    if not _is_linear(first) or first.op != second.op or between.name in pinned or len(between.outputs) != 1:
        return None
    return first


def _is_linear(node: gs.Node) -> bool:
    return node.op in _LINEAR and is_standard(node) and not Model.is_constant(node.inputs[0]) and not is_window(node)


def _why_not(model: Model, first: gs.Node, second: gs.Node) -> str | None:
    for node in (first, second):
        reason = why_no_float_constant(model, node, position=1)
        if reason:
            return f"'{node.name}': {reason}"
        if has_input(node, 2) and not model.is_constant(node.inputs[2]):
            return f"the bias of '{node.name}' is computed"
        if len(node.inputs[1].outputs) != 1:
            return f"another node reads the weight of '{node.name}' too"
        if node.attrs.get("transA", 0) or (node.op != "Conv" and len(node.inputs[1].shape) != 2):
            return f"'{node.name}' is no product with a matrix on its right"
        if int(node.attrs.get("group", 1)) != 1:
            return f"'{node.name}' is grouped"
    if model.values(first.inputs[1]).dtype != model.values(second.inputs[1]).dtype:
        return "their weights are of different types"
    if first.op != "Conv" or _is_pointwise(second):
        return None
    if not _is_pointwise(first):
        return "neither of the two is a 1x1 convolution of stride 1"
    if _pads(second) and bias_of(model, first, int(first.inputs[1].shape[0])).any():
        return f"'{second.name}' pads with zeros where '{first.name}' has its bias"
    return None


def _is_pointwise(conv: gs.Node) -> bool:
    """Whether a convolution is 1x1, of stride 1 and without padding."""
    kernel, strides = conv.inputs[1].shape[2:], conv.attrs.get("strides", ())
    padded = conv.attrs.get("auto_pad", "NOTSET") == "NOTSET" and any(conv.attrs.get("pads", ()))
    return all(size == 1 for size in (*kernel, *strides)) and not padded


def _pads(conv: gs.Node) -> bool:
    automatic = conv.attrs.get("auto_pad", "NOTSET")
    return automatic.startswith("SAME") or (automatic == "NOTSET" and any(conv.attrs.get("pads", ())))


def _cost(model: Model, first: gs.Node, second: gs.Node, shapes: Shapes) -> _Cost:
    slope, constant = _product(model, first, second)
    apart = sum(int(np.prod(node.inputs[1].shape)) for node in (first, second))
    biases = [
        int(node.inputs[2].shape[0]) if has_input(node, 2) and node.inputs[2].shape else 0 for node in (first, second)
    ]
    bias = constant.size if any(biases) else 0
    macs = [node_macs(node, shapes) for node in (first, second)]
    weight = int(np.prod(second.inputs[1].shape))
    known = None
    if macs[0] is not None and macs[1] is not None and weight:
        known = macs[0] + macs[1], slope.size * (macs[1] // weight)
    return _Cost((apart + sum(biases), slope.size + bias), known)


def _product(model: Model, first: gs.Node, second: gs.Node) -> tuple[Matrix, Matrix]:
    """Return the slope (K, I, O) and the constant (O,) of both together."""
    before, after = slope_of(model, first)[0], slope_of(model, second)[0]
    middle, outputs = before.shape[2], after.shape[2]
    inner = bias_of(model, first, middle)
    constant = bias_of(model, second, outputs) + inner @ after.sum(axis=0)
    slope: Matrix = before @ after[0] if len(after) == 1 else before[0] @ after
    return slope, constant


def _merge(model: Model, first: gs.Node, second: gs.Node) -> gs.Node:
    """Make `second` both of them: its output stays, its input is that of `first`, which is returned."""
    slope, constant = _product(model, first, second)
    # The kernel, and with it strides and pads, is that of the one that is not 1x1.
    shaped = first if second.op == "Conv" and _is_pointwise(second) else second
    weight = weight_of(slope[None], shaped, model.values(shaped.inputs[1]))
    has_bias = has_input(first, 2) or has_input(second, 2)
    if second.op == "Conv" and shaped is first:
        second.attrs.clear()
        second.attrs.update(first.attrs)
    second.attrs.pop("beta", None)
    model.set_input(second, 1, weight)
    if has_bias:
        write_bias(model, [second], constant)
    source = first.inputs[0]
    first.inputs.clear()
    first.outputs.clear()
    second.inputs[0] = source
    return first
