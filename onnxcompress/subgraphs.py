"""The graphs that a file's nodes carry in their attributes: branches of If, bodies of Loop, Scan and SequenceMap."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx


def of_attribute(attribute: onnx.AttributeProto) -> list[onnx.GraphProto]:
    """Return the graphs of an attribute, not those inside them."""
    return [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


def sub_graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs of a node, not those inside them."""
    for attribute in node.attribute:
        yield from of_attribute(attribute)


def with_sub_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and all graphs inside it, the outer ones first."""
    yield graph
    for node in graph.node:
        for inner in sub_graphs(node):
            yield from with_sub_graphs(inner)


def with_inner_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Yield nodes, each followed by all nodes of its sub-graphs."""
    for node in nodes:
        yield node
        for graph in sub_graphs(node):
            yield from with_inner_nodes(graph.node)


def all_names(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield every name of a node or tensor in a graph and in those inside it."""
    for each in with_sub_graphs(graph):
        yield from (named.name for named in (*each.input, *each.output, *each.initializer, *each.node))
        for node in each.node:
            yield from (*node.input, *node.output)
