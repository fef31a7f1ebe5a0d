"""Einsum: products of any tensors, summed over letters that the output does not have."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_graphsurgeon as gs

from onnxcompress.analysis.channels.labels import Ids, Labels
from onnxcompress.analysis.channels.operators.registry import operator

if TYPE_CHECKING:
    from onnxcompress.analysis.channels.analysis import ChannelAnalysis


@operator("Einsum")
def einsum(analysis: ChannelAnalysis, node: gs.Node) -> None:
    """A labelled letter is carried or summed over; along it constants are sliced, and other operands tied."""
    terms = _terms(node)
    if terms is None:
        analysis.freeze_inputs(node, "Einsum of an equation with '...', a repeated letter or no '->'")
        return
    *operands, result = terms
    labelled: dict[str, list[tuple[int, Ids]]] = {}
    for position, (tensor, term) in enumerate(zip(node.inputs, operands, strict=True)):
        if (labels := analysis.of(tensor)) is None:
            continue
        expanded = labels.expanded()
        if expanded is None or len(expanded.axes) != 1:
            analysis.freeze(labels.ids, f"reaches '{node.name}' on several axes")
            continue
        labelled.setdefault(term[expanded.axes[0]], []).append((position, expanded.ids))
    carried = [letter for letter in labelled if letter in result]
    for letter, found in labelled.items():
        first = found[0][1]
        for position, ids in found:
            if (letter in result and len(carried) > 1) or ids.shape != first.shape:
                analysis.freeze(ids, f"is multiplied with channels of another axis or number by '{node.name}'")
                analysis.freeze(first, f"is multiplied with channels of another axis or number by '{node.name}'")
                continue
            analysis.tie(first, ids, f"is multiplied by '{node.name}' with a channel that stays")
            if letter not in result:
                analysis.consume(node, position, Labels.along(operands[position].index(letter), ids))
        _follow(analysis, node, operands, letter, first, {position for position, _ in found})
    if len(carried) == 1:
        analysis.set(node.outputs[0], Labels.along(result.index(carried[0]), labelled[carried[0]][0][1]))


def _follow(
    analysis: ChannelAnalysis, node: gs.Node, operands: list[str], letter: str, ids: Ids, done: set[int]
) -> None:
    """Slice constants along `letter` with `ids`, shape (C,); what else has the letter keeps the channels."""
    for position, term in enumerate(operands):
        if letter not in term or position in done:
            continue
        axis, constant = term.index(letter), analysis.constant(node, position)
        if constant is not None and constant.shape[axis] == len(ids):
            analysis.slice(node, position, Labels.along(axis, ids))
        else:
            name = node.inputs[position].name
            analysis.freeze(ids, f"combined by '{node.name}' with '{name}', which does not come from a Conv")


def _terms(node: gs.Node) -> list[str] | None:
    """Return the letters of every operand and of the output, None where the equation says them in another way."""
    left, arrow, right = str(node.attrs.get("equation", "")).replace(" ", "").partition("->")
    terms = [*left.split(","), right]
    plain = all(len(set(term)) == len(term) and "." not in term for term in terms)
    return terms if arrow and plain and len(terms) == len(node.inputs) + 1 else None
