"""The links between graphsurgeon's nodes and tensors, where its own lists are too slow."""

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
