"""Nodes that multiply by a constant matrix: 1x1 convolutions, Gemm, MatMul; which can be split, and why not others."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from onnxcompress.analysis.cost import sample_shapes
from onnxcompress.analysis.lrn import is_window
from onnxcompress.graph import Model, Shape
from onnxcompress.linalg.spectrum import Matrix, working
from onnxcompress.links import has_input
from onnxcompress.operators import is_standard
from onnxcompress.passes.base import PassContext, Skipped
from onnxcompress.passes.tucker.cost import SplitCost
from onnxcompress.passes.tucker.sites import (
    Array,
    other_readers,
    pinned_tensors,
    positions_of,
    why_no_float_constant,
)

_OPERATORS = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class MatrixSite:
    """A node that maps I features to O by a constant matrix, at some number of positions.

    Attributes:
        node: its name.
        op: `Conv`, `Gemm` or `MatMul`.
        weight: as stored: (O, I, 1...) of a Conv, (I, O) of a MatMul and a Gemm, (O, I) of a Gemm with transB.
        transposed: whether it is stored (O, I).
        bias: number of elements added, 0 without.
        positions: rows that are multiplied for one sample, None where not known.
        weight_name: of the weight tensor.
        sharers: what else reads the same weight tensor: nodes, "a sub-graph", "an output of the graph".
    """

    node: str
    op: str
    weight: Array
    transposed: bool
    bias: int
    positions: int | None
    weight_name: str
    sharers: tuple[str, ...] = ()

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(O, I)."""
        rows, columns = (int(size) for size in self.weight.shape[:2])
        return (rows, columns) if self.transposed else (columns, rows)

    def matrix(self) -> Matrix:
        """Return the weight as (O, I)."""
        weight = working(self.weight).reshape(self.weight.shape[:2])
        return weight if self.transposed else weight.T

    def cost(self, rank: int) -> SplitCost:
        """Return the cost of two factors of a rank."""
        rows, columns = self.weight.shape[:2]
        whole, split = int(rows * columns), rank * int(rows + columns)
        known = None if self.positions is None else (whole * self.positions, split * self.positions)
        return SplitCost(known, (whole + self.bias, split + self.bias), self.bias, (whole, split))


def find_matrix_sites(model: Model, context: PassContext) -> tuple[list[MatrixSite], list[Skipped]]:
    """Return the nodes that `--svd` may work on, in graph order, and the others with the reason.

    Convolutions with a larger kernel are in neither: they are the Tucker pass's.
    """
    sites: list[MatrixSite] = []
    skipped: list[Skipped] = []
    nodes = [node for node in model.nodes if node.op in _OPERATORS and is_standard(node)]
    nodes = [node for node in nodes if node.op != "Conv" or _is_pointwise(model, node)]
    shapes, batch = sample_shapes(model) if nodes else ({}, 1)
    pinned = pinned_tensors(model)
    for node in nodes:
        reason = _why_not(model, node, context)
        if reason:
            skipped.append(Skipped(node.name, reason))
        else:
            sites.append(_site(model, node, shapes, batch, pinned))
    return sites, skipped


def _why_not(model: Model, node: gs.Node, context: PassContext) -> str | None:
    if context.is_excluded(node.name):
        return "excluded by --exclude"
    if node.op == "MatMul" and model.is_constant(node.inputs[0]):
        return "its constant stands on the left"
    reason = why_no_float_constant(model, node, position=1)
    if reason:
        return reason
    if is_window(node):
        return "it is the window of an LRN, an exact rewrite that is not approximated"
    if node.op == "Conv" and int(node.attrs.get("group", 1)) != 1:
        return "a grouped 1x1 convolution is many small matrices, not one"
    if node.op != "Conv" and len(node.inputs[1].shape) != 2:
        return f"its weight has {len(node.inputs[1].shape)} axes, expected 2"
    return None


def _is_pointwise(model: Model, node: gs.Node) -> bool:
    shape = model.shape_of(node.inputs[1])
    return shape is not None and len(shape) >= 3 and all(size == 1 for size in shape[2:])


def _site(model: Model, node: gs.Node, shapes: dict[str, Shape], batch: int, pinned: Mapping[str, str]) -> MatrixSite:
    tensor = node.inputs[1]
    return MatrixSite(
        node=node.name,
        op=node.op,
        weight=model.values(tensor),
        transposed=node.op == "Conv" or bool(node.attrs.get("transB", 0)),
        bias=_elements(model.shape_of(node.inputs[2])) if has_input(node, 2) else 0,
        positions=positions_of(shapes.get(node.outputs[0].name), batch, features=1 if node.op == "Conv" else -1),
        weight_name=tensor.name,
        sharers=other_readers(node, tensor, pinned),
    )


def _elements(shape: Shape | None) -> int:
    return math.prod(size for size in shape or () if isinstance(size, int))
