"""A model as a trainable torch module that goes back into the same ONNX graph.

An executor of the graph itself, node by node, rather than a conversion: the graph stays what it is, a trained weight
is written back under its tensor's name, and what was not trained keeps its bytes. (Converters such as onnx2torch
cover fewer operators and opsets, and come back only through a new export, which gives another graph.)
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor, nn

from onnxcompress.errors import ModelError, UnsupportedOpError
from onnxcompress.graph import Model
from onnxcompress.operators import is_standard
from onnxcompress.passes.recovery.outputs import nodes_for
from onnxcompress.passes.recovery.torch_operators import OPERATORS, Call, Operator
from onnxcompress.passes.recovery.trainable import statistics_names, weight_names

Tensors = Mapping[str, Tensor]
"""{tensor name: values}."""

Edge = tuple[str, int]
"""(node name, input position): one operand of one node."""


@dataclass(frozen=True)
class Step:
    """One node, ready to run; an input left out is None."""

    call: Call
    function: Operator
    inputs: tuple[str | None, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Schedule:
    """Steps in their order, each with the tensors that nothing reads after it."""

    steps: tuple[tuple[Step, tuple[str, ...]], ...]


class GraphModule(nn.Module):
    """A model's graph in torch, computed in float32 whatever its weights are stored in.

    Args:
        model: is not changed.
        wanted: tensors for which it is run; nodes that none of these needs are left out, such as those that filter a
            detector's boxes, and the weights that only they read. None takes all nodes.

    Attributes:
        computed: names of the tensors that its nodes compute.
        weights: {tensor name: parameter} of everything that training may change.
        statistics: {tensor name: buffer} of BatchNormalization's running statistics, which training mode updates.

    Raises (constructor):
        UnsupportedOpError: a node's operator has no counterpart here.
    """

    def __init__(self, model: Model, wanted: Collection[str] | None = None) -> None:
        super().__init__()
        self.model = model
        self.input_names = tuple(tensor.name for tensor in model.graph.inputs)
        self.output_names = tuple(tensor.name for tensor in model.graph.outputs)
        self.weights: dict[str, nn.Parameter] = {}
        self.statistics: dict[str, Tensor] = {}
        self._slots: dict[str, str] = {}
        self._host: dict[str, Tensor] = {}
        # From the protobuf: graphsurgeon's nodes lack attributes that hold tensors.
        attributes = {
            node.name: {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            for node in model.skeleton().graph.node
        }
        nodes = model.nodes if wanted is None else nodes_for(model, wanted)
        self._steps = tuple(_step(model, node, attributes[node.name]) for node in nodes)
        self.computed = frozenset(name for step in self._steps for name in step.outputs)
        self._schedules: dict[tuple[frozenset[str], tuple[str, ...]], Schedule] = {}
        read = {name for step in self._steps for name in step.inputs if name is not None}
        self._take_constants(model, model.constants().keys() if wanted is None else read.union(wanted))

    def _take_constants(self, model: Model, names: Collection[str]) -> None:
        trained, statistics = weight_names(model) & set(names), statistics_names(model) & set(names)
        for number, (name, constant) in enumerate(model.constants().items()):
            if name not in names:
                continue
            values = as_tensor(Model.values(constant))
            slot = f"constant{number}"  # a tensor's name may hold dots, which torch forbids
            if not values.is_floating_point():
                self._host[name] = values
                continue
            if name in trained:
                self.register_parameter(slot, nn.Parameter(values))
            else:
                self.register_buffer(slot, values)
            self._slots[name] = slot
        self._refer(trained, statistics)

    def _refer(self, trained: Iterable[str], statistics: Iterable[str]) -> None:
        self.weights = {n: getattr(self, slot) for n, slot in self._slots.items() if n in frozenset(trained)}
        self.statistics = {n: getattr(self, slot) for n, slot in self._slots.items() if n in frozenset(statistics)}

    def _apply(self, fn: Any, recurse: bool = True) -> GraphModule:
        """Move to a device; torch may put new tensors in the place of the old ones."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._refer(self.weights, self.statistics)
        return self

    def train(self, mode: bool = True) -> GraphModule:
        """Switch BatchNormalization between statistics of the batch and running ones."""
        super().train(mode)
        for step in self._steps:
            step.call.training = mode
        return self

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run the whole graph: its inputs in, its outputs out, both in the graph's order."""
        outputs = self.run(dict(zip(self.input_names, inputs, strict=True)), self.output_names)
        return tuple(outputs[name] for name in self.output_names)

    def run(
        self,
        feeds: Tensors,
        wanted: Sequence[str],
        cut: Collection[str] = (),
        *,
        tapped: Collection[Edge] = (),
        taps: MutableMapping[Edge, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Compute tensors from others: any part of the graph.

        Args:
            feeds: values of tensors from which `wanted` can be computed; nothing before them runs.
            wanted: names of the tensors to return.
            cut: names of tensors through which no gradient flows back: what reads them learns nothing of what made
                them. Returned, they still carry the gradient of their own part.
            tapped: operands that are given out in `taps`, each as a tensor of its own, whose gradient is that through
                this one reader; those that no gradient reaches are left out.

        Raises:
            ModelError: a wanted tensor depends on a graph input that is not fed.
        """
        values: dict[str, Tensor] = dict(feeds)
        kept = {name: values[name] for name in wanted if name in values}
        for step, unread in self._schedule(frozenset(feeds), tuple(wanted)).steps:
            operands = [None if name is None else self._value(name, values) for name in step.inputs]
            if taps is not None:
                _tap(step, operands, tapped, taps)
            results = step.function(step.call, *operands)
            results = results if isinstance(results, tuple) else (results,)
            # Trailing outputs may be left out, and one in between has an empty name.
            for name, result in zip(step.outputs, results, strict=False):
                values[name] = result.detach() if name in cut else result
                if name in wanted:
                    kept[name] = result
            for name in unread:
                values.pop(name, None)
        for name in wanted:
            if name not in kept:
                kept[name] = self._value(name, values)
        return kept

    def _value(self, name: str, values: Tensors) -> Tensor:
        if name in values:
            return values[name]
        slot = self._slots.get(name)
        return self._host[name] if slot is None else getattr(self, slot)

    def _schedule(self, fed: frozenset[str], wanted: tuple[str, ...]) -> Schedule:
        key = fed, wanted
        if key not in self._schedules:
            self._schedules[key] = self._planned(fed, wanted)
        return self._schedules[key]

    def _planned(self, fed: frozenset[str], wanted: tuple[str, ...]) -> Schedule:
        missing = {name for name in wanted if name not in fed} - self._slots.keys() - self._host.keys()
        chosen: list[tuple[Step, tuple[str, ...]]] = []
        read: set[str] = set(wanted)
        for step in reversed(self._steps):
            if not missing.intersection(step.outputs):
                continue
            inputs = {name for name in step.inputs if name is not None and name not in self._slots}
            chosen.append((step, tuple(inputs - read - self._host.keys())))
            read |= inputs
            missing -= set(step.outputs)
            missing |= inputs - fed - self._host.keys()
        if missing:
            raise ModelError(f"tensor '{min(missing)}' is needed but neither fed nor computed by a node")
        return Schedule(tuple(reversed(chosen)))

    def state(self) -> dict[str, Tensor]:
        """Return a copy of the weights and statistics by tensor name, on the host."""
        return {name: t.detach().cpu().clone() for name, t in (*self.weights.items(), *self.statistics.items())}

    def load_state(self, state: Tensors) -> None:
        """Take over a state of `state`.

        Raises:
            ModelError: it is another network's.
        """
        own = {**self.weights, **self.statistics}
        if {name: t.shape for name, t in own.items()} != {name: t.shape for name, t in state.items()}:
            raise ModelError("the saved weights are not those of this network: names or shapes differ")
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(state[name])

    def to_model(self) -> Model:
        """Return the model with the trained weights, each in the type it was stored in.

        A weight that did not change keeps its very array.

        Raises:
            ModelError: a weight is not finite in its stored type.
        """
        written = self.model.copy()
        self.write_to(written)
        return written

    def write_to(self, model: Model) -> None:
        """Give a model of the same constants the trained weights, as `to_model` does.

        Raises:
            ModelError: a weight is not finite in its stored type.
        """
        constants = model.constants()
        for name, tensor in (*self.weights.items(), *self.statistics.items()):
            stored = Model.values(constants[name])
            if torch.equal(as_tensor(stored), tensor.detach().cpu()):
                continue
            with np.errstate(over="ignore"):
                values = np.asarray(tensor.detach().cpu().numpy(), np.float64).astype(stored.dtype)
            if not np.isfinite(values.astype(np.float64)).all():
                raise ModelError(f"weight '{name}' became too large for {stored.dtype} in training; lower --lr")
            constants[name].values = np.ascontiguousarray(values)


def _tap(
    step: Step, operands: list[Tensor | None], tapped: Collection[Edge], taps: MutableMapping[Edge, Tensor]
) -> None:
    for position, operand in enumerate(operands):
        edge = (step.call.node, position)
        if edge in tapped and operand is not None and operand.requires_grad:
            operands[position] = taps[edge] = operand.view_as(operand)


def as_tensor(values: npt.NDArray[Any]) -> Tensor:
    """Return a copy of an array in torch: floating-point as float32, the rest in its own type."""
    if values.dtype.kind == "f" or values.dtype.name == "bfloat16":
        return torch.from_numpy(np.array(values, np.float32))
    if values.dtype.kind == "O":
        raise UnsupportedOpError("a constant of text cannot be trained around; use --recover refit")
    return torch.from_numpy(np.array(values, np.int64 if values.dtype.kind == "u" else values.dtype))


def _step(model: Model, node: Any, attributes: Mapping[str, Any]) -> Step:
    function = OPERATORS.get(node.op) if is_standard(node) else None
    if function is None:
        domain = "" if is_standard(node) else f" of domain '{node.domain}'"
        raise UnsupportedOpError(
            f"node '{node.name}': operator {node.op}{domain} cannot be trained; use --recover refit"
        )
    given = {tensor.name for tensor in model.graph.outputs}
    used = [bool(t.name) and (bool(t.outputs) or t.name in given) for t in node.outputs]
    outputs = 1 + max((number for number, is_used in enumerate(used) if is_used), default=0)
    call = Call(node.name, node.op, model.opset, outputs, attributes, len(node.outputs))
    inputs = tuple(tensor.name or None for tensor in node.inputs)
    return Step(call, function, inputs, tuple(tensor.name for tensor in node.outputs))
