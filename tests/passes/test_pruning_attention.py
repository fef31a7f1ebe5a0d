"""Products of two computed tensors, and parts of what lies on the axes of heads and of their channels."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxcompress.analysis.channels import ChannelAnalysis, find_groups
from onnxcompress.graph import Model
from onnxcompress.passes.base import PassContext
from onnxcompress.passes.pruning import FilterPruning, PruningConfig
from tests.passes.test_pruning_graphs import Constants, conv, prune, weight
from tests.small_models import build, node

HEADS, TOKENS = 2, 64


def attention(constants: Constants, q: str, k: str, v: str, output: str) -> list[onnx.NodeProto]:
    """Attention of (B, heads, channels, tokens), as an image again: (B, heads * channels, 8, 8)."""
    constants |= {"scale": np.array(0.5, np.float32), "image": np.array([0, -1, 8, 8])}
    return [
        node("Transpose", [q], f"{output}.qt", perm=[0, 1, 3, 2]),
        node("MatMul", [f"{output}.qt", k], f"{output}.scores"),
        node("Mul", [f"{output}.scores", "scale"], f"{output}.scaled"),
        node("Softmax", [f"{output}.scaled"], f"{output}.weights", axis=-1),
        node("Transpose", [f"{output}.weights"], f"{output}.wt", perm=[0, 1, 3, 2]),
        node("MatMul", [v, f"{output}.wt"], f"{output}.mixed"),
        node("Reshape", [f"{output}.mixed", "image"], output),
    ]


def built(nodes: list[onnx.NodeProto], constants: Constants, opset: int = 17) -> Model:
    return build(nodes, constants, opset=opset, shape=("n", 6, 8, 8))


def convolutions(model: Model) -> dict[str, tuple[int, ...]]:
    return {n.name: n.inputs[1].shape for n in model.nodes if n.op == "Conv"}


def test_queries_and_keys_leave_together_and_values_with_what_reads_them() -> None:
    constants: Constants = {"heads": np.array([0, HEADS, -1, TOKENS])}
    nodes = [conv(name, "x", constants, 6, 12) for name in "qkv"]
    nodes += [node("Reshape", [name, "heads"], f"{name}h") for name in "qkv"]
    nodes += attention(constants, "qh", "kh", "vh", "a")
    pruned = prune(built([*nodes, conv("out", "a", constants, 12, 3)], constants))
    assert convolutions(pruned) == {**dict.fromkeys("qkv", (6, 6, 1, 1)), "out": (3, 6, 1, 1)}


@pytest.mark.parametrize("by", ["Gather", "Split", "Slice"])
def test_one_layer_makes_queries_keys_and_values_one_behind_the_other(by: str) -> None:
    """Transformers of timm: (B, 3, heads, channels, tokens), of which each reader takes one."""
    constants: Constants = {"heads": np.array([0, 3, HEADS, -1, TOKENS]), "first": np.array([0])}
    nodes = [conv("qkv", "x", constants, 6, 36), node("Reshape", ["qkv", "heads"], "all")]
    if by == "Split":
        nodes.append(node("Split", ["all"], "q1", "k1", "v1", axis=1, num_outputs=3))
    for at, name in enumerate("qkv"):
        constants |= {f"{name}.at": np.array(at), f"{name}.from": np.array([at]), f"{name}.to": np.array([at + 1])}
        constants["one"] = np.array([1])
        if by == "Gather":
            nodes.append(node("Gather", ["all", f"{name}.at"], f"{name}h", axis=1))
            continue
        if by == "Slice":
            nodes.append(node("Slice", ["all", f"{name}.from", f"{name}.to", "one"], f"{name}1"))
        nodes.append(node("Squeeze", [f"{name}1", "one"], f"{name}h"))
    nodes += attention(constants, "qh", "kh", "vh", "a")
    pruned = prune(built([*nodes, conv("out", "a", constants, 12, 3)], constants, opset=18))
    assert convolutions(pruned) == {"qkv": (18, 6, 1, 1), "out": (3, 6, 1, 1)}


@pytest.mark.parametrize("by", ["Split", "Slice"])
def test_every_head_has_its_queries_keys_and_values_side_by_side(by: str) -> None:
    """Attention of YOLO11 and LeViT: (B, heads, 2 + 2 + 4 channels, tokens)."""
    constants: Constants = {
        "heads": np.array([0, HEADS, 8, TOKENS]),
        "parts": np.array([2, 2, 4]),
        "two": np.array([2]),
    }
    nodes = [conv("qkv", "x", constants, 6, 16), node("Reshape", ["qkv", "heads"], "all")]
    if by == "Split":
        nodes.append(node("Split", ["all", "parts"], "qh", "kh", "vh", axis=2))
    for name, start, end in (("q", 0, 2), ("k", 2, 4), ("v", 4, 8)) if by == "Slice" else ():
        constants |= {f"{name}.from": np.array([start]), f"{name}.to": np.array([end])}
        nodes.append(node("Slice", ["all", f"{name}.from", f"{name}.to", "two"], f"{name}h"))
    nodes += attention(constants, "qh", "kh", "vh", "a")
    pruned = prune(built([*nodes, conv("out", "a", constants, 8, 3)], constants))
    assert convolutions(pruned) == {"qkv": (8, 6, 1, 1), "out": (3, 4, 1, 1)}


def test_heads_that_share_one_key_keep_the_same_channels() -> None:
    constants: Constants = {"heads": np.array([0, HEADS, -1, TOKENS]), "one": np.array([0, 1, -1, TOKENS])}
    nodes = [conv("q", "x", constants, 6, 12), conv("k", "x", constants, 6, 6), conv("v", "x", constants, 6, 6)]
    nodes += [node("Reshape", [n, "heads" if n == "q" else "one"], f"{n}h") for n in "qkv"]
    nodes += attention(constants, "qh", "kh", "vh", "a")
    pruned = prune(built([*nodes, conv("out", "a", constants, 12, 3)], constants))
    assert convolutions(pruned)["q"] == (6, 6, 1, 1)
    assert convolutions(pruned)["k"] == (3, 6, 1, 1)


def test_maps_are_weighed_by_maps() -> None:
    """The context of a GCNet: all positions of every channel, summed by weights that the channels have in common."""
    constants: Constants = {"flat": np.array([0, 0, -1]), "column": np.array([0, TOKENS, 1])}
    nodes = [
        conv("a", "x", constants, 6, 12),
        conv("mask", "x", constants, 6, 1),
        node("Reshape", ["a", "flat"], "rows"),
        node("Reshape", ["mask", "column"], "weights"),
        node("MatMul", ["rows", "weights"], "context"),
        node("Unsqueeze", ["context", "last"], "map"),
        conv("out", "map", constants, 12, 3),
    ]
    constants["last"] = np.array([3])
    pruned = prune(built(nodes, constants))
    assert convolutions(pruned)["a"] == (6, 6, 1, 1)
    assert convolutions(pruned)["out"] == (3, 6, 1, 1)


def test_a_stack_of_constant_matrices_is_sliced_where_it_is_summed_over() -> None:
    constants: Constants = {"heads": np.array([0, HEADS, -1, TOKENS]), "stack": weight(HEADS, 6, 5)}
    nodes = [
        conv("a", "x", constants, 6, 12),
        node("Reshape", ["a", "heads"], "h"),
        node("Transpose", ["h"], "t", perm=[0, 1, 3, 2]),
        node("MatMul", ["t", "stack"], "y", name="product"),
    ]
    pruned = prune(built(nodes, constants))
    assert next(n for n in pruned.nodes if n.op == "MatMul").inputs[1].shape == (HEADS, 3, 5)


def test_a_scale_and_a_shift_that_one_layer_makes() -> None:
    """Adaptive instance normalisation: (B, 2, C, 1, 1), of which the first row scales and the second shifts."""
    constants: Constants = {"rows": np.array([0, 2, -1, 1, 1]), "0": np.array(0), "1": np.array(1)}
    nodes = [
        conv("a", "x", constants, 6, 12),
        node("GlobalAveragePool", ["x"], "style"),
        conv("affine", "style", constants, 6, 24),
        node("Reshape", ["affine", "rows"], "both"),
        node("Gather", ["both", "0"], "scale", axis=1),
        node("Gather", ["both", "1"], "shift", axis=1),
        node("Mul", ["a", "scale"], "scaled"),
        node("Add", ["scaled", "shift"], "shifted"),
        conv("out", "shifted", constants, 12, 3),
    ]
    pruned = prune(built(nodes, constants))
    assert convolutions(pruned) == {"a": (6, 6, 1, 1), "affine": (12, 6, 1, 1), "out": (3, 6, 1, 1)}


def test_a_table_of_all_channels_by_all_keeps_one_side() -> None:
    """Attention between channels: rows may leave, but for columns the Softmax runs over them."""
    constants: Constants = {"flat": np.array([0, 0, -1]), "back": np.array([0, 0, 8, 8])}
    nodes = [conv(name, "x", constants, 6, 12) for name in "qkv"]
    nodes += [node("Reshape", [name, "flat"], f"{name}f") for name in "qkv"]
    nodes += [
        node("Transpose", ["kf"], "kt", perm=[0, 2, 1]),
        node("MatMul", ["qf", "kt"], "table", name="table"),
        node("Softmax", ["table"], "weights", axis=-1),
        node("MatMul", ["weights", "vf"], "mixed"),
        node("Reshape", ["mixed", "back"], "map"),
        conv("out", "map", constants, 12, 3),
    ]
    model = built(nodes, constants)
    frozen = {group.name: set(group.frozen.values()) for group in find_groups(ChannelAnalysis(model)).groups}
    assert frozen["k"] == {"'table' (MatMul) makes a table of them and of other channels"}
    assert not frozen["q"]
    assert convolutions(prune(model)) == {
        "q": (6, 6, 1, 1),
        "k": (12, 6, 1, 1),
        "v": (12, 6, 1, 1),
        "out": (3, 6, 1, 1),
    }


def test_rows_among_those_of_another_division_need_no_integer_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every head of q, k and v keeps as many: so do those of q and k alone, which their product asks for."""

    def no_program(*_: object) -> set[int]:
        raise AssertionError("an integer program was solved")

    monkeypatch.setattr("onnxcompress.passes.pruning.selection.solve", no_program)
    constants: Constants = {"heads": np.array([0, 3, HEADS, -1, TOKENS])}
    nodes = [conv("qkv", "x", constants, 6, 36), node("Reshape", ["qkv", "heads"], "all")]
    for at, name in enumerate("qkv"):
        constants[f"{name}.at"] = np.array(at)
        nodes.append(node("Gather", ["all", f"{name}.at"], f"{name}h", axis=1))
    nodes += attention(constants, "qh", "kh", "vh", "a")
    pruned = prune(built([*nodes, conv("out", "a", constants, 12, 3)], constants))
    assert convolutions(pruned)["qkv"] == (18, 6, 1, 1)


def test_channels_of_heads_are_ranked_by_their_activations() -> None:
    """The loudest channels of every head stay, wherever they stand."""
    constants: Constants = {"heads": np.array([0, HEADS, -1, TOKENS])}
    nodes = [conv(name, "x", constants, 6, 12) for name in "qk"]
    nodes += [node("Reshape", [name, "heads"], f"{name}h") for name in "qk"]
    nodes += [node("Transpose", ["qh"], "qt", perm=[0, 1, 3, 2]), node("MatMul", ["qt", "kh"], "scores")]
    for name in "qk":
        constants[f"{name}.w"] *= np.tile([9, 9, 9, 1, 1, 1], HEADS).reshape(-1, 1, 1, 1).astype(np.float32)
    images = [{"x": np.random.default_rng(1).standard_normal((4, 6, 8, 8)).astype(np.float32)}]
    model, context = built(nodes, constants), PassContext(calibration=lambda: images)
    pruning = FilterPruning(PruningConfig(0.5, importance="activation"))
    result = pruning.apply(model, pruning.plan(model, context), context)
    left = next(n for n in result.model.nodes if n.name == "q").inputs[1].values
    assert np.array_equal(left, constants["q.w"][[0, 1, 2, 6, 7, 8]])


@pytest.mark.parametrize("places", [1, 3])
def test_a_token_that_is_repeated_for_each_sample_leaves_with_what_it_stands_beside(places: int) -> None:
    """The class token of a vision transformer at an open batch, before the tokens of the image."""
    constants: Constants = {"rows": np.array([0, 8, 64]), "first": np.array([0]), "token": weight(1, places, 8)}
    constants |= {"rest": np.array([places, 8]), "positions": weight(1, 64 + places, 8), "w": weight(8, 5)}
    nodes = [
        conv("a", "x", constants, 6, 8),
        node("Reshape", ["a", "rows"], "flat"),
        node("Transpose", ["flat"], "image", perm=[0, 2, 1]),
        node("Shape", ["image"], "shape"),
        node("Gather", ["shape", "first"], "batch"),
        node("Concat", ["batch", "rest"], "target", axis=0),
        node("Expand", ["token", "target"], "tokens"),
        node("Concat", ["tokens", "image"], "all", axis=1),
        node("Add", ["all", "positions"], "placed"),
        node("MatMul", ["placed", "w"], "y"),
    ]
    pruned = prune(built(nodes, constants))
    constants_left = {name: tensor.shape for name, tensor in pruned.constants().items()}
    assert convolutions(pruned) == {"a": (4, 6, 1, 1)}
    assert constants_left["token"] == (1, places, 4)
    assert constants_left["w"] == (4, 5)
