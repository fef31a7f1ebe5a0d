"""What a model that comes quantised already, as exporters write it after a training that knows of it, has in 8 bits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import onnx_graphsurgeon as gs

from onnxcompress.analysis.quantised import is_quantised_operator
from onnxcompress.graph import Model

_DEQUANTIZE = "DequantizeLinear"


def quantised_nodes(model: Model) -> dict[str, str]:
    """Return {node: why} of the nodes that convert to and from 8 bits, compute in them, or stand between such nodes.

    Runtimes take what stands between a DequantizeLinear and a QuantizeLinear together with these for one 8-bit kernel.
    """
    own = [node for node in model.nodes if is_quantised_operator(node.op)]
    behind = _reached((node for node in own if node.op == _DEQUANTIZE), _readers)
    before = _reached((node for node in own if node.op != _DEQUANTIZE), _makers)
    reasons = {node.name: f"{node.op} is of a model that is quantised already" for node in own}
    between = "between DequantizeLinear and QuantizeLinear: computed in eight bits already"
    return {
        node.name: reasons.get(node.name, between)
        for node in model.nodes
        if node.name in (behind & before) | {*reasons}
    }


def told_quantised(quantised: Mapping[str, str], converted: int, asked: str) -> str:
    """Return what a conversion says of a model that comes quantised.

    Args:
        quantised: as `quantised_nodes` returns it.
        converted: how many other nodes are converted.
        asked: the value of --quantize.
    """
    others = f"{converted} nodes beside these were converted" if converted else "nothing beside these is left"
    form = {"fp16": "half precision", "int8": "eight bits by these data"}[asked]
    return (
        f"--quantize {asked}: the model is quantised already, and its {len(quantised)} nodes of eight bits stay as "
        f"they are; {others}. Give the float model to have all of it in {form}"
    )


def _reached(starts: Iterable[gs.Node], neighbours: Callable[[gs.Node], Iterable[gs.Node]]) -> set[str]:
    """Return the nodes that are reached without passing one that is quantised."""
    left, found = list(starts), set()
    while left:
        for node in neighbours(left.pop()):
            if node.name not in found and not is_quantised_operator(node.op):
                found.add(node.name)
                left.append(node)
    return found


def _readers(node: gs.Node) -> Iterable[gs.Node]:
    return (reader for tensor in node.outputs for reader in tensor.outputs)


def _makers(node: gs.Node) -> Iterable[gs.Node]:
    return (maker for tensor in node.inputs for maker in tensor.inputs)
