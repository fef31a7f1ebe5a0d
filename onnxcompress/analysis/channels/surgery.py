"""Carrying out a removal: constants sliced, lengths and attributes rewritten, nothing else touched."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx_graphsurgeon as gs

from onnxcompress.analysis.channels.analysis import ChannelAnalysis
from onnxcompress.analysis.channels.labels import Ids, Labels, Mask, regular_shape
from onnxcompress.errors import PassError
from onnxcompress.graph import Model
from onnxcompress.serialization import Array
from onnxcompress.tensor_bytes import release_mapped

FIRST_OPSET_WITH_WHERE = 9


class Surgery:
    """Removes atoms from `model`, a copy of the model that was analysed."""

    def __init__(self, model: Model, analysis: ChannelAnalysis, keep: Mask) -> None:
        self.model = model
        self._analysis = analysis
        self._keep = np.append(keep, True)  # FIXED (-1) reads the last entry: it always stays
        self._nodes = {node.name: node for node in model.nodes}

    def node(self, name: str) -> gs.Node:
        """Return the copy's node of that name."""
        return self._nodes[name]

    def kept(self, ids: Ids) -> Mask:
        """Return which of `ids` stay, in their shape."""
        mask: Mask = self._keep[ids]
        return mask

    def kept_lengths(self, labels: Labels) -> tuple[int | None, ...]:
        """Return the new lengths of the labelled axes, None where a multiplicity is unknown.

        Raises:
            PassError: what stays is no block.
        """
        block = regular_shape(self.kept(labels.ids))
        if block is None:
            raise PassError("the channels that stay form no block: rows of a split axis keep different numbers")
        return tuple(None if m is None else n * m for n, m in zip(block, labels.inner, strict=True))

    def patch_vector(self, node: gs.Node, position: int, entries: dict[int, int]) -> None:
        """Set entries of an integer vector input: in the constant, or behind what is computed."""
        if not entries:
            return
        tensor = node.inputs[position]
        if isinstance(tensor, gs.Constant):
            values = np.array(tensor.values)
            for at, value in entries.items():
                values.reshape(-1)[at] = value
            if not np.array_equal(values, tensor.values):
                self.model.set_input(node, position, values)
            return
        shape = self.model.shape_of(tensor)
        if shape is None or len(shape) != 1 or not isinstance(shape[0], int):
            raise PassError(f"the vector '{tensor.name}' of '{node.name}' has no known length")
        mask, values = np.zeros(shape[0], bool), np.zeros(shape[0], self.model.dtype_of(tensor))
        for at, value in entries.items():
            mask[at], values[at] = True, value
        patched = self.model.new_variable(f"{tensor.name}_pruned")
        lengths = self.model.new_constant(f"{tensor.name}_lengths", values)
        name = self.model.unique_name(f"{node.name}_lengths")
        if self.model.opset < FIRST_OPSET_WITH_WHERE:
            others = self.model.new_constant(f"{tensor.name}_which", (~mask).astype(values.dtype))
            computed = self.model.new_variable(f"{tensor.name}_others")
            keep = gs.Node("Mul", self.model.unique_name(f"{node.name}_others"), {}, [tensor, others], [computed])
            made = [keep, gs.Node("Add", name, {}, [computed, lengths], [patched])]
        else:
            which = self.model.new_constant(f"{tensor.name}_which", mask)
            made = [gs.Node("Where", name, {}, [which, lengths, tensor], [patched])]
        self.model.insert_before(node, made)
        node.inputs[position] = patched

    def run(self) -> None:
        """Slice every constant and rewrite every node that lost channels."""
        findings = self._analysis.findings
        by_constant: defaultdict[int, list[tuple[gs.Node, int, Array]]] = defaultdict(list)
        constants: dict[int, gs.Constant] = {}
        for use in findings.constants:
            kept = [self.kept(labels.ids) for labels in use.labels]
            if use.rows is not None:
                kept = [np.asarray(self.kept(use.rows).any(axis=1))]
            if all(mask.all() for mask in kept):
                continue
            node = self.node(use.node)
            constant = node.inputs[use.position]
            constants[id(constant)] = constant
            sliced = slice_array(constant.values, list(zip(use.labels, kept, strict=True)))
            by_constant[id(constant)].append((node, use.position, sliced))
            release_mapped(constant.values)
        for key, uses in by_constant.items():
            self._assign(constants[key], uses)
        for name, labels, rewrite in findings.rewrites:
            if not self.kept(labels.ids).all():
                rewrite(self, self.node(name))
        self.model.remove_unused()

    def _assign(self, constant: gs.Constant, uses: list[tuple[gs.Node, int, Array]]) -> None:
        """Give the readers of a constant its slice: one for all that agree."""
        first = uses[0][2]
        everyone = len(uses) == sum(sum(t is constant for t in reader.inputs) for reader in set_of(constant.outputs))
        agree = all(s.shape == first.shape and np.array_equal(s, first) for _, _, s in uses[1:])
        shared = any(constant is t for t in self.model.graph.outputs) or constant.name in self.model.captured_names()
        if everyone and agree and not shared:
            constant.values = first
            return
        made: list[gs.Constant] = []
        for node, position, sliced in uses:
            alike = next((own for own in made if np.array_equal(own.values, sliced)), None)
            if alike is None:
                made.append(self.model.set_input(node, position, sliced))
            else:
                node.inputs[position] = alike


def set_of(nodes: list[gs.Node]) -> list[gs.Node]:
    """Return the nodes without repetition, in order (nodes compare by content, so by identity here)."""
    return list({id(node): node for node in nodes}.values())


def slice_array(values: Array, labels: list[tuple[Labels, Mask]]) -> Array:
    """Return `values` with the positions along labelled axes removed whose atom is gone.

    Raises:
        PassError: what stays is no block.
    """
    ragged = [entry for entry in labels if len(entry[0].axes) > 1]
    if not ragged:
        for along, kept in labels:
            if not kept.all():
                axis, inner = along.axes[0], along.inner[0] or values.shape[along.axes[0]] // len(kept)
                values = np.compress(np.repeat(kept, inner) if inner != 1 else kept, values, axis=axis)
        return np.ascontiguousarray(values)
    axes = tuple(sorted({axis for along, _ in labels for axis in along.axes}))
    mask = np.ones([values.shape[axis] for axis in axes], bool)
    for along, kept in labels:
        full = kept
        for dimension, (axis, count) in enumerate(zip(along.axes, along.inner, strict=True)):
            repeat = count if count is not None else values.shape[axis] // kept.shape[dimension]
            full = np.repeat(full, repeat, axis=dimension)
        shape = [values.shape[axis] if axis in along.axes else 1 for axis in axes]
        mask &= full.reshape(shape)
    block = regular_shape(mask)
    if block is None:
        raise PassError("a weight's remaining entries form no block: groups keep different numbers")
    front = np.moveaxis(values, axes, range(len(axes)))
    chosen = front[mask].reshape(*block, *front.shape[len(axes) :])
    return np.ascontiguousarray(np.moveaxis(chosen, range(len(axes)), axes))
