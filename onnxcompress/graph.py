"""The model in memory: an adapter over onnx-graphsurgeon's nodes and tensors that loses nothing of the file.

graphsurgeon gives nodes and tensors with use-def links. What it drops on export (metadata, documentation strings,
sub-graphs' details, unknown attributes, value types it does not know) is kept here beside the graph and put back when
the model is written. Weights are numpy arrays, shared between copies of a model: assign a new array, never write into
one.
"""

from __future__ import annotations

import copy as copying
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from onnxcompress.declarations import array_info, check_outputs_are_known, corrected, with_lengths
from onnxcompress.errors import ModelError
from onnxcompress.functions import inlined
from onnxcompress.fused import unfused
from onnxcompress.importing import Envelope, import_graph, restore_extras
from onnxcompress.inference import Dim as Dim
from onnxcompress.inference import Shape as Shape
from onnxcompress.inference import infer
from onnxcompress.links import cut_links
from onnxcompress.operators import is_standard
from onnxcompress.serialization import (
    PROTOBUF_LIMIT_BYTES,
    Array,
    check_output_path,
    parse_proto,
    read_proto,
    tensor_dtype,
    write_proto,
)
from onnxcompress.tensor_bytes import (
    array_to_tensor,
    model_size,
    release_mapped,
    serialized,
    with_weights,
)

Signature = tuple[tuple[str, int | None, Shape | None], ...]

_FOLDED_INTO_SKELETON_BYTES = 16384
_FIRST_IR_WITH_FREE_INITIALIZERS = 4


class Model:
    """An ONNX model whose nodes and tensors can be edited.

    Attributes:
        graph: nodes in topological order and tensors. Every node has a unique, non-empty name; Constant nodes and
            Identity nodes of constants have become `gs.Constant` tensors of the same name.
        shapes: {tensor name: shape} of every tensor shape inference knows; symbolic dimensions are str or None.
        dtypes: {tensor name: onnx element type}.
        input_shapes: {graph input: full shape} at which sizes that the file leaves open are counted; not in the file.
    """

    def __init__(self, graph: gs.Graph, envelope: Envelope, captured: dict[str, gs.Constant]) -> None:
        self.graph = graph
        self.shapes: dict[str, Shape] = {}
        self.dtypes: dict[str, int] = {}
        self.input_shapes: Mapping[str, Sequence[int]] = {}
        self._envelope = envelope
        self._captured = captured
        self._names: set[str] | None = None
        self._captured_names: frozenset[str] | None = None

    @classmethod
    def load(cls, path: str | Path) -> Model:
        """Read a model file.

        Raises:
            ModelError: the file cannot be read, is no ONNX model, or fails the onnx checker.
        """
        path = Path(path)
        return cls._build(read_proto(path), path, str(path))

    @classmethod
    def from_bytes(cls, content: bytes) -> Model:
        """Read a serialized model; see `load`."""
        return cls._build(parse_proto(content, "model"), None, "model")

    @classmethod
    def from_proto(cls, proto: onnx.ModelProto, base_dir: Path | None = None) -> Model:
        """Take a model in memory; `proto` itself is not changed. See `load`."""
        return cls._build(proto, None if base_dir is None else base_dir / "model", "model")

    @classmethod
    def _build(cls, proto: onnx.ModelProto, path: Path | None, source: str) -> Model:
        try:
            model = cls(*import_graph(unfused(inlined(proto)), path))
            model.refresh_shapes()
            check_outputs_are_known(model._envelope.outputs, model.shapes, model.dtypes)
            model.check()
        except ModelError as error:
            raise ModelError(f"{source}: {error}") from error
        except Exception as error:
            told = " ".join(str(error).split())[:300]
            raise ModelError(f"{source}: fails the onnx checker: {told}") from error
        return model

    @property
    def opset(self) -> int:
        """The version of the default operator set."""
        return int(self.graph.opset)

    @property
    def ir_version(self) -> int:
        """The file format's version, kept from the input."""
        return int(self._envelope.model.ir_version)

    @property
    def nodes(self) -> list[gs.Node]:
        """The nodes, in topological order."""
        nodes: list[gs.Node] = self.graph.nodes
        return nodes

    def constants(self) -> dict[str, gs.Constant]:
        """Return every constant that a node, a sub-graph or a graph output reads, by name, in graph order."""
        found: dict[str, gs.Constant] = {}
        for tensor in chain((t for node in self.nodes for t in node.inputs), self.graph.outputs):
            if isinstance(tensor, gs.Constant):
                found.setdefault(tensor.name, tensor)
        captured = self.captured_names()
        for name, tensor in self._captured.items():
            if name in captured:
                found.setdefault(name, tensor)
        return found

    def captured_names(self) -> frozenset[str]:
        """Names of tensors that sub-graphs (If, Loop, Scan) read from this graph."""
        if self._captured_names is None:
            extras = self._envelope.extras
            present = (extras[node.name] for node in self.nodes if node.name in extras)
            self._captured_names = frozenset(name for extra in present for name in extra.captured)
        return self._captured_names

    def names_read(self, node: gs.Node) -> tuple[str, ...]:
        """Names of the tensors that a node reads, its sub-graphs included."""
        extras = self._envelope.extras.get(node.name)
        return (*(tensor.name for tensor in node.inputs if tensor.name), *(extras.captured if extras else ()))

    @staticmethod
    def is_constant(tensor: gs.Tensor) -> bool:
        """Whether the tensor's values are known before the model runs."""
        return isinstance(tensor, gs.Constant)

    @staticmethod
    def values(tensor: gs.Constant) -> Array:
        """Return a constant's values in their stored type. Do not write into them."""
        values: Array = tensor.values
        return values

    def shape_of(self, tensor: gs.Tensor | str) -> Shape | None:
        """Return a tensor's shape, None where shape inference does not know even the rank."""
        if isinstance(tensor, gs.Constant):
            return tuple(int(d) for d in tensor.shape)
        return self.shapes.get(tensor if isinstance(tensor, str) else tensor.name)

    def dtype_of(self, tensor: gs.Tensor) -> np.dtype[Any]:
        """Return a tensor's numpy type.

        Raises:
            ModelError: shape inference does not know it.
        """
        if isinstance(tensor, gs.Constant):
            dtype: np.dtype[Any] = tensor.values.dtype
            return dtype
        if tensor.name not in self.dtypes:
            raise ModelError(f"the element type of tensor '{tensor.name}' is not known")
        return tensor_dtype(self.dtypes[tensor.name])

    def unique_name(self, hint: str) -> str:
        """Return `hint`, or `hint_1`, `hint_2`, … if it is taken by a node or a tensor, and reserve it."""
        if self._names is None:
            self._names = {node.name for node in self.nodes} | set(self.captured_names())
            for node in self.nodes:
                self._names.update(t.name for t in chain(node.inputs, node.outputs))
            self._names.update(t.name for t in chain(self.graph.inputs, self.graph.outputs))
        names = chain([hint], (f"{hint}_{number}" for number in count(1)))
        name = next(each for each in names if each not in self._names)
        self._names.add(name)
        return name

    def new_constant(self, hint: str, values: Array) -> gs.Constant:
        """Return a new constant with a unique name."""
        return gs.Constant(self.unique_name(hint), np.asarray(values))

    def new_variable(self, hint: str) -> gs.Variable:
        """Return a new tensor with a unique name, of unknown type and shape until `refresh_shapes`."""
        return gs.Variable(self.unique_name(hint))

    def set_input(self, node: gs.Node, position: int, values: Array) -> gs.Constant:
        """Give `node` a constant of its own at `position`, leaving other readers of the old constant alone."""
        old = node.inputs[position]
        uses = sum(t is old for t in old.outputs[0].inputs) if len(old.outputs) == 1 else len(old.outputs)
        shared = uses > 1 or any(old is out for out in self.graph.outputs) or old.name in self.captured_names()
        if isinstance(old, gs.Constant) and not shared:
            old.values = np.asarray(values)
            return old
        own = self.new_constant(f"{old.name}_{node.name}", values)
        node.inputs[position] = own
        return own

    def insert_before(self, node: gs.Node, new_nodes: Sequence[gs.Node]) -> None:
        """Insert nodes, in their order, before `node`."""
        at = self._position(node)
        self.graph.nodes[at:at] = list(new_nodes)

    def insert_behind(self, node: gs.Node, new_nodes: Sequence[gs.Node]) -> None:
        """Insert nodes, in their order, behind `node`."""
        self.graph.nodes[(at := self._position(node) + 1) : at] = list(new_nodes)

    def replace_node(self, node: gs.Node, new_nodes: Sequence[gs.Node]) -> None:
        """Put nodes, in their order, where `node` stood. Their outputs must already be `node`'s outputs, or unused."""
        at = self._position(node)
        self.graph.nodes[at : at + 1] = list(new_nodes)
        node.inputs.clear()
        node.outputs.clear()

    def _position(self, node: gs.Node) -> int:
        for position, candidate in enumerate(self.graph.nodes):
            if candidate is node:
                return position
        raise ValueError(f"node '{node.name}' is not in the graph")

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle, and copy deeply, as bytes: the links of a graph's lists are no state that can be restored."""
        return Model.from_bytes, (self.to_bytes(),), {"input_shapes": self.input_shapes}

    def copy(self) -> Model:
        """Return a model whose structure can be changed without changing this one; arrays are shared."""
        tensors: dict[int, gs.Tensor] = {}

        def clone(tensor: gs.Tensor) -> gs.Tensor:
            if id(tensor) not in tensors:
                tensors[id(tensor)] = tensor.copy()
            return tensors[id(tensor)]

        nodes = []
        for node in self.nodes:
            attributes = {k: copying.copy(v) if isinstance(v, list) else v for k, v in node.attrs.items()}
            own = gs.Node(node.op, node.name, attributes, domain=node.domain)
            # What graphsurgeon's lists would do link by link, at a fraction of the time.
            list.extend(own.inputs, map(clone, node.inputs))
            list.extend(own.outputs, map(clone, node.outputs))
            for tensor in own.inputs:
                list.append(tensor.outputs, own)
            for tensor in own.outputs:
                list.append(tensor.inputs, own)
            nodes.append(own)
        inputs, outputs = [clone(t) for t in self.graph.inputs], [clone(t) for t in self.graph.outputs]
        graph = gs.Graph(nodes, inputs, outputs, opset=self.opset)
        model = Model(graph, self._envelope, {name: clone(t) for name, t in self._captured.items()})
        model.shapes, model.dtypes = dict(self.shapes), dict(self.dtypes)
        model.input_shapes = self.input_shapes
        return model

    def at(self, input_shapes: Mapping[str, Sequence[int]]) -> Model:
        """Return this model with the sizes that it leaves open counted at these full shapes of its inputs."""
        model = self.copy()
        model.input_shapes = input_shapes
        return model

    def declared(self, input_shapes: Mapping[str, Sequence[int | None]]) -> Model:
        """Return this model with other shapes declared of its inputs; None leaves a length as it is.

        Raises:
            ModelError: it does not fit such inputs.
        """
        model = self.copy()
        inputs = tuple(with_lengths(info, input_shapes.get(info.name, ())) for info in self._envelope.inputs)
        model._envelope = replace(self._envelope, inputs=inputs)
        model.refresh_shapes()
        return model

    def become(self, proto: onnx.ModelProto) -> None:
        """Take the place of a rewritten form, whose nodes have unique names; inputs and outputs stay as declared.

        Raises:
            ModelError: it is invalid.
        """
        made, own = Model.from_proto(proto), self._envelope
        envelope = replace(made._envelope, model=own.renewed(made._envelope), inputs=own.inputs, outputs=own.outputs)
        self.__dict__.update({**made.__dict__, "_envelope": envelope, "input_shapes": self.input_shapes})

    def remove_unused(self) -> None:
        """Remove nodes none of whose outputs is read."""
        wanted = {t.name for t in self.graph.outputs} | set(self.captured_names())
        kept, unused = [], []
        for node in reversed(self.nodes):
            if any(t.name in wanted for t in node.outputs if t.name):
                kept.append(node)
                wanted.update(self.names_read(node))
            else:
                unused.append(node)
        cut_links(unused)
        self.graph.nodes[:] = kept[::-1]
        self._captured_names = None

    def refresh_shapes(self) -> None:
        """Infer every tensor's shape and type anew, strictly.

        Raises:
            ModelError: shapes contradict each other.
        """
        self.shapes, self.dtypes = infer(self.skeleton())

    def shapes_for(self, input_shapes: Mapping[str, Sequence[int]]) -> dict[str, Shape]:
        """Return {tensor name: shape} for inputs of the given full shapes."""
        proto = self.skeleton()
        for info in proto.graph.input:
            info.CopyFrom(with_lengths(info, input_shapes.get(info.name, ())))
        return infer(proto)[0]

    def check(self) -> None:
        """Run the onnx checker on the structure (weights are checked when they are read).

        Raises:
            onnx.checker.ValidationError: the model is invalid.
        """
        onnx.checker.check_model(self.skeleton())

    def signature(self) -> Signature:
        """Return name, element type and shape of every graph input and output."""
        tensors = [*self._envelope.inputs, *self._envelope.outputs]
        return tuple((t.name, self.dtypes.get(t.name), self.shapes.get(t.name)) for t in tensors)

    def skeleton(self) -> onnx.ModelProto:
        """Return the model with every large weight replaced by a graph input of its type: small at any model size."""
        proto, weights = self._export()
        del proto.graph.initializer[:]
        listed = {info.name for info in proto.graph.input}
        for name, array in weights.items():
            if array.nbytes <= _FOLDED_INTO_SKELETON_BYTES:
                proto.graph.initializer.append(array_to_tensor(name, array))
            elif name not in listed:
                proto.graph.input.append(array_info(name, array))
        proto.ir_version = max(proto.ir_version, _FIRST_IR_WITH_FREE_INITIALIZERS)
        return proto

    def to_proto(self) -> onnx.ModelProto:
        """Return the whole model, weights included (below 2 GB only)."""
        return with_weights(*self._export())

    def to_bytes(self) -> bytes:
        """Return the whole model serialized, the same bytes every time (below 2 GB only)."""
        return b"".join(self.serialized())

    def serialized(self) -> Iterator[bytes | memoryview]:
        """Yield the bytes of `to_bytes` piece by piece, without a copy of large weights."""
        return serialized(*self._export())

    @property
    def weight_bytes(self) -> int:
        """Bytes of all constants."""
        return sum(int(tensor.values.nbytes) for tensor in self.constants().values())

    @property
    def size_bytes(self) -> int:
        """The size of the file that `save` writes without a side file, in bytes, without making it."""
        return model_size(*self._export())

    def release_mapped(self) -> None:
        """Let go of the memory of external data that was read; it is read again from its files when needed."""
        for tensor in self.constants().values():
            release_mapped(tensor.values)

    def save(
        self, path: str | Path, *, overwrite: bool = False, external: bool = False, spared: Iterable[Path] = ()
    ) -> None:
        """Write the model: whole or not at all; with a side file above 2 GB or on request.

        The side file of a model that is replaced goes, unless it is `spared` or another model beside it names it.

        Raises:
            RecipeError: the path exists and `overwrite` is false, or cannot be written.
        """
        path = Path(path)
        check_output_path(path, overwrite=overwrite)
        proto, weights = self._export()
        is_external = external or self.weight_bytes > PROTOBUF_LIMIT_BYTES
        write_proto(proto, weights, path, external=is_external, spared=spared)

    def _export(self) -> tuple[onnx.ModelProto, dict[str, Array]]:
        """Return the protobuf, of the initializers with what is said of them alone, and their values."""
        envelope = self._envelope
        weights = {name: self.values(tensor) for name, tensor in self.constants().items()}
        proto = envelope.around(weights)
        graph = proto.graph
        for node in self.nodes:
            exported = OnnxExporter.export_node(node)
            extras = envelope.extras.get(node.name)
            if extras is not None:
                restore_extras(exported, extras)
            graph.node.append(exported)
        graph.input.extend(envelope.inputs)
        graph.output.extend(
            corrected(info, self.shapes.get(info.name), self.dtypes.get(info.name, 0)) for info in envelope.outputs
        )
        listed = {info.name for info in envelope.defaults}
        if envelope.model.ir_version < _FIRST_IR_WITH_FREE_INITIALIZERS:
            listed |= set(weights)
        graph.initializer.extend(note for name, note in envelope.notes.items() if name in weights)
        graph.input.extend(array_info(name, array) for name, array in weights.items() if name in listed)
        for node in self.nodes:
            if not is_standard(node):
                names = [t.name for t in node.outputs if t.name in envelope.value_info]
                graph.value_info.extend(envelope.value_info[name] for name in names)
        return proto, weights
