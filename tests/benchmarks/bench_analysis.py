"""How the channel analysis grows with the graph: a chain, and a residual/concat net, of 500 to 4,000 nodes.

Run: python tests/benchmarks/bench_analysis.py
"""

from __future__ import annotations

import time

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxcompress.graph import Model
from onnxcompress.passes.base import PassContext
from onnxcompress.passes.pruning import FilterPruning, PruningConfig

WIDTH = 16


class Net:
    """A growing graph of 1x1 convolutions."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(0)

    def add(self, op: str, inputs: list[str], **attributes: object) -> str:
        """Append a node; return its output's name."""
        output = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output], name=f"n{len(self.nodes)}", **attributes))
        return output

    def conv(self, source: str, inputs: int, outputs: int = WIDTH) -> str:
        """Append a 1x1 convolution."""
        name = f"w{len(self.weights)}"
        values = self.random.standard_normal((outputs, inputs, 1, 1)).astype(np.float32)
        self.weights.append(numpy_helper.from_array(values, name))
        return self.add("Conv", [source, name])

    def model(self, last: str) -> Model:
        """Return the network with a classifier of 4 outputs behind `last`."""
        last = self.conv(last, WIDTH, 4)
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
            [helper.make_tensor_value_info(last, TensorProto.FLOAT, [1, 4, 8, 8])],
            self.weights,
        )
        return Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def chain(nodes: int) -> Model:
    """Return convolutions and activations, one behind the other."""
    net = Net()
    last = net.conv("x", 3)
    while len(net.nodes) < nodes:
        last = net.conv(net.add("Relu", [last]), WIDTH)
    return net.model(last)


def residual_concat(nodes: int) -> Model:
    """Return blocks of a residual addition and a concatenation of two branches."""
    net = Net()
    last = net.conv("x", 3)
    while len(net.nodes) < nodes:
        branch = net.add("Relu", [net.conv(last, WIDTH)])
        last = net.add("Add", [last, net.conv(branch, WIDTH)])
        joined = net.add("Concat", [last, branch], axis=1)
        last = net.conv(joined, 2 * WIDTH)
    return net.model(last)


def main() -> None:
    """Print seconds of plan and apply for growing graphs, and the slope against the size."""
    for build in (chain, residual_concat):
        seconds = []
        sizes = (500, 1000, 2000, 4000)
        for nodes in sizes:
            model = build(nodes)
            start = time.perf_counter()
            pruning = FilterPruning(PruningConfig(0.5))
            pruning.apply(model, pruning.plan(model, PassContext()), PassContext())
            seconds.append(time.perf_counter() - start)
        slope = np.polyfit(np.log(sizes), np.log(seconds), 1)[0]
        shown = ", ".join(f"{n} nodes {s:.2f} s" for n, s in zip(sizes, seconds, strict=True))
        print(f"{build.__name__}: {shown}; time grows with nodes ** {slope:.2f}")


if __name__ == "__main__":
    main()
