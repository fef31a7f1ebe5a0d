"""Models to be timed: layers split at given ranks, with weights of the right shapes that stand for nothing.

How long a split takes does not depend on the weights' values. Decomposing a layer for each pair of ranks that might be
tried would take far longer than running them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from onnxcompress.analysis.split import WHOLE, Split
from onnxcompress.graph import Model
from onnxcompress.linalg.spanning import parted_kernel
from onnxcompress.passes.base import PassContext
from onnxcompress.passes.tucker.decomposition import group_channels, split_cost, why_not_split
from onnxcompress.passes.tucker.factors import SplitShape, SplitWeights
from onnxcompress.passes.tucker.matrices import MatrixSite, find_matrix_sites
from onnxcompress.passes.tucker.rewrite import replace_by_chain, replace_conv, split_constants
from onnxcompress.passes.tucker.sites import Array, ConvSite, find_conv_sites
from onnxcompress.passes.tucker.svd import factor_links


class SplitTrials:
    """The layers of a model that can be split, and copies of the model in which some are."""

    def __init__(self, model: Model) -> None:
        self.model = model
        sites, _ = find_conv_sites(model, PassContext())
        self.convolutions = {site.node: site for site in sites if why_not_split(site) is None}
        self.matrices = {site.node: site for site in find_matrix_sites(model, PassContext())[0]}

    @property
    def layers(self) -> tuple[str, ...]:
        """The nodes that can be split, in the graph's order."""
        known = self.convolutions.keys() | self.matrices.keys()
        return tuple(node.name for node in self.model.nodes if node.name in known)

    def channels(self, layer: str) -> tuple[int, int]:
        """Input and output channels of one group of a layer: what its ranks are below."""
        if layer in self.convolutions:
            return group_channels(self.convolutions[layer])
        outputs, inputs = self.matrices[layer].matrix_shape
        return inputs, outputs

    def macs(self, layer: str, ranks: Split) -> float:
        """Multiply-accumulates of a layer split so, in units that compare between splits of it."""
        if layer in self.matrices:
            site = self.matrices[layer]
            cost = site.cost(ranks.rank_out or min(site.matrix_shape))
        else:
            convolution = self.convolutions[layer]
            cost = split_cost(convolution, _split_shape(convolution, ranks))
        whole, split = cost.macs or cost.relative_macs
        return float(whole if ranks == WHOLE else split)

    def build(self, splits: Mapping[str, Split]) -> Model:
        """Return a copy in which each named layer is split at its ranks; `WHOLE` leaves one alone.

        Layers that share their weight share its factors, as those that are split in earnest do.
        """
        copy = self.model.copy()
        nodes = {node.name: node for node in copy.nodes}
        made: dict[tuple[object, ...], list[gs.Constant]] = {}
        for layer, ranks in splits.items():
            if ranks == WHOLE:
                continue
            if layer in self.convolutions:
                site = self.convolutions[layer]
                split = _split_shape(site, ranks)
                key: tuple[object, ...] = (site.weight_name, site.op, site.groups, ranks)
                made[key] = made.get(key) or split_constants(copy, site, _convolution_weights(site, split))
                replace_conv(copy, nodes[layer], site.groups, split, made[key])
            else:
                matrix = self.matrices[layer]
                key = (matrix.weight_name, matrix.op, matrix.transposed, ranks)
                made[key] = made.get(key) or [
                    copy.new_constant(f"{layer}_svd_{name}_weight", array)
                    for name, array in zip(("first", "second"), _matrix_weights(matrix, ranks), strict=True)
                ]
                replace_by_chain(copy, nodes[layer], factor_links(copy, nodes[layer], *made[key]))
        return copy


def _split_shape(site: ConvSite, ranks: Split) -> SplitShape:
    inputs, outputs = group_channels(site)
    into, out, spans = ranks
    return SplitShape(into or inputs, out or outputs, into is not None, out is not None, spans)


def _convolution_weights(site: ConvSite, split: SplitShape) -> SplitWeights:
    groups, kernel = site.groups, site.kernel_shape
    inputs, outputs = group_channels(site)
    ones = (1,) * len(kernel)
    of_first, of_core = parted_kernel(kernel, split.spans)
    if site.op == "ConvTranspose":
        core = (groups * split.rank_in, split.rank_out, *of_core)
    else:
        core = (groups * split.rank_out, split.rank_in, *of_core)
    first = (groups * split.rank_in, inputs, *of_first)
    return SplitWeights(
        first=_filled(site.weight, first, inputs * math.prod(of_first)) if split.with_in else None,
        core=_filled(site.weight, core, split.rank_in * math.prod(of_core)),
        last=_filled(site.weight, (groups * outputs, split.rank_out, *ones), split.rank_out)
        if split.with_out
        else None,
        relative_error=0.0,
    )


def _matrix_weights(site: MatrixSite, ranks: Split) -> tuple[Array, Array]:
    outputs, inputs = site.matrix_shape
    rank = ranks[1] or min(inputs, outputs)
    ones = site.weight.shape[2:]
    shapes = ((rank, inputs), (outputs, rank)) if site.transposed else ((inputs, rank), (rank, outputs))
    return (
        _filled(site.weight, (*shapes[0], *ones), inputs),
        _filled(site.weight, (*shapes[1], *ones), rank),
    )


def _filled(weight: Array, shape: Sequence[int], fan_in: int) -> Array:
    """Return weights of a shape that keep the size of what flows through: no denormal and no infinite number arises."""
    phase = np.arange(math.prod(shape), dtype=np.float32)
    values = np.sin(phase * np.float32(1.618)) * np.float32(math.sqrt(2.0 / max(1, fan_in)))
    return np.ascontiguousarray(values.reshape(shape).astype(weight.dtype))
