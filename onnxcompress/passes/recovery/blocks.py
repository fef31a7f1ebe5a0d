"""Blocks of a network: where it can be cut so that each part has something of its own to reproduce.

A good cut is a tensor through which everything flows (a dominator of the outputs): the sum at the end of a residual
block, the Concat at the end of an inception module, the last tensor of a chain. Where skips run around every tensor
(U-Net, detection necks), the few tensors that are alive at one moment are a cut together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxcompress.graph import Model, Shape
from onnxcompress.lengths import may_be_equal
from onnxcompress.passes.base import Provenance
from onnxcompress.passes.recovery.outputs import compared_tensors, is_floating, nodes_for
from onnxcompress.passes.recovery.trainable import weight_names

# A block of fewer weight layers joins the next one: one layer alone was fitted in closed form already.
LEAST_LAYERS = 4
# A part without a single-tensor cut that is longer than this (or a quarter of the network) is cut at several tensors.
MOST_LAYERS = 16
WIDEST_CUT = 6

_READ_SHAPE_ONLY = ("Shape", "Size")


@dataclass(frozen=True)
class Cut:
    """A place between two blocks.

    Attributes:
        position: of the last node before it.
        tensors: alive there, in the order of their nodes.
    """

    position: int
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class Block:
    """A part of the network.

    Attributes:
        outputs: the tensors it has to reproduce: those of the cut behind it that it computes itself.
        layers: names of its nodes that hold weights.
    """

    outputs: tuple[str, ...]
    layers: tuple[str, ...]


def find_blocks(model: Model, original: Model, provenance: Provenance) -> tuple[Block, ...]:
    """Return the blocks of a compressed model that can be held against its original, in their order.

    What follows the last cut reproduces the network's outputs and is no block. There may be none at all.
    """
    weights = weight_names(model)
    layers = [any(t.name in weights for t in node.inputs) for node in model.nodes]
    cuts = _chosen(_candidates(model, original, provenance), np.cumsum(layers).tolist())
    blocks, start = [], 0
    for cut in cuts:
        nodes = model.nodes[start : cut.position + 1]
        own = {tensor.name for node in nodes for tensor in node.outputs}
        outputs = tuple(name for name in cut.tensors if name in own)
        if not outputs:  # all that these nodes are for is an output of the network
            continue
        names = tuple(n.name for n, is_layer in zip(nodes, layers[start:], strict=False) if is_layer)
        blocks.append(Block(outputs, names))
        start = cut.position + 1
    return tuple(blocks)


def comparable(name: str, model: Model, original: Model, provenance: Provenance) -> bool:
    """Whether a tensor of the model can be held against the original's of the same name."""
    first, second = model.shapes.get(name), original.shapes.get(name)
    if first is None or second is None or len(first) != len(second) or len(first) < 2:
        return False
    if model.dtypes.get(name) != original.dtypes.get(name):
        return False
    differing = [axis for axis, pair in enumerate(zip(first, second, strict=True)) if not may_be_equal(*pair)]
    if name not in provenance:
        return not differing
    return differing == [1] and first[1] == len(provenance[name])


def _candidates(model: Model, original: Model, provenance: Provenance) -> list[Cut]:
    """Return every place where few tensors are alive and all of them are comparable, one for each run of a shape."""
    last_read = _last_reads(model)
    judging = nodes_for(model, compared_tensors(model, original))
    judged = {tensor.name for node in judging for tensor in node.outputs}
    fed = {tensor.name for tensor in model.graph.inputs}
    alive: dict[str, int] = {name: last_read[name] for name in fed if name in last_read}
    found: list[Cut] = []
    for position, node in enumerate(model.nodes):
        for tensor in node.outputs:
            if tensor.name in last_read:
                alive[tensor.name] = last_read[tensor.name]
        alive = {name: last for name, last in alive.items() if last > position}
        if not 0 < len(alive) <= WIDEST_CUT or fed & alive.keys():
            continue
        if all(name in judged and comparable(name, model, original, provenance) for name in alive):
            cut = Cut(position, tuple(alive))
            if found and _continues(found[-1], cut, node, model.shapes):
                found.pop()
            found.append(cut)
    return found


def _last_reads(model: Model) -> dict[str, int]:
    """Return for each floating-point tensor the last node that reads its values."""
    last: dict[str, int] = {}
    constants = model.constants()
    for position, node in enumerate(model.nodes):
        if node.op not in _READ_SHAPE_ONLY:
            read = [name for name in model.names_read(node) if name not in constants and is_floating(model, name)]
            last.update(dict.fromkeys(read, position))
    return last


def _continues(before: Cut, cut: Cut, node: gs.Node, shapes: Mapping[str, Shape]) -> bool:
    """Whether `node` only changes the one tensor of the cut before it, value by value: its result is the better cut."""
    if len(before.tensors) != 1 or len(cut.tensors) != 1 or before.position + 1 != cut.position:
        return False
    reads_weights = any(Model.is_constant(t) and t.values.ndim > 1 for t in node.inputs)
    return shapes.get(before.tensors[0]) == shapes.get(cut.tensors[0]) and not reads_weights


def _chosen(candidates: Sequence[Cut], layers_until: Sequence[int]) -> list[Cut]:
    """Choose cuts so that blocks have a useful number of layers, through single tensors wherever there are any."""
    if not candidates:
        return []
    total = int(layers_until[-1])
    most = max(MOST_LAYERS, total // 4)
    singles = [cut for cut in candidates if len(cut.tensors) == 1]
    chosen: list[Cut] = []
    done = 0
    for cut in singles:
        until = int(layers_until[cut.position])
        if until - done > most:
            chosen += _cuts_between(candidates, layers_until, done, until, most)
            done = int(layers_until[chosen[-1].position]) if chosen else 0
        if until - done >= LEAST_LAYERS:
            chosen.append(cut)
            done = until
    if total - done > most:
        chosen += _cuts_between(candidates, layers_until, done, total, most)
    return chosen


def _cuts_between(candidates: Sequence[Cut], layers_until: Sequence[int], done: int, end: int, most: int) -> list[Cut]:
    """Cut a part that no single tensor divides: again and again at the narrowest place within `most` layers."""
    chosen: list[Cut] = []
    while end - done > most:
        within = [c for c in candidates if LEAST_LAYERS <= int(layers_until[c.position]) - done <= most]
        within = [c for c in within if end - int(layers_until[c.position]) >= LEAST_LAYERS]
        if not within:
            break
        best = min(within, key=lambda cut: (len(cut.tensors), -cut.position))
        chosen.append(best)
        done = int(layers_until[best.position])
    return chosen
