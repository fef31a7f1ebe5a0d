"""Models of a few kilobytes and data for them, for tests of what stands around the passes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

CLASSES = 4
SIZE = 8


def conv_net(seed: int = 0, channels: int = 16, batch: int | str = "batch") -> onnx.ModelProto:
    """Return Conv, Relu, Conv of stride 2, Relu, Flatten, Gemm: `x` (N, 3, 8, 8) to `y` (N, 4)."""
    generator = np.random.default_rng(seed)

    def weight(name: str, *shape: int) -> TensorProto:
        values = generator.standard_normal(shape).astype(np.float32) / np.sqrt(np.prod(shape[1:]) or 1)
        return numpy_helper.from_array(values.astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], "second", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["c2"], ["r2"], "relu2"),
        helper.make_node("Flatten", ["r2"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["y"], "classifier", transB=1),
    ]
    weights = [
        weight("w1", channels, 3, 3, 3),
        weight("b1", channels),
        weight("w2", channels, channels, 3, 3),
        weight("b2", channels),
        weight("w3", CLASSES, channels * (SIZE // 2) ** 2),
        numpy_helper.from_array(np.zeros(CLASSES, np.float32), "b3"),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, SIZE, SIZE])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, CLASSES])]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def map_net(*, classes: bool = False) -> onnx.ModelProto:
    """Return the convolutions of `conv_net` without its classifier: `x` (N, 3, 8, 8) to `c2` (N, 16, 4, 4).

    With `classes` the only output is the class of each place, as whole numbers: `places` (N, 4, 4).
    """
    model = conv_net()
    graph = model.graph
    del graph.node[3:], graph.initializer[4:], graph.output[:]
    output = helper.make_tensor_value_info("c2", TensorProto.FLOAT, ["batch", 16, 4, 4])
    if classes:
        graph.node.append(helper.make_node("ArgMax", ["c2"], ["places"], "places", axis=1, keepdims=0))
        output = helper.make_tensor_value_info("places", TensorProto.INT64, ["batch", 4, 4])
    graph.output.append(output)
    return model


BOXES, SCORES = 4, 6


def detector_net(*, joined: bool = True) -> onnx.ModelProto:
    """Return the convolutions of `conv_net` with two heads of 3x3: `boxes` in pixels and `scores` from 0 to 1.

    With `joined` they are one output `found` (N, 4 + 6, 16), boxes first, otherwise (N, 4, 16) and (N, 6, 16).
    """
    model = map_net()
    graph = model.graph
    generator = np.random.default_rng(5)
    constants = {"pixels": np.array(100.0, np.float32)}
    for name, count in (("boxes", BOXES), ("scores", SCORES)):
        constants[f"w_{name}"] = (generator.standard_normal((count, 16, 3, 3)) / 6.0).astype(np.float32)
        constants[f"b_{name}"] = np.full(count, 1.0 if name == "boxes" else -2.0, np.float32)
        constants[f"{name}_places"] = np.array([0, count, 16], np.int64)
        inputs = ["r2", f"w_{name}", f"b_{name}"]
        graph.node.append(helper.make_node("Conv", inputs, [f"{name}_map"], f"{name}_head", pads=[1, 1, 1, 1]))
    graph.node.insert(3, helper.make_node("Relu", ["c2"], ["r2"], "relu2"))
    graph.node.extend(
        [
            helper.make_node("Mul", ["boxes_map", "pixels"], ["scaled"], "scaled"),
            helper.make_node("Sigmoid", ["scores_map"], ["rated"], "rated"),
            helper.make_node("Reshape", ["scaled", "boxes_places"], ["boxes"], "boxes"),
            helper.make_node("Reshape", ["rated", "scores_places"], ["scores"], "scores"),
        ]
    )
    graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in constants.items())
    del graph.output[:]
    shapes = {"found": BOXES + SCORES} if joined else {"boxes": BOXES, "scores": SCORES}
    if joined:
        graph.node.append(helper.make_node("Concat", ["boxes", "scores"], ["found"], "found", axis=1))
    for name, count in shapes.items():
        graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", count, 16]))
    return model


def filtered_net() -> onnx.ModelProto:
    """Return `detector_net` with a NonMaxSuppression behind it: kept (D, 4), rates (D,), classes (D,)."""
    model = detector_net(joined=False)
    graph = model.graph
    constants = {
        "most": np.array([5], np.int64),
        "overlap": np.array([0.5], np.float32),
        "least": np.array([0.1], np.float32),
        "of_box": np.array([0, 2], np.int64),
        "of_class": np.array(1, np.int64),
    }
    graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in constants.items())
    graph.node.extend(
        [
            helper.make_node("Transpose", ["boxes"], ["corners"], "corners", perm=[0, 2, 1]),
            helper.make_node("NonMaxSuppression", ["corners", "scores", "most", "overlap", "least"], ["chosen"], "nms"),
            helper.make_node("Gather", ["chosen", "of_box"], ["places"], "places", axis=1),
            helper.make_node("GatherND", ["corners", "places"], ["kept"], "kept"),
            helper.make_node("GatherND", ["scores", "chosen"], ["rates"], "rates"),
            helper.make_node("Gather", ["chosen", "of_class"], ["classes"], "classes", axis=1),
        ]
    )
    del graph.output[:]
    for name, kind, shape in (
        ("kept", TensorProto.FLOAT, ["found", 4]),
        ("rates", TensorProto.FLOAT, ["found"]),
        ("classes", TensorProto.INT64, ["found"]),
    ):
        graph.output.append(helper.make_tensor_value_info(name, kind, shape))
    onnx.checker.check_model(model)
    return model


def dense_net() -> onnx.ModelProto:
    """Return a single Gemm: nothing that filter pruning or Tucker works on."""
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])]
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w"], ["y"], "dense")], "dense", inputs, outputs, [weight]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def samples(count: int = 40, seed: int = 1) -> npt.NDArray[np.float32]:
    """Return inputs for `conv_net`, shape (count, 3, 8, 8)."""
    return np.random.default_rng(seed).standard_normal((count, 3, SIZE, SIZE)).astype(np.float32)


def save_data(path: Path, model: onnx.ModelProto, count: int = 40) -> Path:
    """Write an `.npz` of inputs, labelled with the classes that `model` itself gives them."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    inputs = samples(count)
    labels = np.concatenate([session.run(None, {"x": inputs[n : n + 1]})[0].argmax(axis=1) for n in range(count)])
    np.savez(path, x=inputs, labels=labels.astype(np.int64))
    return path


def image_and_table(batch: int | str = "n", batch_of_table: int | str = "n") -> onnx.ModelProto:
    """Return two inputs, `x` (N, 6, 8, 8) by Conv and pooling, `t` (M, 3) by MatMul, joined before a MatMul: `y`."""
    generator = np.random.default_rng(0)
    shapes = {"w": (8, 6, 3, 3), "d": (3, 4), "g": (12, 5)}
    weights = {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    nodes = [
        helper.make_node("MatMul", ["t", "d"], ["dense"], "dense"),
        helper.make_node("Conv", ["x", "w"], ["c"], "conv"),
        helper.make_node("GlobalAveragePool", ["c"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("Concat", ["f", "dense"], ["joined"], "join", axis=1),
        helper.make_node("MatMul", ["joined", "g"], ["y"], "last"),
    ]
    declared = {"x": [batch, 6, 8, 8], "t": [batch_of_table, 3], "y": [batch, 5]}
    infos = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in declared.items()}
    tensors = [numpy_helper.from_array(values, name) for name, values in weights.items()]
    graph = helper.make_graph(nodes, "two inputs", [infos["x"], infos["t"]], [infos["y"]], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


MACS_OF_IMAGE_AND_TABLE = 8 * 6 * 9 * 36 + 3 * 4 + 12 * 5
