"""Layers that share their weights, as a detector's head does over its levels: what is made of one is made of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_graphsurgeon as gs

from onnxcompress.graph import Model
from onnxcompress.passes.base import Skipped
from onnxcompress.passes.recovery.refit_layers import RefitLayer, bias_tensor
from onnxcompress.passes.tucker.sites import (
    other_readers,
    pinned_tensors,
)

Family = tuple[RefitLayer, ...]
"""Layers of one weight, in graph order; most layers are alone."""

_READ_BY = ("transB", "alpha", "beta")


def find_families(model: Model, layers: Sequence[RefitLayer], *, with_bias: bool) -> tuple[list[Family], list[Skipped]]:
    """Divide layers into families, in graph order; of those that cannot be changed together say why.

    Args:
        model: that holds the layers' chains.
        layers: of it.
        with_bias: whether the bias is changed too, so that it must be shared as the weight is.
    """
    nodes = {node.name: node for node in model.nodes}
    groups: dict[tuple[int, ...], list[RefitLayer]] = {}
    for layer in layers:
        groups.setdefault(tuple(id(nodes[name].inputs[1]) for name in layer.chain), []).append(layer)
    pinned = pinned_tensors(model)
    recurrent = _recurrent(model, [group for group in groups.values() if len(group) > 1])
    families: list[Family] = []
    reasons: dict[str, str] = {}
    for group in groups.values():
        members = {name for layer in group for name in layer.chain}
        readers = (each for name in members for each in other_readers(nodes[name], nodes[name].inputs[1], pinned))
        stranger = min((each for each in readers if each not in members), default=None)
        if stranger is not None:
            reason = f"shares its weight with '{stranger}', which keeps it"
        elif not all(_is_alike(nodes, group[0], layer, with_bias=with_bias) for layer in group[1:]):
            reason = "shares its weight with layers that read it otherwise, or have another bias"
        elif not recurrent.isdisjoint(members):
            reason = "its weight is used again behind it"
        else:
            families.append(tuple(group))
            continue
        reasons.update((layer.node, reason) for layer in group)
    return families, [Skipped(layer.node, reasons[layer.node]) for layer in layers if layer.node in reasons]


def _is_alike(nodes: Mapping[str, gs.Node], first: RefitLayer, other: RefitLayer, *, with_bias: bool) -> bool:
    one, two = nodes[first.chain[-1]], nodes[other.chain[-1]]
    if any(one.attrs.get(name) != two.attrs.get(name) for name in _READ_BY):
        return False
    if (first.op, first.groups, first.original.shape) != (other.op, other.groups, other.original.shape):
        return False
    return bias_tensor(first, nodes) is bias_tensor(other, nodes) or not with_bias


def _recurrent(model: Model, groups: Sequence[Sequence[RefitLayer]]) -> set[str]:
    """Return the nodes of layers that come behind their own group, which cannot be worked on at once then.

    So does each of two groups of which one comes before the other in one place, and behind it in another.
    """
    group_of = {name: at for at, group in enumerate(groups) for layer in group for name in layer.chain}
    last = {layer.chain[-1] for group in groups for layer in group}
    before: dict[str, frozenset[int]] = {}
    ahead: dict[int, set[int]] = {at: set() for at in range(len(groups))}
    for node in model.nodes if groups else ():
        seen: frozenset[int] = frozenset().union(*(before.get(name, frozenset()) for name in model.names_read(node)))
        if node.name in group_of:
            ahead[group_of[node.name]] |= seen
        if node.name in last:
            seen |= {group_of[node.name]}
        before.update((tensor.name, seen) for tensor in node.outputs)
    for between in ahead:  # the transitive closure (S. Warshall, J. ACM 9, 1962)
        for own in ahead.values():
            if between in own:
                own |= ahead[between]
    return {name for name, at in group_of.items() if at in ahead[at]}
