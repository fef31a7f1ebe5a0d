"""Backward rule of Resize: linear in what it resizes, one axis after the other, so each axis has a matrix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnxcompress.passes.recovery.backward_nodes import Array, Site, lengths
from onnxcompress.runtime.session import Session, SessionSettings

_OPSET, _IR_VERSION = 19, 9
_ALL_AXES = frozenset({"axes", "keep_aspect_ratio_policy"})


def resize(site: Site) -> Mapping[int, str]:
    """Of known lengths: the gradient times the matrix of each axis that is resized."""
    before, after = lengths((site.shape(0) or ())[1:]), lengths((site.tape.shapes.get(site.y) or ())[1:])
    policy = site.attributes.get("keep_aspect_ratio_policy", "stretch")
    if not before or not after or "crop" in str(site.attributes.get("coordinate_transformation_mode")):
        return {}
    scales = _scales(site, len(before) + 1)
    if scales is None or policy != "stretch":
        return {}
    g, rank = site.g, len(before) + 1
    attributes = {name: value for name, value in site.attributes.items() if name not in _ALL_AXES}
    for axis, (length, result) in enumerate(zip(before, after, strict=True), start=1):
        if scales[axis] == 1.0 or (length == result and not scales[axis]):
            continue
        matrix = resize_matrix(length, result, scales[axis], attributes)
        if axis == rank - 2:
            g = site.tape.add("MatMul", matrix.T, g)
            continue
        turned = [*(other for other in range(rank) if other != axis), axis]
        moved = g if axis == rank - 1 else site.tape.add("Transpose", g, perm=turned)
        g = site.tape.add("MatMul", moved, matrix)
        if axis < rank - 1:
            g = site.tape.add("Transpose", g, perm=[turned.index(other) for other in range(rank)])
    return {0: g}


def _scales(site: Site, rank: int) -> list[float] | None:
    """Return the scale of each axis, 0 where the resized length tells it; None where they are computed."""
    axes = site.attributes.get("axes") or range(rank)
    if len(site.node.input) < 3 or not site.node.input[2]:
        return [0.0] * rank
    given = site.constant(2)
    if given is None:
        return None
    if not given.size:
        return [0.0] * rank
    scales = [1.0] * rank
    for axis, scale in zip(axes, given.reshape(-1), strict=True):
        scales[axis] = float(scale)
    return scales


def resize_matrix(length: int, result: int, scale: float, attributes: Mapping[str, Any]) -> Array:
    """Return (result, length): what each element of a resized axis takes of the elements before.

    Args:
        scale: as the node gives it; 0 where it gives the length of the result.
        attributes: of the node, as for all axes.
    """
    inputs, given = ["x", "", "", "given"], np.array([1, length, 1, result])
    if scale:
        inputs, given = ["x", "", "given"], np.array([1.0, 1.0, 1.0, scale], np.float32)
    graph = helper.make_graph(
        [helper.make_node("Resize", inputs, ["y"], "resize", **attributes)],
        "axis",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, length, 1, length])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(given, "given")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    session = Session(model.SerializeToString(), settings=SessionSettings(threads=1))
    units = np.eye(length, dtype=np.float32).reshape(1, length, 1, length)
    taken = session.run({"x": units})["y"]
    return np.ascontiguousarray(taken.reshape(length, result).T)
