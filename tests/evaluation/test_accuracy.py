"""Accuracy of two models: by hand, on wrong models, and on the real ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxcompress.errors import DataError, ModelError
from onnxcompress.evaluation.accuracy import Accuracy, measure_accuracy
from onnxcompress.evaluation.reference import Reference
from onnxcompress.runtime import kept
from onnxcompress.runtime.data import dataset_for
from onnxcompress.runtime.session import Session
from tests.runtime.networks import classifier, identity, proto_of

# Rows of scores, as outputs of the identity: class 0, 1, 2, 3, 0, 1, 2, 3 and so on.
TRUTH = np.arange(40) % 4
SCORES = np.eye(4, dtype=np.float32)[TRUTH] * 3


def scores_model(shift: int = 0, rows: Any = None, **shape: Any) -> onnx.ModelProto:
    """y = x with its classes moved by `shift` where the last input column says so."""
    nodes = [
        helper.make_node("Split", ["x", "sizes"], ["s", "flag"], axis=1),
        helper.make_node("Gather", ["s", "moved"], ["m"], axis=1),
        helper.make_node("Greater", ["flag", "half"], ["is_moved"]),
        helper.make_node("Where", ["is_moved", "m", "s"], ["y"]),
    ]
    constants = {
        "sizes": np.array([4, 1]),
        "moved": (np.arange(4) + shift) % 4,
        "half": np.float32(0.5),
    }
    return proto_of(nodes, {"x": (TensorProto.FLOAT, ("n", 5))}, {"y": (TensorProto.FLOAT, ("n", 4))}, constants)


def feeds(flags: Any, labels: Any = None) -> list[dict[str, Any]]:
    x = np.concatenate([SCORES, np.asarray(flags, np.float32)[:, None]], axis=1)
    return [{"x": x} if labels is None else {"x": x, "labels": labels}]


def measure(original: onnx.ModelProto, compressed: onnx.ModelProto, data: Any, batch_size: int = 7) -> Accuracy:
    session = Session(original.SerializeToString())
    with Reference(session, dataset_for(session, data), batch_size=batch_size) as reference:
        return measure_accuracy(Session(compressed.SerializeToString()), reference)


def test_a_model_against_itself() -> None:
    seen = measure(scores_model(), scores_model(), feeds(np.zeros(40), TRUTH))
    assert (seen.samples, seen.labels, seen.output) == (40, True, "y")
    assert (seen.original.top1, seen.compressed.top5) == (100.0, 100.0)
    assert (seen.drop_top1, seen.agreement, seen.kl, seen.p_value) == (0.0, 100.0, 0.0, 1.0)
    assert (seen.both_right, seen.only_original, seen.only_compressed) == (40, 0, 0)
    assert seen.drop_top1_interval is not None
    assert seen.drop_top1_interval[0] < 0 < seen.drop_top1_interval[1]
    assert (seen.relative_error, seen.relative_error_interval, seen.relative_error_output) == (0.0, (0.0, 0.0), "y")
    assert seen.not_compared == ()
    assert (seen.classes, seen.majority) == (4, 25.0)
    assert seen.confidence == pytest.approx(np.exp(3) / (np.exp(3) + 3), rel=1e-6)


def test_counts_by_hand() -> None:
    """10 of 40 samples change their class; of those, 4 had a wrong label that is right afterwards."""
    flags = np.zeros(40)
    flags[:10] = 1
    labels = TRUTH.copy()
    labels[6:10] = (TRUTH[6:10] - 1) % 4
    for batch_size in (1, 7, 64):
        seen = measure(scores_model(), scores_model(shift=1), feeds(flags, labels), batch_size)
        assert seen.original.top1 == pytest.approx(90.0)
        assert seen.compressed.top1 == pytest.approx(85.0)
        assert seen.drop_top1 == pytest.approx(5.0)
        assert (seen.both_right, seen.only_original, seen.only_compressed) == (30, 6, 4)
        assert seen.agreement == pytest.approx(75.0)
        assert seen.agreement_interval is not None
        assert seen.agreement_interval[0] < 75 < seen.agreement_interval[1]
        p = np.exp([3, 0, 0, 0]) / np.exp([3, 0, 0, 0]).sum()
        assert seen.kl == pytest.approx(0.25 * (p * np.log(p / np.roll(p, 1))).sum(), rel=1e-6)


def test_without_labels_there_is_no_top1() -> None:
    seen = measure(scores_model(), scores_model(shift=1), feeds(np.ones(40)))
    assert not seen.labels
    assert (seen.original.top1, seen.compressed.top5, seen.drop_top1, seen.drop_top1_interval) == (None,) * 4
    assert seen.agreement == 0.0
    assert json.loads(json.dumps(seen.to_json()))["original"] == {"top1": None, "top5": None}


def test_top5_of_more_classes(tmp_path: Path) -> None:
    scores = np.random.default_rng(0).standard_normal((50, 20), dtype=np.float32)
    labels = np.random.default_rng(1).integers(0, 20, 50)
    np.savez(tmp_path / "d.npz", x=scores, labels=labels)
    seen = measure(identity(("n", 20)), identity(("n", 20)), tmp_path / "d.npz")
    order = np.argsort(-scores, axis=1)
    assert seen.original.top1 == pytest.approx(100 * (order[:, 0] == labels).mean())
    assert seen.original.top5 == pytest.approx(100 * (order[:, :5] == labels[:, None]).any(axis=1).mean())


def test_softmax_and_scores_have_the_same_divergence() -> None:
    x = np.random.default_rng(0).standard_normal((20, 3, 8, 8), dtype=np.float32)
    plain = measure(classifier(), classifier(seed=1), [{"x": x}])
    normalised = measure(classifier(softmax=True), classifier(seed=1, softmax=True), [{"x": x}])
    assert plain.kl is not None
    assert plain.kl > 0.1
    assert normalised.kl == pytest.approx(plain.kl, rel=1e-4)
    assert normalised.agreement == plain.agreement


def test_a_fixed_batch_counts_each_sample_once() -> None:
    x = np.random.default_rng(0).standard_normal((10, 3, 8, 8), dtype=np.float32)
    free = measure(classifier(), classifier(seed=1), [{"x": x, "labels": np.arange(10) % 4}])
    fixed = measure(classifier(batch=4), classifier(seed=1, batch=4), [{"x": x, "labels": np.arange(10) % 4}])
    assert fixed.samples == 10
    assert fixed.kl == pytest.approx(free.kl, rel=1e-5)
    assert (fixed.agreement, fixed.original, fixed.compressed) == (free.agreement, free.original, free.compressed)


def test_class_scores_of_four_dimensions() -> None:
    scores = SCORES.reshape(40, 4, 1, 1)
    seen = measure(identity(("n", 4, 1, 1)), identity(("n", 4, 1, 1)), [{"x": scores, "labels": TRUTH}])
    assert seen.original.top1 == 100.0


def test_the_first_of_several_outputs_that_classifies() -> None:
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[1]),
        helper.make_node("Identity", ["x"], ["main"]),
        helper.make_node("Neg", ["x"], ["auxiliary"]),
    ]
    shapes = {"mean": (TensorProto.FLOAT, ("n", 1)), "main": (TensorProto.FLOAT, ("n", 4))}
    model = proto_of(
        nodes, {"x": (TensorProto.FLOAT, ("n", 4))}, {**shapes, "auxiliary": (TensorProto.FLOAT, ("n", 4))}
    )
    seen = measure(model, model, [{"x": SCORES, "labels": TRUTH}])
    assert (seen.output, seen.original.top1) == ("main", 100.0)
    assert seen.relative_error == 0.0


def test_outputs_beside_the_classes_may_be_missing_or_no_numbers() -> None:
    """The one that classifies may not; where it is the only one, it may have another name."""

    def model(outputs: dict[str, str]) -> onnx.ModelProto:
        nodes = [helper.make_node(op, ["x"], [name]) for name, op in outputs.items()]
        declared = dict.fromkeys(outputs, (TensorProto.FLOAT, ("n", 4)))
        return proto_of(nodes, {"x": (TensorProto.FLOAT, ("n", 4))}, declared)

    data = [{"x": SCORES - 1, "labels": TRUTH}]
    full = model({"y": "Identity", "negative": "Neg", "root": "Sqrt"})
    whole = measure(full, full, data)
    assert (whole.output, whole.not_compared, whole.relative_error, whole.not_finite) == ("y", ("root",), 0.0, 0)
    for second in (model({"y": "Identity"}), model({"scores": "Identity"})):
        seen = measure(full, second, data)
        assert (seen.compressed.top1, seen.relative_error_output) == (100.0, "y")
        assert seen.not_compared == ("negative", "root")
    with pytest.raises(ModelError, match="output 'y' is missing in the second one"):
        measure(full, model({"negative": "Neg", "root": "Sqrt"}), data)


def test_outputs_that_classify_nothing_have_an_error() -> None:
    x = np.random.default_rng(0).standard_normal((8, 3, 4, 4), dtype=np.float32)
    nodes = [helper.make_node("Mul", ["x", "f"], ["y"])]
    io = ({"x": (TensorProto.FLOAT, ("n", 3, 4, 4))}, {"y": (TensorProto.FLOAT, ("n", 3, 4, 4))})
    scaled = proto_of(nodes, *io, {"f": np.float32(1.25)})
    seen = measure(identity(("n", 3, 4, 4)), scaled, [{"x": x, "labels": np.zeros(8, int)}])
    assert seen.relative_error == pytest.approx(0.25, rel=1e-6)
    assert (seen.output, seen.labels, seen.agreement, seen.kl, seen.drop_top1) == (None, False, None, None, None)
    assert measure(scaled, scaled, [{"x": x}]).relative_error == 0.0


def test_nan_of_the_original_is_an_error_and_of_the_compressed_model_is_wrong() -> None:
    nodes = [helper.make_node("Log", ["x"], ["y"])]
    io = ({"x": (TensorProto.FLOAT, ("n", 4))}, {"y": (TensorProto.FLOAT, ("n", 4))})
    logarithm = proto_of(nodes, *io)
    data = [{"x": np.where(np.arange(40)[:, None] < 5, -SCORES - 1, SCORES + 1), "labels": TRUTH}]
    with pytest.raises(DataError, match=r"output 'y' of the original, at samples from 0: .* NaN"):
        measure(logarithm, identity(("n", 4)), data)
    seen = measure(identity(("n", 4)), logarithm, data)
    assert (seen.not_finite, seen.kl, seen.relative_error) == (5, None, None)
    assert seen.compressed.top1 == pytest.approx(87.5)
    assert seen.compressed.top5 == pytest.approx(87.5)
    assert seen.agreement == pytest.approx(87.5)


def test_one_changed_weight_is_seen() -> None:
    changed = classifier()
    weights = onnx.numpy_helper.to_array(changed.graph.initializer[0]).copy()
    weights[0, 0, 0, 0] += 1.0
    changed.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weights, "w"))
    x = np.random.default_rng(0).standard_normal((20, 3, 8, 8), dtype=np.float32)
    assert measure(classifier(), classifier(), [{"x": x}]).kl == 0.0
    kl = measure(classifier(), changed, [{"x": x}]).kl
    assert kl is not None
    assert kl > 1e-6


def test_another_name_of_the_only_input_and_output() -> None:
    x = np.random.default_rng(0).standard_normal((4, 3, 8, 8), dtype=np.float32)
    renamed = classifier(name="image")
    renamed.graph.node[-1].output[0] = renamed.graph.output[0].name = "result"
    assert measure(classifier(), renamed, [{"x": x}]).agreement == 100.0


@pytest.mark.parametrize(
    ("second", "error", "message"),
    [
        (classifier(classes=5), ModelError, r"output 'y' has the shapes \[4,4\] and \[4,5\]"),
        (classifier(size=9), DataError, r"the second model: 'x' has shape \[4,3,8,8\]"),
        (classifier(batch=3), DataError, "the second model: 'x' has shape"),
    ],
)
def test_models_that_cannot_be_compared(second: onnx.ModelProto, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        measure(classifier(), second, [{"x": np.zeros((4, 3, 8, 8), np.float32)}])


def test_a_second_model_of_two_inputs() -> None:
    nodes = [helper.make_node("Add", ["x", "z"], ["y"])]
    shape = (TensorProto.FLOAT, ("n", 4))
    with pytest.raises(ModelError, match="the models differ: 1 inputs and 2 inputs"):
        measure(identity(("n", 4)), proto_of(nodes, {"x": shape, "z": shape}, {"y": shape}), [{"x": SCORES}])


def test_nothing_to_compare() -> None:
    nodes = [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.STRING)]
    text = proto_of(nodes, {"x": (TensorProto.FLOAT, ("n", 4))}, {"y": (TensorProto.STRING, ("n", 4))})
    with pytest.raises(ModelError, match="'y' is a tensor\\(string\\); only dense tensors of numbers"):
        measure(text, text, [{"x": SCORES}])


def test_whole_numbers_differ_in_a_share_of_their_elements() -> None:
    """As a segmentation's classes do, where nothing else is given."""
    numbers = np.arange(40).reshape(10, 4)
    nodes = [helper.make_node("Mod", ["x", "size"], ["y"])]
    io = {"x": (TensorProto.INT64, ("n", 4))}, {"y": (TensorProto.INT64, ("n", 4))}
    first, second = (proto_of(nodes, *io, {"size": np.int64(size)}) for size in (100, 31))
    for batch_size in (3, 10):
        seen = measure(first, second, [{"x": numbers}], batch_size)
        assert (seen.output, seen.relative_error_output) == (None, "y")
        assert seen.relative_error == pytest.approx(9 / 40)
        assert seen.relative_error_interval is not None
        assert seen.relative_error_interval[0] < 9 / 40 < seen.relative_error_interval[1]
    assert measure(first, first, [{"x": numbers}]).relative_error == 0.0
    # Beside other outputs they are made of these, and not compared on their own.
    both = proto_of(
        [*nodes, helper.make_node("Cast", ["x"], ["z"], to=TensorProto.FLOAT)],
        io[0],
        {**io[1], "z": (TensorProto.FLOAT, ("n", 4))},
        {"size": np.int64(31)},
    )
    assert measure(both, both, [{"x": numbers}]).relative_error_output == "z"


def test_a_label_that_is_no_class_is_found_when_the_classes_are_known_only_at_run_time() -> None:
    model = identity(("n", "classes"))
    with pytest.raises(DataError, match="label 4 is not a class; the model has 0 to 3"):
        measure(model, model, [{"x": SCORES, "labels": TRUTH + 1}])


def test_both_models_see_the_same_samples_of_data_that_are_shuffled_at_each_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = np.random.default_rng(0)
    assert measure(identity(("n", 4)), identity(("n", 4)), lambda: [{"x": generator.permutation(SCORES)}]).kl == 0.0
    # What is too large to be kept is read again, and has to be the same.
    monkeypatch.setattr(kept, "_MOST_BYTES", 0)
    with pytest.raises(DataError, match="gave other samples when it was read again"):
        measure(identity(("n", 4)), identity(("n", 4)), lambda: [{"x": generator.permutation(SCORES)}])
    lengths = iter([40, 40, 39, 38])  # one opening looks at the first feed
    with pytest.raises(DataError, match="gave other samples when it was read again"):
        measure(identity(("n", 4)), identity(("n", 4)), lambda: [{"x": SCORES[: next(lengths)]}])


def test_progress_counts_samples() -> None:
    session = Session(identity(("n", 4)).SerializeToString())
    told: list[int] = []
    with Reference(session, dataset_for(session, [{"x": SCORES}]), batch_size=16, progress=told.append) as reference:
        measure_accuracy(session, reference, progress=told.append)
        measure_accuracy(session, reference)
    assert told == [16, 32, 40] * 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "split", "top1", "top5"),
    [
        ("googlenet-bvlc.onnx", "val", 78.5, 93.5),
        ("googlenet-bvlc.onnx", "calib", 72.4, 91.8),
        ("squeezenet-1.0.onnx", "val", 56.0, 81.0),
        ("squeezenet-1.0.onnx", "calib", 60.0, 82.6),
    ],
)
def test_the_published_baselines(model: str, split: str, top1: float, top5: float, shared_data: Path) -> None:
    session = Session(shared_data / model)
    data = dataset_for(session, shared_data / "imagenet" / split, preprocess="caffe")
    with Reference(session, data) as reference:
        seen = measure_accuracy(session, reference)
    for hits in (seen.original, seen.compressed):
        assert (hits.top1, hits.top5) == (pytest.approx(top1, abs=1e-9), pytest.approx(top5, abs=1e-9))
    assert (seen.agreement, seen.kl) == (100.0, pytest.approx(0.0, abs=1e-9))
