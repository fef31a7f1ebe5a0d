"""Chains of Reshape and Transpose become the fewest that move the same elements: often one Transpose, or nothing.

Every tensor of such a chain has the elements of its first, in another order. Axes split until each Reshape only groups
them (`atoms`) turn the whole chain into a Reshape to these, one Transpose and a Reshape to the result, of which those
that change nothing are left out. Exporters write batched matrices that way, `(B, H, N, d)` as `(B H, N, d)`, turned and
as `(B, H, d, N)` again: that mixes the heads with the batch, and is one Transpose.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxcompress.errors import RecipeError
from onnxcompress.graph import Dim, Model
from onnxcompress.operators import is_standard
from onnxcompress.passes.base import Decision, PassContext, Plan, Provenance, Skipped
from onnxcompress.passes.cleanup.rule import Rule, excluded, pinned_names, planned_node, remove_nodes

_MOVES = frozenset({"Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})

Step = tuple[str, list[int]]
"""An operator of a chain: Reshape and its target, or Transpose and its `perm`."""


@dataclass(frozen=True)
class Atom:
    """A part of an axis that no Reshape of a chain takes apart.

    Attributes:
        length: its length, a number or a symbol; None where it is not known.
        place: where it lies in the chain's input: the axis, and in it the part (of the part, ...).
    """

    length: Dim
    place: tuple[int, ...]


class MovementShortening(Rule):
    """Writes chains of Reshape and Transpose with fewer of them."""

    name: ClassVar[str] = "transpose"
    does: ClassVar[str] = "writes chains of Reshape and Transpose with fewer of them"

    def found(self, model: Model, context: PassContext) -> Iterator[Decision | Skipped]:
        """Yield the chains to rewrite, none of them overlapping."""
        pinned, used = pinned_names(model), set[str]()
        for node in model.nodes:
            if node.name in used:
                continue
            chain = _chain(model, node, pinned)
            lengths = range(len(chain), 1, -1)
            found = ((chain[:count], _shortened(model, chain[:count])) for count in lengths)
            moved = next(((part, steps) for part, steps in found if steps is not None and len(steps) < len(part)), None)
            if moved is None:
                continue
            part, steps = moved
            if (why_not := excluded(part, context)) is not None:
                yield Skipped(node.name, why_not)
                continue
            used.update(each.name for each in part)
            yield {"node": node.name, "nodes": [each.name for each in part], "becomes": [list(s) for s in steps or ()]}

    def rewrite(self, model: Model, plan: Plan, context: PassContext) -> Provenance:
        """Put the planned chains in place.

        Raises:
            RecipeError: the plan names nodes that the model does not have, or that are others in it.
        """
        nodes, pinned = {node.name: node for node in model.nodes}, pinned_names(model)
        removed: list[gs.Node] = []
        for decision in plan.decisions:
            first = planned_node(nodes, decision)
            chain = _chain(model, first, pinned)[: len(decision["nodes"])]
            steps = _shortened(model, chain)
            if [each.name for each in chain] != decision["nodes"] or [list(s) for s in steps or ()] != decision[
                "becomes"
            ]:
                raise RecipeError(f"plan: clean-up rewrites what follows node '{first.name}', which this model has not")
            removed += _replaced(model, chain, steps or [])
        remove_nodes(model, removed)
        return {}


def _chain(model: Model, node: gs.Node, pinned: frozenset[str]) -> list[gs.Node]:
    """Return the nodes from this one on of which each is read by the next alone, and none does but move elements."""
    chain: list[gs.Node] = []
    following: gs.Node | None = node
    while following is not None and following.op in _MOVES and is_standard(following):
        if isinstance(following.inputs[0], gs.Constant) or model.shape_of(following.outputs[0]) is None:
            break
        if chain and following.inputs[0] is not chain[-1].outputs[0]:
            break
        chain.append(following)
        output = following.outputs[0]
        following = output.outputs[0] if len(output.outputs) == 1 and output.name not in pinned else None
    return chain


def _shortened(model: Model, chain: Sequence[gs.Node]) -> list[Step] | None:
    """Return the fewest steps that a chain is, None where they are not known."""
    before = model.shape_of(chain[0].inputs[0])
    if before is None or 0 in before:
        return None
    result = model.shape_of(chain[-1].outputs[0]) or ()
    if all(node.op != "Transpose" for node in chain):
        target = _target(result)
        return None if target is None or 0 in target else [("Reshape", target)]
    source = _distinct(before, "input")
    axes = [[Atom(length, (axis,))] if length != 1 else [] for axis, length in enumerate(source)]
    for node, following in zip(chain, [*chain[1:], None], strict=True):
        if node.op == "Transpose":
            perm = [int(axis) for axis in node.attrs.get("perm", range(len(axes))[::-1])]
            axes = [axes[axis] for axis in perm]
        elif following is None or following.op == "Transpose":  # of several Reshapes, the last one tells
            atoms = [atom for axis in axes for atom in axis]
            grouped = _grouped(atoms, _distinct(model.shape_of(node.outputs[0]) or (), node.name))
            if grouped is None:
                return None
            axes = grouped
    return _steps(source, [_joined(axis, source) for axis in axes], result)


def _distinct(shape: Sequence[Dim], where: str) -> list[int | str]:
    """Return lengths with names of their own for those not known: no two are taken for equal."""
    return [f"{where}:{axis}" if length is None else length for axis, length in enumerate(shape)]


def _grouped(atoms: list[Atom], lengths: list[int | str]) -> list[list[Atom]] | None:
    """Return the atoms that each axis of a Reshape's result is made of, in order; None where they are not known."""
    if 0 in lengths:
        return None
    axes: list[list[Atom]] = [[] for _ in lengths]
    open_axes: list[tuple[int | str, int]] = [(length, axis) for axis, length in enumerate(lengths) if length != 1]
    left: list[tuple[int, Atom]] = []
    right: list[tuple[int, Atom]] = []
    for end, found in ((0, left), (-1, right)):
        while atoms and open_axes:
            atom, (length, axis) = atoms[end], open_axes[end]
            if atom.length == length:
                found.append((axis, atoms.pop(end)))
                open_axes.pop(end)
                continue
            if not isinstance(atom.length, int) or not isinstance(length, int):
                break
            small, large = sorted((atom.length, length))
            if large % small:
                return None
            rest = large // small
            if atom.length == small:
                found.append((axis, atoms.pop(end)))
                open_axes[end] = (rest, axis)
            else:  # what is taken off first lies first in the axis, and from the right last
                taken, left_over = (0, 1) if end == 0 else (1, 0)
                found.append((axis, Atom(small, (*atom.place, taken))))
                atoms[end] = Atom(rest, (*atom.place, left_over))
                open_axes.pop(end)
    if len(open_axes) == 1 and atoms:  # the one length not known is all that is left
        left += [(open_axes[0][1], atom) for atom in atoms]
    elif len(atoms) == 1 and open_axes:
        for at, (length, axis) in enumerate(open_axes):
            last = at == len(open_axes) - 1
            left.append((axis, Atom(length, (*atoms[0].place, *(1,) * at, *(() if last else (0,))))))
    elif atoms or open_axes:
        return None
    for axis, atom in (*left, *reversed(right)):
        axes[axis].append(atom)
    return axes


def _joined(atoms: list[Atom], source: Sequence[Dim]) -> list[Atom]:
    """Return the atoms of an axis, joined where they are parts of one axis of the input and lie as there."""
    joined: list[Atom] = []
    for atom in atoms:
        joined.append(atom)
        while len(joined) > 1 and (whole := _union(joined[-2], joined[-1], source)) is not None:
            joined[-2:] = [whole]
    return joined


def _union(first: Atom, second: Atom, source: Sequence[Dim]) -> Atom | None:
    """Return two parts of one, in their order, as what they are parts of; None for any others."""
    if first.place[:-1] != second.place[:-1] or (first.place[-1], second.place[-1]) != (0, 1) or len(first.place) < 2:
        return None
    place, (one, other) = first.place[:-1], (first.length, second.length)
    if len(place) == 1:
        return Atom(source[place[0]], place)
    return Atom(one * other if isinstance(one, int) and isinstance(other, int) else None, place)


def _steps(source: Sequence[Dim], axes: list[list[Atom]], result: Sequence[Dim]) -> list[Step] | None:
    """Return what makes of the input the axes of the result; None where a target would have several open lengths."""
    atoms = [atom for axis in axes for atom in axis]
    ones = [axis for axis, length in enumerate(source) if length == 1]
    in_order = sorted(atoms, key=_place)
    is_in_order = atoms == in_order
    whole_before, whole_after = all(len(atom.place) == 1 for atom in atoms), all(len(axis) <= 1 for axis in axes)
    if whole_before and whole_after and axes.count([]) == len(ones):
        rest = iter(ones)
        perm = [axis[0].place[0] if axis else next(rest) for axis in axes]
        if perm == sorted(perm):
            return []
        if not is_in_order:
            return [("Transpose", perm)]
    steps: list[tuple[str, list[int] | None]] = [("Reshape", _target(result))]
    if whole_before and not is_in_order:
        steps = [("Transpose", [*ones, *(atom.place[0] for atom in atoms)]), *steps]
    elif whole_after and not is_in_order:
        order = sorted(
            range(len(axes)), key=lambda axis: (*map(_place, axes[axis]), axis) if axes[axis] else ((), axis)
        )
        steps = [
            ("Reshape", _target([axes[axis][0].length if axes[axis] else 1 for axis in order])),
            ("Transpose", [order.index(axis) for axis in range(len(order))]),
        ]
    elif not is_in_order:
        turned = ("Transpose", [in_order.index(atom) for atom in atoms])
        steps = [("Reshape", _target([atom.length for atom in in_order])), turned, *steps]
    return [(op, numbers) for op, numbers in steps if numbers is not None] if all(n for _, n in steps) else None


def _place(atom: Atom) -> tuple[int, ...]:
    return atom.place


def _target(lengths: Sequence[Dim]) -> list[int] | None:
    target = [length if isinstance(length, int) else -1 for length in lengths]
    return target if target.count(-1) <= 1 else None


def _replaced(model: Model, chain: list[gs.Node], steps: list[Step]) -> list[gs.Node]:
    """Put steps in the place of a chain; return its nodes, their links cut."""
    tensor, result = chain[0].inputs[0], chain[-1].outputs[0]
    free = {op: [node.name for node in chain if node.op == op] for op, _ in steps}
    before = chain[0]
    for node in chain:
        node.outputs.clear()
    made: list[gs.Node] = []
    for number, (op, numbers) in enumerate(steps or [("Identity", [])], start=1):
        name = free[op].pop() if free.get(op) else model.unique_name(f"{chain[-1].name}_{op}")
        output = result if number >= len(steps) else model.new_variable(f"{name}_output")
        attributes = {"perm": numbers} if op == "Transpose" else {}
        target = [model.new_constant(f"{name}_shape", np.array(numbers, np.int64))] if op == "Reshape" else []
        made.append(gs.Node(op, name, attributes, [tensor, *target], [output]))
        tensor = output
    model.insert_before(before, made)
    for node in chain:
        node.inputs.clear()
    return chain
