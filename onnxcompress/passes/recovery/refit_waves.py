"""Running a model part by part: the inputs of each layer from the layers before it as they are by then.

Layers are numbered by depth, the number of layers before them on the longest path; layers of equal depth do not see
each other. Between two depths all that later nodes need of the tensors so far is kept, for every sample, in temporary
files. So each part of the model runs once, however many layers there are, and memory holds one batch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy.typing as npt
import onnx

from onnxcompress.declarations import array_info
from onnxcompress.graph import Model
from onnxcompress.importing import names_read
from onnxcompress.passes.execution import needed_nodes
from onnxcompress.runtime.array_file import ArrayFile
from onnxcompress.runtime.capture import check_finite
from onnxcompress.runtime.session import Session, SessionSettings
from onnxcompress.serialization import array_to_tensor

Array = npt.NDArray[Any]
Batch = Mapping[str, Array]

_IN_MEMORY_BYTES = 2**29
"""Of what is kept between two depths: to write and read it takes a tenth of a refit's time."""


class Waves:
    """The order in which the layers of a model are worked on.

    Args:
        model: its structure; weights may change later.
        layers: {layer: names of its nodes}; each layer's nodes form a chain.
        together: layers that get one depth, none of which sees another: that of the deepest.

    Attributes:
        depth: {layer: its depth}.
    """

    def __init__(
        self, model: Model, layers: Mapping[str, Sequence[str]], together: Sequence[Sequence[str]] = ()
    ) -> None:
        layer_of = {node: layer for layer, nodes in layers.items() for node in nodes}
        last = {nodes[-1] for nodes in layers.values()}
        least = dict.fromkeys(layers, 0)
        while True:
            self._number(model, layer_of, last, least)
            deepest = [(each, max(self.depth[name] for name in each)) for each in together]
            if all(self.depth[name] == depth for each, depth in deepest for name in each):
                break
            least |= {name: depth for each, depth in deepest for name in each}
        self._in_layer = frozenset(layer_of)
        # What lies between the nodes of a layer exists only while the layer runs.
        inner = (node for node in model.nodes if node.name in layer_of and node.name not in last)
        self._inner = frozenset(t.name for node in inner for t in node.outputs)
        self._readers: dict[str, list[str]] = {}
        for node in model.nodes:
            for name in model.names_read(node):
                self._readers.setdefault(name, []).append(node.name)

    def _number(self, model: Model, layer_of: Mapping[str, str], last: set[str], least: Mapping[str, int]) -> None:
        """Give nodes and tensors their depths, layers at `least` so much."""
        self.depth: dict[str, int] = {}
        self._produced = {t.name: 0 for t in model.graph.inputs}
        self._nodes: dict[str, int] = {}
        for node in model.nodes:
            layer = layer_of.get(node.name)
            depth = max((self._produced.get(name, 0) for name in model.names_read(node)), default=0)
            if layer is not None:
                depth = self.depth[layer] = max(depth, least[layer])
            self._nodes[node.name] = depth
            for tensor in node.outputs:
                self._produced[tensor.name] = depth + (node.name in last)

    @property
    def count(self) -> int:
        """How many depths there are."""
        return max(self.depth.values(), default=-1) + 1

    def at(self, depth: int) -> list[str]:
        """Return the layers of a depth."""
        return [layer for layer, own in self.depth.items() if own == depth]

    def nodes_before(self, depth: int) -> set[str]:
        """Return the nodes that run between the layers of the depth before and those of `depth`."""
        glue = {n for n, own in self._nodes.items() if own == depth and n not in self._in_layer}
        return glue | {n for n, own in self._nodes.items() if own == depth - 1 and n in self._in_layer}

    def live(self, depth: int, wanted: Collection[str] = ()) -> list[str]:
        """Return the tensors that exist before the layers of `depth` run and are `wanted`, or read from then on."""

        def runs_later(node: str) -> bool:
            own = self._nodes[node]
            return own >= depth if node in self._in_layer else own > depth

        return [
            name
            for name, own in self._produced.items()
            if own <= depth
            and name not in self._inner
            and (name in wanted or any(runs_later(node) for node in self._readers.get(name, ())))
        ]


class Part:
    """A part of a model, ready to run: some of its nodes, from given tensors to wanted ones.

    Attributes:
        fed: the given tensors that it reads.
    """

    def __init__(self, model: Model, nodes: set[str], given: Sequence[str], wanted: Sequence[str]) -> None:
        self._passed = [name for name in wanted if name in given]
        self._computed = [name for name in wanted if name not in given]
        self.fed: list[str] = []
        self._session: Session | None = None
        if self._computed:
            self._session = Session(_part(model, nodes, given, self._computed), settings=SessionSettings())
            self.fed = [info.name for info in self._session.inputs]

    def run(self, batch: Batch) -> dict[str, Array]:
        """Return the wanted tensors of a batch.

        Raises:
            DataError: one of them holds NaN or infinity; it is named.
        """
        results = {name: batch[name] for name in self._passed}
        if self._session is not None:
            results.update(self._session.run({name: batch[name] for name in self.fed}, self._computed))
            for name in self._computed:
                check_finite(results[name], f"tensor '{name}' of the compressed model")
        return results


class BatchFiles:
    """Batches of named arrays, in memory as far as there is room, else in temporary files: read any number of times."""

    def __init__(self) -> None:
        self._stored: dict[str, _Stored] = {}
        self._room = _IN_MEMORY_BYTES
        self._count = 0

    @property
    def names(self) -> frozenset[str]:
        """The names of which there are arrays."""
        return frozenset(self._stored)

    def passed_on(self, batches: Iterable[Batch], names: Sequence[str]) -> Iterator[Batch]:
        """Keep the arrays of new names, and yield each batch once that is done.

        Raises:
            DataError: the disk is full.
        """
        stored = {name: _Stored() for name in names}
        self._stored.update(stored)
        count = 0
        for batch in batches:
            count += 1
            for name, own in stored.items():
                self._room -= own.append(batch[name], self._room)
            yield batch
        self._count = count

    def read(self, names: Collection[str]) -> Iterator[dict[str, Array]]:
        """Yield the arrays of some names, batch after batch; they are not to be written to."""
        stored = {name: self._stored[name] for name in names}
        for number in range(self._count):
            yield {name: own[number] for name, own in stored.items()}

    def keep(self, names: Collection[str]) -> None:
        """Forget the arrays of all other names."""
        for name in self.names.difference(names):
            self._room += self._stored.pop(name).close()


class _Stored:
    """The arrays of one name: the first ones in memory, the others in a file."""

    def __init__(self) -> None:
        self._held: list[Array] = []
        self._file: ArrayFile | None = None

    def append(self, array: Array, room: int) -> int:
        """Take one more array, into memory if all before are there and it fits; return how many bytes that takes."""
        if self._file is None and array.nbytes <= room:
            self._held.append(array)
            return array.nbytes
        if self._file is None:
            self._file = ArrayFile()
        self._file.append(array)
        return 0

    def __getitem__(self, number: int) -> Array:
        if number < len(self._held):
            return self._held[number]
        assert self._file is not None
        return self._file[number - len(self._held)]

    def close(self) -> int:
        """Forget all; return how many bytes of memory that gives back."""
        if self._file is not None:
            self._file.close()
        return sum(array.nbytes for array in self._held)


def _part(model: Model, nodes: set[str], given: Sequence[str], wanted: Sequence[str]) -> bytes:
    whole = model.skeleton()
    chosen = needed_nodes([node for node in whole.graph.node if node.name in nodes], wanted, given)
    read = {name for node in chosen for name in names_read(node)}
    graph = onnx.GraphProto(name="part", node=chosen)
    constants = model.constants()
    fed = [name for name in given if name in read]
    types = _types(model, [name for name in fed if name not in constants])
    for name in fed:
        constant = constants.pop(name, None)
        if constant is None:
            info = onnx.helper.make_tensor_value_info(name, types[name], model.shape_of(name))
        else:
            info = array_info(name, constant.values)
        graph.input.append(info)
    graph.initializer.extend(array_to_tensor(name, own.values) for name, own in constants.items() if name in read)
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    proto = onnx.ModelProto(ir_version=whole.ir_version, graph=graph, opset_import=whole.opset_import)
    proto.ir_version = max(proto.ir_version, 4)
    return bytes(proto.SerializeToString())


def _types(model: Model, names: Sequence[str]) -> dict[str, int]:
    """Return the element types of tensors; onnxruntime tells those behind operators that onnx does not know."""
    types = {name: model.dtypes[name] for name in names if name in model.dtypes}
    unknown = [name for name in names if name not in types]
    if unknown:
        proto = model.skeleton()
        proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in unknown)
        found = Session(proto.SerializeToString(), settings=SessionSettings()).outputs
        types |= {info.name: onnx.helper.np_dtype_to_tensor_dtype(info.dtype) for info in found if info.name in unknown}
    return types
