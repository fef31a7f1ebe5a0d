"""The links between graphsurgeon's nodes and tensors: cut faster than by its own lists, and looked at."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import onnx_graphsurgeon as gs


def cut_links(nodes: Iterable[gs.Node]) -> None:
    """Take every input and output from `nodes`, all at once.

    graphsurgeon's own lists search the tensor's readers for each link, comparing nodes by content: quadratic where many
    nodes read one constant.
    """
    cut = list(nodes)
    gone = {id(node) for node in cut}
    touched = {id(tensor): tensor for node in cut for tensor in chain(node.inputs, node.outputs)}
    for tensor in touched.values():
        for links in (tensor.inputs, tensor.outputs):
            list.__setitem__(links, slice(None), [node for node in links if id(node) not in gone])
    for node in cut:
        list.clear(node.inputs)
        list.clear(node.outputs)


def has_input(node: gs.Node, position: int) -> bool:
    """Whether an optional input is given."""
    return position < len(node.inputs) and bool(node.inputs[position].name)
