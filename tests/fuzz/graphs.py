"""Random valid CNN graphs out of every operator the channel analysis knows, and some that it does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import helper

from tests.fuzz.blocks_layers import LAYERS, Block, conv, convolve, flattened, fully_connected
from tests.fuzz.blocks_movement import MOVEMENT
from tests.fuzz.blocks_pointwise import POINTWISE
from tests.fuzz.blocks_unknown import UNKNOWN
from tests.fuzz.builder import FLOAT, Builder, Unfit, Value
from tests.fuzz.choices import Choices
from tests.versions import newest_opset

OLDEST_OPSET = 9
NEWEST_OPSET = newest_opset()
MAX_NODES = 25
MAX_OUTPUTS = 3

KNOWN: tuple[Block, ...] = (*LAYERS, *POINTWISE, *MOVEMENT)
ANY: tuple[Block, ...] = (*KNOWN, *KNOWN, *UNKNOWN)


@dataclass(frozen=True, eq=False)
class Example:
    """A model and one batch of inputs."""

    proto: onnx.ModelProto
    feeds: dict[str, np.ndarray[Any, Any]]

    def __repr__(self) -> str:
        return onnx.printer.to_text(self.proto)


def make_example(
    c: Choices, blocks: Sequence[Block] = ANY, *, heads_only: bool = False, careful: bool = False, most: int = 8
) -> Example:
    """Return a random graph of `blocks`.

    With `heads_only` every output is computed by a layer of its own; with `careful` no constant names a length that the
    inputs leave open (which happens in real exports, and freezes what it touches).
    """
    rank = c.pick([2, 2, 2, 1, 3])
    opset = c.integer(OLDEST_OPSET, NEWEST_OPSET)
    form = c.pick(["initializer", "initializer", "mixed", "node"])
    b = Builder(c, opset=opset, rank=rank, constants=form)
    declared = c.pick(["fixed", "batch", "batch and space", "space"])
    if careful or not c.chance(15):
        b.open_batch, b.open_space = "batch" in declared, "space" in declared
    size = {1: (6, 12), 2: (4, 8), 3: (4, 4)}[rank]
    shape = (c.integer(1, 3), c.integer(1, 6), *[c.integer(*size) for _ in range(rank)])
    inputs = [Value("x", shape)]
    if c.chance(20):
        inputs.append(Value("x2", (shape[0], c.integer(1, 6), *shape[2:])))
    b.offer(*inputs)
    for _ in inputs:
        conv(b) if c.chance(50) else b.offer(convolve(b, b.choose_map(), c.integer(2, 12)))
    for _ in range(c.integer(1, most)):
        if len(b.nodes) >= MAX_NODES:
            break
        _attempt(b, c.pick(blocks))
    outputs = _outputs(b, heads_only)
    read = [v for v in inputs if v.name in b.read]
    proto = b.proto(
        [helper.make_tensor_value_info(v.name, FLOAT, _declared(c, v, declared)) for v in read],
        [helper.make_tensor_value_info(v.name, FLOAT, [None] * len(v.shape)) for v in outputs],
        ir=3 if opset == OLDEST_OPSET and c.chance(50) else 10,
    )
    _declare_outputs(proto)
    _rename(proto, c.pick(["unnamed", "named", "same"]))
    feeds = {v.name: b.rng.standard_normal(v.shape).astype(np.float32) for v in read}
    return Example(proto, feeds)


def _attempt(b: Builder, block: Block) -> None:
    """Add a block; what it added before it found no fitting value is taken back."""
    state = (len(b.nodes), len(b.initializers), len(b.defaults), len(b.open), set(b.read))
    try:
        block(b)
    except Unfit:
        nodes, initializers, defaults, values, b.read = state
        del b.nodes[nodes:], b.initializers[initializers:], b.defaults[defaults:], b.open[values:]


def _outputs(b: Builder, heads_only: bool) -> list[Value]:
    """Give every open value that nothing read a head, or make it an output as it is."""
    c = b.choices
    b.most_elements *= 100  # a head has to fit whatever it stands on
    leaves = [v for v in b.open if v.name not in b.read] or [b.open[-1]]
    if len(leaves) > MAX_OUTPUTS:
        flat = [v if len(v.shape) == 2 else _to_vector(b, v) for v in leaves[MAX_OUTPUTS - 1 :]]
        joined = b.op("Concat", flat, [flat[0].shape[0], sum(v.shape[1] for v in flat)], axis=1)
        leaves = [*leaves[: MAX_OUTPUTS - 1], joined]
    inner = [v for v in b.open if v.name in b.read and v not in leaves and v.name not in ("x", "x2")]
    outputs = [_head(b, v) if heads_only or c.chance(75) or v.name in ("x", "x2") else v for v in leaves]
    if inner and not heads_only and c.chance(10):
        outputs.append(c.pick(inner))
    return list({v.name: v for v in outputs}.values())


def _to_vector(b: Builder, v: Value) -> Value:
    if len(v.shape) != b.rank + 2:
        return b.op("Flatten", [v], [v.shape[0], int(np.prod(v.shape[1:]))], axis=1)
    y = b.op("GlobalAveragePool", [v], [*v.shape[:2], *[1] * b.rank])
    return b.op("Flatten", [y], v.shape[:2], axis=1)


def _head(b: Builder, v: Value) -> Value:
    c, outputs = b.choices, b.choices.integer(1, 5)
    if len(v.shape) == b.rank + 2 and c.chance(30):
        return convolve(b, v, outputs)
    if len(v.shape) == b.rank + 2 and c.chance(30) and not b.has_open_space(v):
        y = fully_connected(b, flattened(b, v), outputs)
    else:
        y = fully_connected(b, v if len(v.shape) == 2 else _to_vector(b, v), outputs)
    return b.op("Softmax", [y], y.shape, axis=1) if c.chance(30) else y


def _declared(c: Choices, value: Value, form: str) -> list[int | str | None]:
    """Return an input's declared shape: fixed, or with the batch or the space left open."""
    shape: list[int | str | None] = list(value.shape)
    if "batch" in form:
        shape[0] = c.pick(["n", None])
    if "space" in form:
        shape[2:] = [f"s{axis}" for axis in range(2, len(shape))]
    return shape


def _declare_outputs(proto: onnx.ModelProto) -> None:
    """Declare the outputs as shape inference finds them, so that the declaration contradicts nothing."""
    inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True).graph.output
    for declared, info in zip(proto.graph.output, inferred, strict=True):
        if info.type.tensor_type.HasField("shape"):
            declared.CopyFrom(info)


def _rename(proto: onnx.ModelProto, form: str) -> None:
    for at, node in enumerate(proto.graph.node):
        node.name = {"unnamed": "", "named": f"{node.op_type}/{at}", "same": "node"}[form]


@st.composite
def cnn_examples(
    draw: Any, blocks: Sequence[Block] = ANY, *, heads_only: bool = False, careful: bool = False, most: int = 8
) -> Example:
    """Draw an example; it shrinks towards few blocks, small tensors and plain initializers."""
    return make_example(Choices.drawn(draw), blocks, heads_only=heads_only, careful=careful, most=most)
