"""Gradients of a loss at inner tensors, by onnxruntime from one graph: the network's nodes, and those of the way back.

Reverse accumulation: from the gradient at the outputs (`backward_loss`) back through the nodes in reverse order. With g
the gradient of a node's output y, its rule (`backward_rules`) gives g dy/dx for each operand x, and the gradient of a
tensor is the sum over the nodes that read it. LRN is taken in its banded form (`analysis.lrn`). A node without a rule
ends the way: what is computed before it has no gradient, whichever other ways lead from there to the outputs, as the
sum would lack a term.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnxcompress.analysis.lrn import with_banded_lrn
from onnxcompress.errors import ModelError
from onnxcompress.graph import Model
from onnxcompress.importing import names_read
from onnxcompress.linalg.spectrum import Matrix
from onnxcompress.operators import is_standard
from onnxcompress.passes.execution import needed_nodes
from onnxcompress.passes.recovery.backward_loss import Noise, begin
from onnxcompress.passes.recovery.backward_nodes import Site, Tape
from onnxcompress.passes.recovery.backward_opset import raise_opset
from onnxcompress.passes.recovery.backward_rules import FLAT, RULES
from onnxcompress.passes.recovery.outputs import compared_outputs
from onnxcompress.runtime.session import Session, SessionSettings
from onnxcompress.serialization import IN_MEMORY_BYTES, array_to_tensor

Array = npt.NDArray[Any]


class Backward:
    """The gradients of a loss at inner tensors of a model.

    The loss of a sample is the cross-entropy with a label that is drawn from what the network itself answers, so that
    the squares of the gradients estimate the Fisher information, and a weighted squared error elsewhere; see
    `backward_loss`. It is summed over samples and outputs, so that a sample's gradient does not depend on the batch.

    Args:
        model: is not changed.
        tensors: names of graph inputs, or of tensors that nodes compute.
        settings: of the session that runs the graph.
        weights: {output that does not classify: weights of its squared errors, broadcast over it}; 1 where there are
            none.

    Attributes:
        tensors: those whose gradient can be computed, in graph order. None can of a model above 256 MB of weights,
            whose second copy would take too much memory, or below opset 16 with nodes that opset 16 understands
            otherwise. A tensor has none where it is not float32, or where a way from it to an output leads through a
            node without a rule, a tensor of another type, or a length that must be known and is not.

    Raises (constructor):
        ModelError: the model has no such tensor, or onnxruntime cannot load the graph.
    """

    def __init__(
        self,
        model: Model,
        tensors: Sequence[str],
        settings: SessionSettings | None = None,
        weights: Mapping[str, Matrix] | None = None,
    ) -> None:
        order = [t.name for t in model.graph.inputs] + [t.name for node in model.nodes for t in node.outputs if t.name]
        if unknown := set(tensors).difference(order):
            raise ModelError(f"tensor '{min(unknown)}' is neither an input of the model nor computed by a node")
        self.tensors: tuple[str, ...] = ()
        if model.weight_bytes > IN_MEMORY_BYTES:
            return
        graph = _Graph(with_banded_lrn(model), frozenset(tensors), weights or {})
        self._gradients = {name: graph.gradients[name] for name in order if name in graph.gradients}
        self.tensors = tuple(self._gradients)
        if not self.tensors:
            return
        self._session = Session(graph.serialized(), settings=settings)
        self._fed = [info.name for info in self._session.inputs]
        self._noises = graph.noises

    def run(self, batch: Mapping[str, Array], generator: np.random.Generator) -> dict[str, Array]:
        """Return {tensor: gradient of the loss, (B, ...) as the tensor} of one batch.

        Args:
            batch: {input: array (B, ...)}; what the model does not read is left alone.
            generator: draws the targets, one array for each output, in the order of the outputs.

        Raises:
            DataError: the inputs do not fit.
        """
        if not self.tensors:
            return {}
        size = len(next(iter(batch.values())))
        feeds = {noise.name: noise.draw(generator, size) for noise in self._noises}
        feeds.update(batch)
        wanted = list(dict.fromkeys(self._gradients.values()))
        arrays = self._session.run({name: feeds[name] for name in self._fed}, wanted)
        return {name: arrays[gradient] for name, gradient in self._gradients.items()}


class _Graph:
    """The graph of both ways.

    Attributes:
        gradients: {wanted tensor: the name of its gradient}.
        noises: random inputs, one for each output that has a loss.
    """

    def __init__(self, model: Model, wanted: frozenset[str], weights: Mapping[str, Matrix]) -> None:
        self.gradients: dict[str, str] = {}
        self.noises: list[Noise] = []
        self._model = model
        self._proto = model.skeleton()
        # A network's inputs, less its constants that the skeleton or the file lists among them.
        names = {t.name for t in model.graph.inputs}
        self._inputs = [info for info in self._proto.graph.input if info.name in names]
        own = {tensor.name for tensor in self._proto.graph.initializer}
        if not raise_opset(self._proto, model.shapes):
            return
        constants = {name: Model.values(tensor) for name, tensor in model.constants().items()}
        self._moved = [tensor for tensor in self._proto.graph.initializer if tensor.name not in own]
        constants.update((tensor.name, onnx.numpy_helper.to_array(tensor)) for tensor in self._moved)
        self._nodes = list(self._proto.graph.node)
        taken = {name for node in self._nodes for name in (*node.input, *node.output)} | names | constants.keys()
        self._tape = Tape(model.shapes, constants, taken)
        self._summands: dict[str, list[str]] = {}
        # Sub-graphs read these, and have no rule.
        self._unknown = set(model.captured_names())
        self._reached = _reached(self._nodes, wanted)
        self._begin(weights)
        for node in reversed(self._nodes):
            self._step(node)
        for name in wanted - self._unknown:
            gradient = self._sum(name)
            if gradient is not None:
                self.gradients[name] = gradient

    def serialized(self) -> bytes:
        """Return the graph as a model, without what the gradients do not need."""
        wanted = list(dict.fromkeys(self.gradients.values()))
        nodes = needed_nodes([*self._nodes, *self._tape.nodes], wanted)
        read = {name for node in nodes for name in names_read(node)}
        graph = onnx.GraphProto(name="gradients", node=nodes)
        graph.input.extend(info for info in self._inputs if info.name in read)
        graph.input.extend(noise.info() for noise in self.noises if noise.name in read)
        stored = {name: tensor.values for name, tensor in self._model.constants().items() if name in read}
        graph.initializer.extend(array_to_tensor(name, values) for name, values in stored.items())
        appended = (*self._moved, *self._tape.initializers)
        graph.initializer.extend(tensor for tensor in appended if tensor.name in read)
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
        opsets, version = self._proto.opset_import, self._proto.ir_version
        return bytes(onnx.ModelProto(ir_version=version, graph=graph, opset_import=opsets).SerializeToString())

    def _begin(self, weights: Mapping[str, Matrix]) -> None:
        for output in compared_outputs(self._model, self._model):
            name = output.compared
            shape = self._model.shape_of(name)
            begun = begin(self._tape, name, shape, weights.get(name)) if self._is_float32(name) else None
            if begun is None:
                self._unknown.add(name)
                continue
            self._summands.setdefault(name, []).append(begun[0])
            self.noises.append(begun[1])

    def _step(self, node: onnx.NodeProto) -> None:
        if is_standard(node) and node.op_type in FLAT:
            return
        operands = [name for name in node.input if name and name not in self._tape.constants]
        if not self._unknown.isdisjoint(node.output):
            self._unknown.update(operands)
            return
        gradients = tuple(self._sum(name) for name in node.output)
        if not any(gradients) or self._reached.isdisjoint(operands):
            return
        found = self._ruled(node, gradients)
        if found is None:
            self._unknown.update(operands)
            return
        for position, name in enumerate(node.input):
            if name not in operands or name not in self._reached or self._is_whole(name):
                continue
            if position in found:
                self._summands.setdefault(name, []).append(found[position])
            else:
                self._unknown.add(name)

    def _ruled(self, node: onnx.NodeProto, gradients: tuple[str | None, ...]) -> Mapping[int, str] | None:
        """Return what a node's rule gives, None where it has none."""
        rule = RULES.get(node.op_type) if is_standard(node) else None
        if rule is None or (node.op_type != "Split" and (gradients[0] is None or any(gradients[1:]))):
            return None
        wanted = frozenset(
            position
            for position, name in enumerate(node.input)
            if name in self._reached and name not in self._tape.constants and self._is_float32(name)
        )
        if not wanted:
            return {}
        attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
        texts = {name: value.decode() for name, value in attributes.items() if isinstance(value, bytes)}
        found = rule(Site(self._tape, node, {**attributes, **texts}, gradients, wanted))
        return {position: gradient for position, gradient in found.items() if position in wanted}

    def _sum(self, name: str) -> str | None:
        """Return the gradient of a tensor all of whose readers were stepped over, None where nothing comes back."""
        summands = self._summands.get(name)
        if not name or not summands:
            return None
        if len(summands) > 1:
            self._summands[name] = [self._tape.add("Sum", *summands)]
        return self._summands[name][0]

    def _is_float32(self, name: str) -> bool:
        return self._model.dtypes.get(name) == onnx.TensorProto.FLOAT

    def _is_whole(self, name: str) -> bool:
        """Whether a tensor holds whole numbers or truth values: shapes, indices, masks."""
        dtype = self._model.dtypes.get(name)
        return dtype is not None and onnx.helper.tensor_dtype_to_np_dtype(dtype).kind in "iub"


def _reached(nodes: Sequence[onnx.NodeProto], tensors: frozenset[str]) -> set[str]:
    """Return the tensors that depend on some of `tensors`, these included."""
    reached = set(tensors)
    for node in nodes:
        if not reached.isdisjoint(node.input):
            reached.update(name for name in node.output if name)
    return reached
