"""Cost layer by layer, original against compressed, with what a layer was split into counted as that layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from onnxcompress.analysis.cost import LayerCost, ModelCost
from onnxcompress.analysis.lrn import PART

_SPLIT_MARKS = ("_tucker_", "_svd_", PART)
"""What stands between a node's name and the part, in the names of the nodes that it was split into or written as."""


@dataclass(frozen=True)
class LayerChange:
    """One layer of the original, or one that only the compressed model has.

    Attributes:
        node, op: of the original; of the compressed model where it alone has the layer.
        original_params, original_macs: None where the original has no such layer, or a size is not known.
        compressed_params, compressed_macs: of all its parts; 0 where the layer is gone.
        original_ms, compressed_ms: of one run in onnxruntime's profile, None where there is none. With times there are
            rows for nodes without weights too.
        parts: the nodes that stand for it in the compressed model, in their order.
    """

    node: str
    op: str
    original_params: int | None
    compressed_params: int
    original_macs: int | None
    compressed_macs: int | None
    parts: tuple[str, ...]
    original_ms: float | None = None
    compressed_ms: float | None = None


def layer_changes(original: ModelCost, compressed: ModelCost) -> tuple[LayerChange, ...]:
    """Return the layers of the original in their order, and after them those that only the compressed model has."""
    known = {layer.node: layer for layer in original.layers}
    parts: dict[str, list[LayerCost]] = {name: [] for name in known}
    for layer in compressed.layers:
        parts.setdefault(origin_of(layer.node, known), []).append(layer)
    return tuple(_change(name, known.get(name), found) for name, found in parts.items())


def origin_of(node: str, originals: Mapping[str, object]) -> str:
    """Return the node of the original that `node` is, or that it is a part of; its own name where there is none.

    A part may have been split again (`conv_tucker_in_svd_1`), and a name may hold such a mark of its own: of several
    originals the longest counts.
    """
    if node in originals:
        return node
    ends = (end for mark in _SPLIT_MARKS for end in _positions(node, mark))
    return next((node[:end] for end in sorted(ends, reverse=True) if node[:end] in originals), node)


def _positions(text: str, mark: str) -> Iterable[int]:
    position = text.find(mark)
    while position >= 0:
        yield position
        position = text.find(mark, position + 1)


def _change(name: str, before: LayerCost | None, after: list[LayerCost]) -> LayerChange:
    macs = [layer.macs for layer in after]
    known = [figure for figure in macs if figure is not None]
    return LayerChange(
        node=name,
        op=before.op if before is not None else after[0].op,
        original_params=before.params if before is not None else None,
        compressed_params=sum(layer.params for layer in after),
        original_macs=before.macs if before is not None else None,
        compressed_macs=sum(known) if len(known) == len(macs) else None,
        parts=tuple(layer.node for layer in after),
    )
