"""The channel analysis: labels propagated through the graph, and the dependency groups that follow from them.

Every operator is one small function in `operators/` that says how it moves labels. One pass in topological order
collects labels, ties (pairs of atoms removed together), freezes (atoms that stay, with the reason) and what a removal
has to change (constants to slice, attributes to rewrite). The fixed point of all ties is found at once, as the
connected components of the tie graph. The idea of groups with index maps follows DepGraph (Fang et al., CVPR 2023);
working on the positions themselves makes Concat, Split, Flatten and shuffles plain data movement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcompress.analysis.channels.labels import FIXED, MOST_POSITIONS, Ids, Labels, same_layout
from onnxcompress.analysis.shapes import ShapeValues
from onnxcompress.errors import ModelError
from onnxcompress.graph import Model, Shape
from onnxcompress.operators import is_standard

if TYPE_CHECKING:
    from onnxcompress.analysis.channels.surgery import Surgery

_NONE: Ids = np.empty(0, np.int64)

Rewrite = Callable[["Surgery", gs.Node], None]


@dataclass(frozen=True, eq=False)
class Producer:
    """A node whose filters create atoms: filter `i` along `axis` of the weight is atom `ids[i]`."""

    node: str
    weight: int
    labels: Labels
    ids: Ids


@dataclass(frozen=True, eq=False)
class Consumer:
    """A node that sums over labelled positions of its input: where a removed channel equals `fill` in the original.

    `mean` marks a mean over the positions, which the pruned network takes over the remaining ones. `norm` marks a
    normalisation, whose statistics run over the remaining ones: the axes it normalises over.
    """

    node: str
    position: int
    labels: Labels
    fill: float = 0.0
    mean: bool = False
    norm: str = ""


@dataclass(frozen=True, eq=False)
class ConstantUse:
    """A constant input that is sliced with the labels it is read by; positions outside all labels stay.

    With `rows`, shape (R, C), each position along its one labelled axis stays as long as an atom of its row does.
    """

    node: str
    position: int
    labels: tuple[Labels, ...]
    rows: Ids | None = None


@dataclass(eq=False)
class Findings:
    """What the operators' functions report, keyed by node and tensor names."""

    producers: list[Producer] = field(default_factory=list)
    consumers: list[Consumer] = field(default_factory=list)
    constants: list[ConstantUse] = field(default_factory=list)
    rewrites: list[tuple[str, Labels, Rewrite]] = field(default_factory=list)
    balanced: list[tuple[str, Ids, bool]] = field(default_factory=list)
    keep_one: list[Ids] = field(default_factory=list)
    freezes: list[tuple[Ids, str]] = field(default_factory=list)
    ties: list[tuple[Ids, Ids]] = field(default_factory=list)
    ignored: list[Ids] = field(default_factory=list)

    def extend(self, others: Findings) -> None:
        """Take over what others tell."""
        for each in fields(self):
            getattr(self, each.name).extend(getattr(others, each.name))

    def atoms(self) -> Iterator[Ids]:
        """Yield the atoms that are summed, tied, kept, ignored or rewritten."""
        yield from (consumer.labels.ids for consumer in self.consumers)
        yield from (labels.ids for _, labels, _ in self.rewrites)
        yield from (ids for ids, _ in self.freezes)
        yield from (ids for pair in self.ties for ids in pair)
        yield from self.ignored


class ChannelAnalysis:
    """The labels of every tensor of a model, and what the operators found. The model is only read."""

    def __init__(self, model: Model) -> None:
        from onnxcompress.analysis.channels.operators import HANDLERS

        self.model = model
        self.findings = Findings()
        self.shape_values = ShapeValues(model)
        self.atoms = 0
        self.absorbed: set[str] = set()
        self._labels: dict[str, Labels] = {}
        for node in model.nodes:
            if node.name in self.absorbed:
                continue
            handler = HANDLERS.get(node.op) if is_standard(node) else None
            if handler is not None:
                found, self.findings = self.findings, Findings()
                handler(self, node)
                self._freeze_untold(node)
                found.extend(self.findings)
                self.findings = found
            else:
                self.freeze_inputs(node, f"operator {node.domain + '.' if node.domain else ''}{node.op} is not known")
        self._tie_shared_filters()
        for name in sorted(model.captured_names()):
            if (inside := self._labels.get(name)) is not None:
                self.freeze(inside.ids, f"'{name}' is read inside a sub-graph")
        for tensor in model.graph.outputs:
            if (labels := self.of(tensor)) is not None:
                self.freeze(labels.ids, f"is the graph output '{tensor.name}', whose shape never changes")

    def _freeze_untold(self, node: gs.Node) -> None:
        """Keep channels of which the operator's function told nothing: they reach an input where it expects none."""
        carried = [labels.ids for output in node.outputs if (labels := self.of(output)) is not None]
        told = np.concatenate([_NONE, *(ids.reshape(-1) for ids in (*carried, *self.findings.atoms()))])
        told = told[told != FIXED]
        for labels in (self.of(tensor) for tensor in node.inputs):
            if labels is not None and (labels.ids != FIXED).any() and not np.isin(labels.ids, told).any():
                self.freeze(labels.ids, f"reaches '{node.name}' ({node.op}) at an input that is not made for channels")

    def _tie_shared_filters(self) -> None:
        """Tie what nodes that share a weight make and read, channel by channel: it stays one, and none has a copy."""
        filters = {(producer.node, producer.weight) for producer in self.findings.producers}
        uses = {(use.node, use.position): use for use in self.findings.constants}
        readers: dict[int, list[tuple[gs.Node, int]]] = {}
        for node in self.model.nodes:
            for position, tensor in enumerate(node.inputs):
                if isinstance(tensor, gs.Constant):
                    readers.setdefault(id(tensor), []).append((node, position))
        for own in readers.values():
            if len(own) == 1 or not any((node.name, position) in filters for node, position in own):
                continue
            first, position = own[0]
            name = first.inputs[position].name
            found = [uses.get((node.name, position)) for node, position in own]
            labels = [{each.axes: each for each in use.labels} if use else {} for use in found]
            for axes in dict.fromkeys(axes for each in labels for axes in each):
                along = [each[axes] for each in labels if axes in each]
                if len(along) < len(own) or not all(same_layout(along[0], each) for each in along):
                    for each in along:
                        self.freeze(each.ids, f"shares '{name}' with a node that reads it whole or otherwise")
                    continue
                for each in along[1:]:
                    self.tie(along[0].ids, each.ids, f"shares '{name}' with channels that stay")

    # What operators ask.

    def of(self, tensor: gs.Tensor) -> Labels | None:
        """Return a tensor's labels, None if it carries no channels."""
        return self._labels.get(tensor.name)

    def shape(self, tensor: gs.Tensor) -> Shape | None:
        """Return a tensor's shape; None if even the rank is unknown."""
        return self.model.shape_of(tensor)

    def input(self, node: gs.Node, position: int) -> gs.Tensor | None:
        """Return an input, None if it is left out."""
        if position >= len(node.inputs) or not node.inputs[position].name:
            return None
        return node.inputs[position]

    def constant(self, node: gs.Node, position: int) -> gs.Constant | None:
        """Return a constant input, None if it is left out or computed."""
        tensor = self.input(node, position)
        return tensor if isinstance(tensor, gs.Constant) else None

    def ints(self, node: gs.Node, position: int) -> tuple[int | None, ...] | None:
        """Return an integer input's elements as far as they are known before the model runs."""
        tensor = self.input(node, position)
        return None if tensor is None else self.shape_values.values(tensor)

    def counted(self, node: gs.Node, position: int) -> list[Labels]:
        """Return the labels whose number is an element of a computed integer input, as of a shape that another has."""
        tensor = self.input(node, position)
        origins = () if tensor is None else self.shape_values.origin(tensor) or ()
        found = [(self._labels.get(origin[0]), origin[1]) for origin in origins if origin is not None]
        return [labels for labels, axis in found if labels is not None and axis in labels.axes]

    # What operators report.

    def set(self, tensor: gs.Tensor, labels: Labels | None) -> None:
        """Give an output its labels."""
        if labels is not None and tensor.name:
            self._labels[tensor.name] = labels

    def fresh(self, count: int) -> Ids:
        """Return new atoms, shape (count,).

        Raises:
            ModelError: the count is absurd.
        """
        if count > MOST_POSITIONS:
            raise ModelError(f"a tensor declares {count} channels, more than {MOST_POSITIONS}; the file is damaged")
        self.atoms += count
        return np.arange(self.atoms - count, self.atoms, dtype=np.int64)

    def tie(self, first: Ids, second: Ids, reason: str) -> None:
        """Tie atoms position by position (broadcasting); a fixed position freezes its partner, for `reason`."""
        first, second = np.broadcast_arrays(first, second)
        free = (first != FIXED) & (second != FIXED)
        self.findings.ties.append((first[free], second[free]))
        for one, other in ((first, second), (second, first)):
            bound = one[(other == FIXED) & (one != FIXED)]
            if bound.size:
                self.freeze(bound, reason)

    def freeze(self, ids: Ids, reason: str) -> None:
        """Keep these atoms, for `reason`."""
        self.findings.freezes.append((np.unique(ids[ids != FIXED]), reason))

    def freeze_inputs(self, node: gs.Node, reason: str) -> None:
        """Keep every channel that reaches `node`."""
        for tensor in node.inputs:
            if (labels := self.of(tensor)) is not None:
                self.freeze(labels.ids, f"reaches '{node.name}': {reason}")

    def freeze_counted(self, node: gs.Node, position: int) -> None:
        """Keep the channels by whose number `node` shapes what has none: the result would become as short as they."""
        for labels in self.counted(node, position):
            self.freeze(labels.ids, f"'{node.name}' ({node.op}) makes a tensor as long as there are of them")

    def produce(self, node: gs.Node, weight: int, axis: int, ids: Ids) -> None:
        """Record that the filters of `node`, along `axis` of input `weight`, create `ids`."""
        self.findings.producers.append(Producer(node.name, weight, Labels.along(axis, ids), ids))

    def consume(self, node: gs.Node, position: int, labels: Labels, **how: Any) -> None:
        """Record that `node` sums over the labelled positions of input `position`."""
        self.findings.consumers.append(Consumer(node.name, position, labels, **how))

    def slice(self, node: gs.Node, position: int, *labels: Labels) -> None:
        """Record that constant input `position` is sliced along these labels (axes of the constant)."""
        self.findings.constants.append(ConstantUse(node.name, position, labels))

    def slice_rows(self, node: gs.Node, position: int, axis: int, rows: Ids, inner: int | None = 1) -> None:
        """Record that constant input `position` has one entry along `axis` for each row of `rows`, shape (R, C)."""
        labels = Labels.along(axis, rows[:, 0], inner)
        self.findings.constants.append(ConstantUse(node.name, position, (labels,), rows))

    def on_removal(self, node: gs.Node, labels: Labels, rewrite: Rewrite) -> None:
        """Have `rewrite` called on the pruned model's node when an atom of `labels` was removed."""
        self.findings.rewrites.append((node.name, labels, rewrite))

    def balance(self, node: gs.Node, rows: Ids, *, or_whole_rows: bool = False) -> None:
        """Require that every row of `rows` (R, C) keeps the same number of atoms.

        With `or_whole_rows` whole rows may leave instead: where the atoms of every row are tied anyway, and where that
        is the finer choice (more rows than atoms in each) and nothing else asks for equal rows.
        """
        if rows.shape[0] > 1:
            self.findings.balanced.append((node.name, rows, or_whole_rows))

    def ignore(self, tensor: gs.Tensor) -> None:
        """Record that a node reads this input's type or lengths, not its values."""
        if (labels := self.of(tensor)) is not None:
            self.findings.ignored.append(labels.ids)

    def keep_one(self, ids: Ids) -> None:
        """Require that one of these atoms stays."""
        self.findings.keep_one.append(ids)
