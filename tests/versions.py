"""What the installed onnx and onnxruntime can do: cases that they are too old for are skipped, and say so."""

from __future__ import annotations

import functools

import onnx
import onnxruntime
from onnx import TensorProto, helper

NEWEST_TESTED_OPSET = 24

FIRST_ONNXRUNTIME = {
    "test_what_kernels_make_something_else_of_stays_in_float[cubic]": (
        (1, 22),
        "moves a transposition before a cubic Resize, and then does not take its scales",
    ),
    "not_by_kernels_of_integers": ((1, 21), "fuses no such layer into one of integers"),
}
"""Tests by a part of their name: the first release of onnxruntime in which they can run, and what older ones do."""


@functools.cache
def newest_opset() -> int:
    """Return the newest opset, up to the newest that is tested, that onnx and onnxruntime both take."""
    for opset in range(min(NEWEST_TESTED_OPSET, onnx.defs.onnx_opset_version()), 0, -1):
        infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
        graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", infos[:1], infos[1:])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        try:
            onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        except Exception:  # too new for it; the types of its errors differ
            continue
        return opset
    raise AssertionError("onnxruntime takes no opset at all")


def has_bfloat16() -> bool:
    """Whether onnx reads bfloat16 as such, not as float32."""
    return int(helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16).itemsize) == 2


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def reason_to_skip(test: str, opset: object) -> str | None:
    """Return why a test of this name and opset cannot run here, None if it can."""
    for name, (first, what) in FIRST_ONNXRUNTIME.items():
        if name in test and _release(onnxruntime.__version__) < first:
            return f"onnxruntime {onnxruntime.__version__} {what}"
    if isinstance(opset, int) and opset > newest_opset():
        return f"onnx {onnx.__version__} with onnxruntime {onnxruntime.__version__} ends at opset {newest_opset()}"
    if "bfloat16" in test and not has_bfloat16():
        return f"onnx {onnx.__version__} has no bfloat16 arrays"
    return None
