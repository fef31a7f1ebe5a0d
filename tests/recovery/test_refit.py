"""Refit: planted weights come back, nothing gets worse, samples line up, bad calibration data are refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxcompress.errors import DataError, RecipeError
from onnxcompress.graph import Model
from onnxcompress.linalg import moments
from onnxcompress.passes.base import PassContext, Plan
from onnxcompress.passes.pruning import FilterPruning, PruningConfig
from onnxcompress.passes.recovery import original_run
from onnxcompress.passes.recovery import refit as refit_module
from onnxcompress.passes.recovery.refit import Refit, RefitConfig
from onnxcompress.passes.recovery.refit_layers import find_refit_layers, weight_of
from onnxcompress.passes.recovery.refit_patches import LayerSampler
from onnxcompress.passes.tucker import TuckerConfig, TuckerDecomposition
from tests.small_models import build, node
from tests.tiny_models import SIZE, conv_net

_IMAGES = 48


def _batches(images: int = _IMAGES, seed: int = 1):
    generator = np.random.default_rng(seed)
    data = generator.standard_normal((images, 3, SIZE, SIZE)).astype(np.float32)
    return lambda: ({"x": data[at : at + 16]} for at in range(0, images, 16))


def _run(model: Model, batches) -> np.ndarray:
    import onnxruntime as ort

    session = ort.InferenceSession(model.to_bytes(), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, dict(batch))[0] for batch in batches()])


def _error(first: Model, second: Model, batches) -> float:
    wanted, seen = _run(first, batches), _run(second, batches)
    return float(np.square(wanted - seen).sum() / np.square(wanted - wanted.mean(axis=0)).sum())


def _refitted(original: Model, compressed: Model, context: PassContext, **config: int) -> Model:
    refit = Refit(RefitConfig(**config))
    return refit.apply(compressed, refit.plan(compressed, context), context).model


def _damaged(model: Model, seed: int) -> Model:
    """Return a model with noise in the weights of its convolutions."""
    damaged, generator = model.copy(), np.random.default_rng(seed)
    for layer in damaged.nodes:
        if layer.op == "Conv":
            weight = damaged.values(layer.inputs[1])
            damaged.set_input(layer, 1, weight + 0.2 * generator.standard_normal(weight.shape).astype(np.float32))
    return damaged


def test_planted_weights_come_back() -> None:
    original = Model.from_proto(conv_net())
    damaged = _damaged(original, 3)
    batches = _batches(96)
    context = PassContext(calibration=batches, original=original)
    # The prior is the original's own weights: both fit and prior lead there.
    refitted = _refitted(original, damaged, context)
    assert _error(original, damaged, batches) > 0.05
    assert _error(original, refitted, _batches(32, seed=9)) < 1e-3


def test_a_layer_behind_an_operator_that_onnx_does_not_know() -> None:
    """Of onnxruntime's own domain: onnx finds no types behind it, onnxruntime does."""
    proto = conv_net()
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    proto.graph.node[1].op_type, proto.graph.node[1].domain = "SampleOp", "com.microsoft"
    original = Model.from_proto(proto)
    assert "c2" not in original.dtypes
    damaged = _damaged(original, 3)
    batches = _batches(96)
    refitted = _refitted(original, damaged, PassContext(calibration=batches, original=original))
    assert _error(original, damaged, batches) > 0.05
    assert _error(original, refitted, _batches(32, seed=9)) < 0.02


@pytest.mark.parametrize("rounds", [0, 3])
def test_a_split_model_comes_nearer_on_new_samples(rounds: int) -> None:
    original = Model.from_proto(conv_net())
    tucker = TuckerDecomposition(TuckerConfig.from_spec("ratio=0.5"))
    context = PassContext(calibration=_batches(128), original=original)
    split = tucker.apply(original, tucker.plan(original, context), context).model
    refitted = _refitted(original, split, context, rounds=rounds)
    unseen = _batches(64, seed=7)
    assert _error(original, refitted, unseen) < 0.8 * _error(original, split, unseen)


@pytest.mark.parametrize("spans", [1, -1])
@pytest.mark.parametrize("out", [("out",), ()])
def test_a_split_that_spans_a_part_of_the_kernel_comes_nearer_on_new_samples(out: tuple[str, ...], spans: int) -> None:
    original = Model.from_proto(conv_net())
    split = original
    for layer in [each for each in original.nodes if each.op == "Conv"]:
        outputs, inputs = layer.inputs[1].shape[:2]
        decision = {"node": layer.name, "kind": "tucker", "spans": spans, "factors": ["in", "core", *out]}
        decision |= {"ranks": [max(2, 3 * inputs // 2), outputs - 2 * len(out)]}
        tucker = TuckerDecomposition(TuckerConfig())
        split = tucker.apply(split, Plan("tucker", (decision,)), PassContext()).model
    context = PassContext(calibration=_batches(128), original=original)
    refitted = _refitted(original, split, context)
    unseen = _batches(64, seed=7)
    assert _error(original, refitted, unseen) < 0.8 * _error(original, split, unseen)


def test_a_pruned_models_consumers_are_fitted_to_the_filters_that_remain() -> None:
    original = Model.from_proto(conv_net())
    prune = FilterPruning(PruningConfig(0.25))
    context = PassContext(calibration=_batches(256), original=original)
    result = prune.apply(original, prune.plan(original, context), context)
    after = PassContext(calibration=_batches(256), original=original, provenance=result.provenance)
    refitted = _refitted(original, result.model, after)
    unseen = _batches(64, seed=7)
    assert _error(original, refitted, unseen) < _error(original, result.model, unseen)


@pytest.mark.parametrize("group", [24, 4])
def test_a_grouped_convolution_that_lost_filters_is_fitted_group_by_group(group: int) -> None:
    generator = np.random.default_rng(5)
    sizes = {"a": (24, 3, 1, 1), "b": (24, 24 // group, 3, 3), "c": (8, 24, 1, 1)}
    constants = {
        n: (generator.standard_normal(s) / np.sqrt(np.prod(s[1:]))).astype(np.float32) for n, s in sizes.items()
    }
    nodes = [
        node("Conv", ["x", "a"], "ya"),
        node("Conv", ["ya", "b"], "yb", group=group, pads=[1, 1, 1, 1]),
        node("Conv", ["yb", "c"], "yc"),
    ]
    model = build(nodes, constants, shape=("n", 3, SIZE, SIZE))
    pruning, context = FilterPruning(PruningConfig(0.5)), PassContext(calibration=_batches(), original=model)
    pruned = pruning.apply(model, pruning.plan(model, context), context)
    left = next(n for n in pruned.model.nodes if n.outputs[0].name == "yb")
    assert (left.inputs[1].shape[0], left.attrs["group"]) == (12, min(group, 12))
    refitted = _refitted(model, pruned.model, replace(context, provenance=pruned.provenance))
    before, after = (_error(model, each, _batches(seed=2)) for each in (pruned.model, refitted))
    assert after < 0.8 * before


def test_a_model_that_lost_nothing_stays_as_good() -> None:
    original = Model.from_proto(conv_net())
    context = PassContext(calibration=_batches(), original=original)
    refitted = _refitted(original, original, context)
    assert _error(original, refitted, _batches(32, seed=5)) < 1e-6


def test_two_runs_give_the_same_bytes() -> None:
    original = Model.from_proto(conv_net())
    tucker = TuckerDecomposition(TuckerConfig.from_spec("ratio=0.5"))
    context = PassContext(calibration=_batches(), original=original)
    split = tucker.apply(original, tucker.plan(original, context), context).model
    first, second = (_refitted(original, split, context).to_bytes() for _ in range(2))
    assert first == second


def test_equal_images_are_survived() -> None:
    original = Model.from_proto(conv_net())
    tucker = TuckerDecomposition(TuckerConfig.from_spec("ratio=0.5"))
    same = np.ones((16, 3, SIZE, SIZE), np.float32)
    context = PassContext(calibration=lambda: [{"x": same}], original=original)
    split = tucker.apply(original, tucker.plan(original, context), context).model
    refitted = _refitted(original, split, context)
    assert np.isfinite(_run(refitted, _batches(16))).all()


def test_infinite_activations_are_named() -> None:
    original = Model.from_proto(conv_net())
    bad = np.full((4, 3, SIZE, SIZE), np.inf, np.float32)
    context = PassContext(calibration=lambda: [{"x": bad}], original=original)
    with pytest.raises(DataError, match="'c1'"):
        _refitted(original, original, context)


def test_values_whose_squares_overflow_are_named() -> None:
    """As a mask adds where nothing may be seen: finite, and 1e38."""
    original = conv_net()
    scale = onnx.numpy_helper.from_array(np.float32(1e30), "scale")
    original.graph.initializer.append(scale)
    first = next(each for each in original.graph.node if each.op_type == "Conv")
    original.graph.node.insert(0, helper.make_node("Mul", ["x", "scale"], ["large"], "large"))
    first.input[0] = "large"
    model = Model.from_proto(original)
    with pytest.raises(DataError, match=f"'{first.name}' reads or gives values so large that sums of their squares"):
        _refitted(model, _damaged(model, 0), PassContext(original=model, calibration=_batches()))


def test_a_layer_that_reads_a_constant_is_left_alone() -> None:
    constants = {"given": np.ones((1, 6, 4, 4), np.float32), "w": np.ones((5, 6, 1, 1), np.float32)}
    model = build([node("Conv", ["given", "w"], "a", name="a"), node("Conv", ["x", "w"], "y", name="y")], constants)
    layers, skipped = find_refit_layers(model, model, PassContext())
    assert [layer.node for layer in layers] == ["y"]
    assert [(each.node, each.reason) for each in skipped] == [("a", "its input is a constant")]


def test_no_calibration_data_are_an_error() -> None:
    model = Model.from_proto(conv_net())
    with pytest.raises(DataError, match="--calib"):
        Refit(RefitConfig()).plan(model, PassContext(original=model))


@pytest.mark.parametrize("config", [{"positions": 0}, {"rows": 0}, {"rounds": -1}])
def test_configurations_out_of_range_are_refused(config: Mapping[str, int]) -> None:
    with pytest.raises(RecipeError, match="refit"):
        RefitConfig(**config)


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"pads": [1, 1, 1, 1]},
        {"strides": [2, 1], "pads": [0, 1, 2, 1]},
        {"dilations": [2, 1]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"auto_pad": "SAME_LOWER"},
        {"auto_pad": "VALID"},
        {"group": 2, "pads": [1, 1, 1, 1]},
        {"op": "ConvTranspose"},
        {"op": "ConvTranspose", "strides": [2, 1], "pads": [0, 1, 2, 1], "output_padding": [1, 0]},
        {"op": "ConvTranspose", "strides": [3, 2], "auto_pad": "SAME_UPPER"},
        {"op": "ConvTranspose", "strides": [1, 2], "auto_pad": "SAME_LOWER"},
        {"op": "ConvTranspose", "group": 2, "dilations": [2, 1], "auto_pad": "VALID"},
    ],
)
def test_patches_times_weights_are_the_outputs(attributes: Mapping[str, object]) -> None:
    groups, op = int(attributes.get("group", 1)), str(attributes.get("op", "Conv"))
    generator = np.random.default_rng(0)
    sizes = (4, 6 // groups) if op == "Conv" else (6, 4 // groups)
    weight = generator.standard_normal((*sizes, 3, 3)).astype(np.float32)
    own = {name: value for name, value in attributes.items() if name != "op"}
    bias = generator.standard_normal(4).astype(np.float32)
    model = build([node(op, ["x", "w", "b"], "y", **own)], {"w": weight, "b": bias})
    (layer,), _ = find_refit_layers(model, model, PassContext())
    x = generator.standard_normal((3, 6, 9, 8)).astype(np.float32)
    y = _run(model, lambda: [{"x": x}])
    rows = LayerSampler(layer, 20, seed=4).patches(x).reshape(-1, 9, groups, 6 // groups)
    wanted = LayerSampler(layer, 20, seed=4).outputs(y)
    got = np.einsum("nkgi,gkio->ngo", rows, layer.original).reshape(len(rows), -1) + bias
    assert len(rows) == 60
    np.testing.assert_allclose(got, wanted, atol=1e-4)
    np.testing.assert_array_equal(weight_of(layer.original, model.nodes[0], weight), weight)


@pytest.mark.parametrize("shape", [[-1, 16, 3], [16, -1, 3], [1, -1, 3], [-1, 3]])
def test_rows_of_a_matrix_need_not_stand_image_by_image(shape: list[int]) -> None:
    """Windows of each image, positions before images, no axis of the batch at all; the last batch is a small one."""
    generator = np.random.default_rng(5)
    weight = generator.standard_normal((3, 4)).astype(np.float32)
    nodes = [
        node("Transpose", ["x"], "last", perm=[0, 2, 3, 1]),
        node("Reshape", ["last", "shape"], "rows"),
        node("MatMul", ["rows", "w"], "made"),
        node("Reshape", ["made", "back"], "y"),
    ]
    constants = {"w": weight, "shape": np.array(shape), "back": np.array([-1, SIZE * SIZE * 4])}
    original = build(nodes, constants, shape=("n", 3, SIZE, SIZE))
    damaged = original.copy()
    damaged.set_input(damaged.nodes[2], 1, weight + generator.standard_normal(weight.shape).astype(np.float32))
    batches = _batches(70)
    before = _error(original, damaged, batches)
    refitted = _refitted(original, damaged, PassContext(calibration=batches, original=original))
    assert _error(original, refitted, batches) < 1e-6 * before


def _upsampling(kernel: int, group: int) -> Model:
    """Return a network whose layer `up` doubles height and width, by a kernel of which each output meets a part."""
    generator = np.random.default_rng(5)
    sizes = {"a": (16, 3, 3, 3), "b": (16, 16 // group, kernel, kernel), "c": (4, 16, 1, 1)}
    constants = {
        n: (generator.standard_normal(s) / np.sqrt(np.prod(s[1:]))).astype(np.float32) for n, s in sizes.items()
    }
    nodes = [
        node("Conv", ["x", "a"], "ya", pads=[1, 1, 1, 1]),
        node("ConvTranspose", ["ya", "b"], "yb", name="up", strides=[2, 2], group=group, pads=[kernel // 4] * 4),
        node("Conv", ["yb", "c"], "yc"),
    ]
    return build(nodes, constants, shape=("n", 3, SIZE, SIZE))


@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("kernel", [2, 4])
def test_planted_weights_of_a_transposed_convolution_come_back(kernel: int, group: int) -> None:
    original = _upsampling(kernel, group)
    damaged = original.copy()
    weight = damaged.values(damaged.nodes[1].inputs[1])
    noise = np.random.default_rng(3).standard_normal(weight.shape).astype(np.float32)
    damaged.set_input(damaged.nodes[1], 1, weight + 0.2 * noise)
    refitted = _refitted(original, damaged, PassContext(calibration=_batches(96), original=original))
    assert _error(original, damaged, _batches()) > 0.02
    assert _error(original, refitted, _batches(32, seed=9)) < 1e-3


@pytest.mark.parametrize("kernel", [2, 4])
@pytest.mark.parametrize(
    "smaller", [FilterPruning(PruningConfig(0.5)), TuckerDecomposition(TuckerConfig.from_spec("ratio=0.5"))]
)
def test_transposed_convolutions_that_were_pruned_or_split_come_nearer_on_new_samples(
    kernel: int, smaller: FilterPruning | TuckerDecomposition
) -> None:
    original = _upsampling(kernel, 1)
    context = PassContext(calibration=_batches(256), original=original)
    result = smaller.apply(original, smaller.plan(original, context), context)
    after = replace(context, provenance=result.provenance)
    chains = {each["node"]: each["chain"] for each in Refit(RefitConfig()).plan(result.model, after).decisions}
    assert len(chains["up"]) == (1 if isinstance(smaller, FilterPruning) else 3)
    refitted = _refitted(original, result.model, after)
    unseen = _batches(64, seed=7)
    assert _error(original, refitted, unseen) < 0.95 * _error(original, result.model, unseen)


def test_a_transposed_convolution_to_a_given_shape_is_left_alone_with_a_reason() -> None:
    nodes = [node("ConvTranspose", ["x", "w"], "y", strides=[2, 2], output_shape=[16, 16])]
    model = build(nodes, {"w": np.ones((6, 2, 3, 3), np.float32)})
    layers, skipped = find_refit_layers(model, model, PassContext())
    assert not layers
    assert skipped[0].reason == "a transposed convolution to a given output_shape"


def test_the_refitted_model_is_valid_onnx() -> None:
    original = Model.from_proto(conv_net())
    context = PassContext(calibration=_batches(), original=original)
    onnx.checker.check_model(_refitted(original, original, context).to_proto(), full_check=True)


def test_layers_of_one_depth_are_fitted_in_portions_to_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two branches of two convolutions: the second ones have one depth and read different tensors."""
    generator = np.random.default_rng(7)
    weights = {name: generator.standard_normal((4, 3 if name < "c" else 4, 3, 3)) / 5 for name in "abcd"}
    nodes = [
        node("Conv", ["x", "a"], "p"),
        node("Conv", ["x", "b"], "q"),
        node("Conv", ["p", "c"], "r"),
        node("Conv", ["q", "d"], "s"),
        node("Concat", ["r", "s"], "y", axis=1),
    ]
    constants = {name: values.astype(np.float32) for name, values in weights.items()}
    original = build(nodes, constants, shape=("n", 3, SIZE, SIZE))
    noise = {name: values + 0.1 * generator.standard_normal(values.shape) for name, values in weights.items()}
    damaged = build(nodes, {n: v.astype(np.float32) for n, v in noise.items()}, shape=("n", 3, SIZE, SIZE))
    context = PassContext(calibration=_batches(64), original=original)
    squares, squared = moments._squares, list[int]()
    monkeypatch.setattr(moments, "_squares", lambda rows: squared.append(len(rows)) or squares(rows))
    together = _refitted(original, damaged, context).to_bytes()
    assert len(squared) == 3  # the first two read the same
    monkeypatch.setattr(refit_module, "_SAMPLE_BYTES", 1)
    assert _refitted(original, damaged, context).to_bytes() == together
    assert len(squared) == 3 + 4
    assert together != damaged.to_bytes()


def test_what_the_original_answers_is_measured_once_for_several_refits(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Model.from_proto(conv_net())
    runs: list[dict[str, int]] = []

    class Counted(original_run.Targets):
        def __init__(self, original, layers, batches, positions, seed, onlooker) -> None:
            runs.append(dict(positions))
            super().__init__(original, layers, batches, positions, seed, onlooker)

    monkeypatch.setattr(original_run, "Targets", Counted)
    context = PassContext(calibration=_batches(64))
    together = context.with_original(original)
    for damaged in (_damaged(original, seed) for seed in range(3)):
        alone = _refitted(original, damaged, replace(context, original=original)).to_bytes()
        assert _refitted(original, damaged, together).to_bytes() == alone != damaged.to_bytes()
    assert len(runs) == 3 + 1
    fewer = Refit(RefitConfig(positions=5))
    fewer.apply(original, fewer.plan(original, together), together)
    assert len(runs) == 3 + 2
    assert set(runs[-1].values()) <= set(range(1, 6))
