"""From protobuf to graphsurgeon's nodes and tensors, with everything it would lose kept beside them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from heapq import heappop, heappush
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs
from google.protobuf.message import Message
from onnx_graphsurgeon.importers.onnx_importer import OnnxImporter

from onnxcompress.declarations import opened
from onnxcompress.errors import ModelError
from onnxcompress.operators import LAYERS, is_standard
from onnxcompress.serialization import load_array, take_in
from onnxcompress.sparse_tensors import load_sparse
from onnxcompress.subgraphs import of_attribute, with_inner_nodes
from onnxcompress.tensor_bytes import is_one_layers

OLDEST_OPSET = 7
_PLAIN_ATTRIBUTES = frozenset(
    getattr(onnx.AttributeProto, kind) for kind in ("FLOAT", "INT", "STRING", "FLOATS", "INTS", "STRINGS")
)


@dataclass(frozen=True)
class NodeExtras:
    """What graphsurgeon would lose of one node."""

    doc_string: str = ""
    metadata: tuple[tuple[str, str], ...] = ()
    overload: str = ""
    attributes: tuple[onnx.AttributeProto, ...] = ()
    attribute_docs: tuple[tuple[str, str], ...] = ()
    captured: tuple[str, ...] = ()
    devices: tuple[Message, ...] = ()


@dataclass(frozen=True)
class Envelope:
    """What stands around the graph in the file, kept as it was."""

    model: onnx.ModelProto
    inputs: tuple[onnx.ValueInfoProto, ...]
    outputs: tuple[onnx.ValueInfoProto, ...]
    defaults: tuple[onnx.ValueInfoProto, ...]
    value_info: Mapping[str, onnx.ValueInfoProto]
    extras: Mapping[str, NodeExtras] = field(default_factory=dict)
    notes: Mapping[str, onnx.TensorProto] = field(default_factory=dict)
    trained: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def around(self, weights: Mapping[str, npt.NDArray[Any]]) -> onnx.ModelProto:
        """Return a new model of what stands around the graph; how to train other weights than these is of no use."""
        model: onnx.ModelProto = _copied(self.model)
        if any(name not in weights or weights[name].shape != shape for name, shape in self.trained.items()):
            model.ClearField("training_info")
        return model

    def renewed(self, made: Envelope) -> onnx.ModelProto:
        """Return what stands around the graph, for a graph that a tool made of it, with what it needs now."""
        model: onnx.ModelProto = _copied(self.model)
        model.ir_version = made.model.ir_version
        del model.opset_import[:], model.graph.quantization_annotation[:]
        model.opset_import.extend(made.model.opset_import)
        model.graph.quantization_annotation.extend(made.model.graph.quantization_annotation)
        return model


def import_graph(proto: onnx.ModelProto, path: Path | None) -> tuple[gs.Graph, Envelope, dict[str, gs.Constant]]:
    """Return nodes and tensors, what stands around them, and the constants that sub-graphs read.

    External data lie beside the model's file, at `path`.

    Raises:
        ModelError: the model is damaged or too old.
    """
    graph = proto.graph
    opset = next((o.version for o in proto.opset_import if is_standard(o)), None)
    if opset is None or opset < OLDEST_OPSET:
        raise ModelError(
            f"uses opset {opset} of the default domain; {OLDEST_OPSET} or later is needed: export it again"
        )
    _check_names(graph)
    arrays = {tensor.name: load_array(tensor, path) for tensor in graph.initializer}
    arrays |= {sparse.values.name: load_sparse(sparse, path) for sparse in graph.sparse_initializer}
    tensors: dict[str, gs.Tensor] = {name: gs.Constant(name, array) for name, array in arrays.items()}
    captured: dict[str, gs.Constant] = {}
    extras: dict[str, NodeExtras] = {}
    nodes: list[gs.Node] = []
    free_inputs = [info for info in graph.input if info.name not in arrays]
    for info in free_inputs:
        tensors[info.name] = gs.Variable(info.name)
    outputs = {info.name for info in graph.output}
    ordered = _in_order(graph.node, set(tensors))
    _check_reads(ordered, set(tensors))
    for node_proto, name in zip(ordered, _unique_node_names(ordered), strict=True):
        constant = _as_constant(node_proto, tensors, path, outputs)
        if constant is not None:
            tensors[constant.name] = constant
            continue
        plain, extra = _split_node(node_proto, path)
        plain.name = name
        if extra != NodeExtras():
            extras[name] = extra
        nodes.append(OnnxImporter.import_node(plain, {}, tensors, opset, proto.opset_import))
        for captured_name in extra.captured:
            if isinstance(tensors.get(captured_name), gs.Constant):
                captured[captured_name] = tensors[captured_name]
    missing = sorted(outputs - set(tensors))
    if missing:
        raise ModelError(f"graph output '{missing[0]}' is produced by no node")
    inputs, results = [tensors[i.name] for i in free_inputs], [tensors[o.name] for o in graph.output]
    _share_layers(nodes)
    surroundings = Envelope(
        model=_envelope(proto),
        inputs=tuple(opened(info, "graph input") for info in free_inputs),
        outputs=tuple(opened(info, "graph output") for info in graph.output),
        defaults=tuple(_copied(info) for info in graph.input if info.name in arrays),
        value_info={info.name: opened(info, "tensor") for info in graph.value_info},
        extras=extras,
        trained={name: tuple(arrays[name].shape) for name in sorted(_trained(proto) & arrays.keys())},
        notes={tensor.name: note for tensor in graph.initializer if (note := _note(tensor)) is not None},
    )
    return gs.Graph(nodes, inputs, results, opset=opset), surroundings, captured


def _trained(proto: onnx.ModelProto) -> set[str]:
    """Return the weights that a model's own training sets or updates."""
    bound = ((*each.initialization_binding, *each.update_binding) for each in proto.training_info)
    return {entry.key for own in bound for entry in own}


def _note(tensor: onnx.TensorProto) -> onnx.TensorProto | None:
    """Return what a file says of a weight beside its values, None where that is nothing."""
    if not tensor.doc_string and not tensor.metadata_props:
        return None
    note = onnx.TensorProto(name=tensor.name, metadata_props=tensor.metadata_props)
    if tensor.doc_string:
        note.doc_string = tensor.doc_string
    return note


def _envelope(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model without its nodes, weights, inputs and outputs."""
    graph = proto.graph
    envelope = onnx.ModelProto()
    for descriptor, value in proto.ListFields():
        if descriptor.name == "graph" or descriptor.name == "functions":
            continue
        if not isinstance(value, (str, int, float, bytes, Message)):  # repeated
            getattr(envelope, descriptor.name).extend(value)
        elif descriptor.message_type is not None:
            getattr(envelope, descriptor.name).CopyFrom(value)
        else:
            setattr(envelope, descriptor.name, value)
    _name_default_domain_once(envelope)
    envelope.graph.name = graph.name or "graph"  # onnx demands a name, no runtime does
    envelope.graph.doc_string = graph.doc_string
    envelope.graph.metadata_props.extend(graph.metadata_props)
    envelope.graph.quantization_annotation.extend(graph.quantization_annotation)
    return envelope


def _name_default_domain_once(envelope: onnx.ModelProto) -> None:
    """Drop further imports of the default domain, by its other name (ai.onnx) or twice: tools want one."""
    first, *further = [number for number, opset in enumerate(envelope.opset_import) if is_standard(opset)]
    for number in reversed(further):
        if envelope.opset_import[number].version != envelope.opset_import[first].version:
            raise ModelError("imports the default operator set (ai.onnx) in two versions; the file is damaged")
        del envelope.opset_import[number]
    _shorten(envelope.opset_import[first])


def _shorten(named: onnx.OperatorSetIdProto | onnx.NodeProto) -> None:
    if named.domain == "ai.onnx":
        named.ClearField("domain")


def _check_names(graph: onnx.GraphProto) -> None:
    seen: set[str] = set()
    for info in graph.output:
        if info.name in seen:
            raise ModelError(f"two graph outputs are named '{info.name}'; rename one of them")
        seen.add(info.name)
    if not graph.output:
        raise ModelError("has no graph output")
    weights: set[str] = set()
    for tensor in (*graph.initializer, *(sparse.values for sparse in graph.sparse_initializer)):
        if tensor.name in weights:
            raise ModelError(f"two initializers are named '{tensor.name}'; the file is damaged")
        weights.add(tensor.name)


def _in_order(nodes: Sequence[onnx.NodeProto], known: Collection[str]) -> Sequence[onnx.NodeProto]:
    """Return nodes so that each stands behind what it reads, which some converters leave to the runtime.

    Where there is a choice, the one that stands first in the file is first. `known` is there before any node runs.

    Raises:
        ModelError: they form a cycle.
    """
    outputs = ((name, position) for position, node in enumerate(nodes) for name in node.output)
    producers = {name: position for name, position in outputs if name and name not in known}
    before = {
        position: [producers[name] for name in names_read(node) if name in producers]
        for position, node in enumerate(nodes)
    }
    if all(own < position for position, read in before.items() for own in read):
        return nodes
    sorter = TopologicalSorter(before)
    try:
        sorter.prepare()
    except CycleError as error:
        node = nodes[error.args[1][0]]
        raise ModelError(
            f"node '{node.name or error.args[1][0]}' ({node.op_type}) reads what is computed from its own output: "
            f"the nodes form a cycle"
        ) from error
    ready: list[int] = []
    order: list[onnx.NodeProto] = []
    while sorter.is_active():
        for position in sorter.get_ready():
            heappush(ready, position)
        first = heappop(ready)
        order.append(nodes[first])
        sorter.done(first)
    return order


def _check_reads(ordered: Sequence[onnx.NodeProto], known: set[str]) -> None:
    """Refuse a node that reads what nothing produces."""
    for position, node in enumerate(ordered):
        for name in node.input:
            if name and name not in known:
                which = f"node '{node.name or position}' ({node.op_type}) reads '{name}'"
                raise ModelError(f"{which}, which no node produces and which is no input or initializer")
        if any(not name and _is_list(node, at) for at, name in enumerate(node.input)):
            raise ModelError(f"node '{node.name or position}' ({node.op_type}) leaves out one of a list of inputs")
        known.update(node.output)


def _is_list(node: onnx.NodeProto, position: int) -> bool:
    """Whether an input belongs to a list of any length (Concat, Sum), which has no gaps: runtimes crash on one."""
    try:
        inputs = onnx.defs.get_schema(node.op_type, node.domain).inputs
    except onnx.defs.SchemaError:
        return False
    last = len(inputs) - 1
    return position >= last >= 0 and inputs[last].option == onnx.defs.OpSchema.FormalParameterOption.Variadic


def _unique_node_names(nodes: Sequence[onnx.NodeProto]) -> Iterator[str]:
    """Yield each node's name, or a numbered one where it has none or one that stands twice."""
    given = {node.name for node in nodes}
    used: set[str] = set()
    for position, node in enumerate(nodes):
        name, number = node.name or f"{node.op_type}_{position}", position
        while name in used or (name != node.name and name in given):
            name, number = f"{node.name or node.op_type}_{number}", number + 1
        used.add(name)
        yield name


def _as_constant(
    node: onnx.NodeProto, tensors: Mapping[str, gs.Tensor], path: Path | None, outputs: set[str]
) -> gs.Constant | None:
    """Return the constant that a Constant node, or an Identity of a constant, stands for."""
    if not is_standard(node) or len(node.output) != 1 or node.output[0] in outputs:
        return None
    name = node.output[0]
    if node.op_type == "Identity" and isinstance(tensors.get(node.input[0] if node.input else ""), gs.Constant):
        return gs.Constant(name, tensors[node.input[0]].values)
    if node.op_type != "Constant" or len(node.attribute) != 1:
        return None
    attribute = node.attribute[0]
    if attribute.name == "value":
        return gs.Constant(name, load_array(attribute.t, path))
    if attribute.name == "sparse_value":
        return gs.Constant(name, load_sparse(attribute.sparse_tensor, path))
    kinds = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    if attribute.name in kinds:
        return gs.Constant(name, np.array(onnx.helper.get_attribute_value(attribute), kinds[attribute.name]))
    return None


def _share_layers(nodes: Sequence[gs.Node]) -> None:
    """Give one weight, and one bias, to the layers that an exporter wrote as readers of Identities of it.

    torch's TorchScript exporter writes equal tensors once. Biases, norms and weights of equal rows may be equal by
    chance, and stay apart.
    """
    first: dict[tuple[str, int], gs.Node] = {}
    for node in nodes:
        if node.op not in LAYERS or len(node.inputs) < 2 or not isinstance(node.inputs[1], gs.Constant):
            continue
        weight = node.inputs[1].values
        other = first.setdefault((node.op, id(weight)), node)
        if other.inputs[1] is node.inputs[1] or not is_one_layers(weight):
            continue
        node.inputs[1] = other.inputs[1]
        own, bias = (each.inputs[2] if len(each.inputs) > 2 else None for each in (node, other))
        if isinstance(own, gs.Constant) and isinstance(bias, gs.Constant) and own.values is bias.values:
            node.inputs[2] = bias


def _split_node(node: onnx.NodeProto, path: Path | None) -> tuple[onnx.NodeProto, NodeExtras]:
    """Split a node into what graphsurgeon carries and what it would lose."""
    plain = onnx.NodeProto(op_type=node.op_type, input=node.input, output=node.output)
    if not is_standard(node):
        plain.domain = node.domain
    opaque: list[onnx.AttributeProto] = []
    for attribute in node.attribute:
        if attribute.ref_attr_name:
            raise ModelError(
                f"attribute '{attribute.name}' of node '{node.name}' ({node.op_type}) takes the value of a function's "
                f"attribute '{attribute.ref_attr_name}', but stands in no function; the file is damaged"
            )
        (plain.attribute if _is_plain(attribute) else opaque).append(_in_short(_copied(attribute)))
    for attribute in opaque:
        take_in(attribute, path)
    captured = dict.fromkeys(name for attribute in opaque for name in _captured(attribute))
    metadata = tuple((entry.key, entry.value) for entry in node.metadata_props)
    docs = tuple((attribute.name, attribute.doc_string) for attribute in plain.attribute if attribute.doc_string)
    devices = tuple(map(_copied, getattr(node, "device_configurations", ())))  # older releases of onnx know none
    return plain, NodeExtras(node.doc_string, metadata, node.overload, tuple(opaque), docs, tuple(captured), devices)


def _in_short(attribute: onnx.AttributeProto) -> onnx.AttributeProto:
    """Name the default domain of the nodes in an attribute's sub-graphs as the checker does, in place."""
    for node in (node for graph in of_attribute(attribute) for node in with_inner_nodes(graph.node)):
        _shorten(node)
    return attribute


def _is_plain(attribute: onnx.AttributeProto) -> bool:
    if attribute.type not in _PLAIN_ATTRIBUTES:
        return False
    try:
        for content in (attribute.s, *attribute.strings):
            content.decode()
    except UnicodeDecodeError:
        return False
    return not (attribute.type == onnx.AttributeProto.STRINGS and not attribute.strings) and not (
        attribute.type in (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS)
        and not (attribute.ints or attribute.floats)
    )


def names_read(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the names of the tensors that a node reads, its sub-graphs included."""
    yield from (name for name in node.input if name)
    yield from names_captured(node)


def names_captured(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the names of the tensors around them that a node's sub-graphs read."""
    for attribute in node.attribute:
        yield from _captured(attribute)


def _captured(attribute: onnx.AttributeProto) -> Iterator[str]:
    """Yield names that the sub-graphs of an attribute read from outside."""
    for graph in of_attribute(attribute):
        inside = {info.name for info in graph.input} | {tensor.name for tensor in graph.initializer}
        inside.update(name for node in graph.node for name in node.output)
        for node in graph.node:
            yield from (name for name in node.input if name and name not in inside)
            for nested in node.attribute:
                yield from (name for name in _captured(nested) if name not in inside)
        yield from (info.name for info in graph.output if info.name not in inside)


def restore_extras(node: onnx.NodeProto, extras: NodeExtras) -> None:
    """Put back what graphsurgeon does not carry."""
    node.attribute.extend(extras.attributes)
    docs = dict(extras.attribute_docs)
    for attribute in node.attribute:
        if attribute.name in docs:
            attribute.doc_string = docs[attribute.name]
    if extras.doc_string:
        node.doc_string = extras.doc_string
    if extras.overload:
        node.overload = extras.overload
    for key, value in extras.metadata:
        node.metadata_props.add(key=key, value=value)
    if extras.devices:
        node.device_configurations.extend(extras.devices)


def _copied(message: Any) -> Any:
    copied = type(message)()
    copied.CopyFrom(message)
    return copied
