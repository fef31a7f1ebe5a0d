"""Gradient times value at the operands of nodes, and the importance of Molchanov et al. (2019) that is made of it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from onnxcompress.analysis.channels import ChannelAnalysis, find_groups
from onnxcompress.errors import DataError
from onnxcompress.graph import Model
from onnxcompress.passes.base import LABELS, PassContext
from onnxcompress.passes.pruning import FilterPruning, PruningConfig
from onnxcompress.passes.pruning.importance import class_scores
from onnxcompress.passes.recovery.gradients import operand_contributions
from tests.recovery.small_classifier import accuracy, original, samples
from tests.runtime.networks import proto_of
from tests.zoo import export, sample_inputs


def loss(model: Model, batch: dict[str, np.ndarray]) -> float:
    session = onnxruntime.InferenceSession(model.to_bytes(), providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {"input": batch["input"]})
    return float(-np.log(scores[np.arange(len(scores)), batch[LABELS]]).sum())


def test_the_product_predicts_what_scaling_an_operand_does() -> None:
    """d loss / d log(scale) of what a layer reads, against the loss of copies whose layer is scaled instead."""
    model = original()
    (batch,) = samples(64, 7, labels=True, batch=64)()
    conv = [node for node in model.nodes if node.op == "Conv"][2]
    edge = (conv.name, 0)
    (products,) = operand_contributions(model, [edge], [batch])

    def scaled(scale: float, channel: int) -> float:
        changed = model.copy()
        target = next(node for node in changed.nodes if node.name == conv.name)
        values = model.values(conv.inputs[1]).copy()
        values[:, channel] *= scale
        changed.set_input(target, 1, values)
        return loss(changed, batch)

    predicted = products[edge].sum(axis=(0, 2, 3))
    channel = int(np.argmax(np.abs(predicted)))
    measured = (scaled(1.01, channel) - scaled(0.99, channel)) / 0.02
    assert measured == pytest.approx(predicted[channel], rel=0.05)


def test_each_reader_of_a_tensor_has_its_own_share() -> None:
    """The input of a residual block is read by its convolution and by its sum, which share the whole gradient."""
    model = original()
    (batch,) = samples(8, 7, labels=True, batch=8)()
    add = next(node for node in model.nodes if node.op == "Add")
    name = next(tensor.name for tensor in add.inputs if len(tensor.outputs) == 2)
    edges = [
        (node.name, position)
        for node in model.nodes
        for position, tensor in enumerate(node.inputs)
        if tensor.name == name
    ]
    maker = next(node for node in model.nodes if name in [tensor.name for tensor in node.outputs])
    (products,) = operand_contributions(model, [*edges, (maker.name, 0)], [batch])
    assert len(edges) == 2
    assert all(np.abs(products[edge]).max() > 0 for edge in edges)
    # The maker is a Relu, through which gradient times value passes unchanged.
    assert maker.op == "Relu"
    np.testing.assert_allclose(sum(products[e] for e in edges), products[maker.name, 0], rtol=1e-4, atol=1e-6)


def taylor(model: Model, labels: bool, count: int = 512) -> np.ndarray:
    context = PassContext(labelled=samples(count, 7, labels=labels))
    return class_scores(model, find_groups(ChannelAnalysis(model)), "taylor", context)


def test_without_labels_it_ranks_much_the_same() -> None:
    ranks = [np.argsort(np.argsort(taylor(original(), labels))) for labels in (True, False)]
    assert np.corrcoef(*ranks)[0, 1] > 0.6


def test_it_finds_the_filters_that_nothing_reads() -> None:
    """Large filters whose readers ignore them: weights alone cannot tell."""
    model = original()
    first, second = [node for node in model.nodes if node.op == "Conv"][:2]
    for position in (1, 2):
        grown = model.values(first.inputs[position]).copy()
        grown[:6] *= 5.0
        model.set_input(first, position, grown)
    ignoring = model.values(second.inputs[1]).copy()
    ignoring[:, :6] = 0.0
    model.set_input(second, 1, ignoring)

    def removed(importance: str) -> list[int]:
        context = PassContext(labelled=samples(64, 7, labels=True))
        plan = FilterPruning(PruningConfig(0.375, importance=importance)).plan(model, context)
        return next(list(d["removed"][first.name]) for d in plan.decisions if d["node"] == first.name)

    assert removed("taylor") == [0, 1, 2, 3, 4, 5]
    assert removed("l1") != [0, 1, 2, 3, 4, 5]


def test_it_ranks_better_than_chance() -> None:
    def left(importance: str, seed: int) -> float:
        config = PruningConfig(0.5, importance=importance)
        context = PassContext(seed=seed, labelled=samples(256, 7, labels=True))
        return accuracy(
            FilterPruning(config).apply(original(), FilterPruning(config).plan(original(), context), context).model
        )

    assert left("taylor", 0) > np.mean([left("random", seed) for seed in range(3)]) + 0.03


def test_batch_normalisation_behind_a_filter_does_not_hide_it() -> None:
    model = Model.from_proto(export("resnet-basic", "torchscript-bn"))
    assert any(node.op == "BatchNormalization" for node in model.nodes)
    groups = find_groups(ChannelAnalysis(model))
    context = PassContext(calibration=lambda: iter([sample_inputs("resnet-basic", batch=4)]))
    scores = class_scores(model, groups, "taylor", context)
    free = np.concatenate([group.classes[group.prunable] for group in groups.groups])
    assert (scores[free] > 0).mean() > 0.9


def test_outputs_that_classify_nothing_have_gradients_too() -> None:
    model = Model.from_proto(export("unet"))
    edges = [(node.name, 0) for node in model.nodes if node.op == "Conv"]
    (products,) = operand_contributions(model, edges, [sample_inputs("unet")])
    assert len(products) == len(edges) - 1  # nothing trainable lies before the first
    assert all(np.isfinite(each).all() and np.abs(each).max() > 0 for each in products.values())


def test_what_is_asked_of_the_data() -> None:
    with pytest.raises(DataError, match="no calibration samples"):
        list(operand_contributions(original(), [], []))
    with pytest.raises(DataError, match="needs data; give --train, --calib or --data"):
        class_scores(original(), find_groups(ChannelAnalysis(original())), "taylor", PassContext())

    def wrong() -> Iterator[dict[str, np.ndarray]]:
        for batch in samples(8, 7, labels=True)():
            yield {**batch, LABELS: batch[LABELS] + 3}

    with pytest.raises(DataError, match="is not a class; the model has classes 0 to 3"):
        list(operand_contributions(original(), [], wrong()))


@pytest.mark.parametrize("beside", [2, 7])
def test_labels_are_of_the_first_output_that_classifies(beside: int) -> None:
    drawn = np.random.default_rng(0)
    weights = {"w": (5, 6), "v": (6, 4), "u": (6, beside)}
    constants = {name: drawn.normal(size=shape).astype(np.float32) for name, shape in weights.items()}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["r"])]
    nodes += [helper.make_node("MatMul", ["r", each], [out]) for each, out in (("v", "y"), ("u", "z"))]
    outputs = {"y": (TensorProto.FLOAT, ("n", 4)), "z": (TensorProto.FLOAT, ("n", beside))}
    model = Model.from_proto(proto_of(nodes, {"x": (TensorProto.FLOAT, ("n", 5))}, outputs, constants))
    maker = {t.name: node.name for node in model.nodes for t in node.outputs}
    x = drawn.normal(size=(8, 5)).astype(np.float32)

    def contributions(labels: np.ndarray) -> dict[tuple[str, int], np.ndarray]:
        edges = [(maker["y"], 0), (maker["z"], 0)]
        return next(iter(operand_contributions(model, edges, [{"x": x, LABELS: labels}])))

    first, second = contributions(np.zeros(8, np.int64)), contributions(np.full(8, 3))
    assert not np.allclose(first[maker["y"], 0], second[maker["y"], 0])
    np.testing.assert_array_equal(first[maker["z"], 0], second[maker["z"], 0])
