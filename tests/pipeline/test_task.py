"""`--task`: outputs (N, C) that hold no class scores are judged as numbers, everywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxcompress
from onnxcompress.cli import main
from onnxcompress.graph import Model
from onnxcompress.pipeline.task import number_outputs
from onnxcompress.recipe import Recipe
from onnxcompress.runtime.data import dataset_for
from onnxcompress.runtime.session import Session
from tests.small_models import run_all
from tests.tiny_models import conv_net, samples

CALIB = [{"x": samples(300, seed=5)}]
IMAGES = samples(60, seed=2)
OPTIONS: dict[str, Any] = {"calib": CALIB, "data": [{"x": IMAGES}], "latency": False, "round_to": 1}


def embedding_net(*, width: int = 40, scale: float = 1.0, tail: str = "") -> onnx.ModelProto:
    """Return `conv_net` with `width` numbers `y` instead of 4 classes, times `scale`, behind an operator `tail`."""
    model = conv_net()
    graph = model.graph
    kept = [tensor for tensor in graph.initializer if tensor.name not in ("w3", "b3")]
    weight = np.random.default_rng(4).standard_normal((width, 256)).astype(np.float32) * scale / 16
    del graph.initializer[:]
    graph.initializer.extend([*kept, numpy_helper.from_array(weight, "w3")])
    graph.node[-1].CopyFrom(helper.make_node("Gemm", ["f", "w3"], ["g" if tail else "y"], "embedding", transB=1))
    if tail:
        graph.node.append(helper.make_node(tail, ["g"], ["y"], "tail"))
    graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", width]))
    return model


def numbers(proto: onnx.ModelProto, data: Any = None, **options: Any) -> frozenset[str]:
    content = proto.SerializeToString()
    given = () if data is None else (dataset_for(Session(content), data),)
    return number_outputs(Model.from_proto(proto), content, Recipe(**options), given)


UNLABELLED = [{"x": IMAGES}]


def test_what_favours_no_class_holds_numbers() -> None:
    small, large = embedding_net(scale=0.2), embedding_net(scale=20.0)
    assert numbers(small, UNLABELLED) == {"y"}
    assert numbers(large, UNLABELLED) == frozenset()
    labelled = [{"x": IMAGES, "labels": np.zeros(len(IMAGES), np.int64)}]
    assert numbers(small, labelled) == frozenset()
    assert numbers(small) == frozenset()
    assert numbers(small, UNLABELLED, task="classification") == frozenset()
    assert numbers(large, labelled, task="regression") == {"y"}
    assert numbers(embedding_net(width=20, scale=0.2), UNLABELLED) == frozenset()
    # Few numbers that are each between 0 and 1 and sum to anything are tags, not classes.
    assert numbers(embedding_net(width=6, scale=20.0, tail="Sigmoid"), UNLABELLED) == {"y"}
    assert numbers(embedding_net(width=6, scale=20.0, tail="Softmax"), UNLABELLED) == frozenset()
    assert numbers(embedding_net(width=6, scale=20.0), UNLABELLED) == frozenset()
    # A Softmax says that these are classes, however little it tells them apart.
    assert numbers(embedding_net(scale=0.2, tail="Softmax"), UNLABELLED) == frozenset()
    assert numbers(embedding_net(scale=0.2, tail="Softmax"), UNLABELLED, task="regression") == {"y", "g"}
    assert numbers(embedding_net(scale=0.2, tail="Sigmoid"), UNLABELLED) == {"y"}


def with_features(*, width: int) -> onnx.ModelProto:
    """Return `conv_net` whose first output holds what its classes are made of, `width` numbers."""
    model = conv_net()
    graph = model.graph
    weight = np.random.default_rng(4).standard_normal((width, 256)).astype(np.float32)
    graph.initializer.append(numpy_helper.from_array(weight, "features_weight"))
    graph.node.append(helper.make_node("Gemm", ["f", "features_weight"], ["features"], "features", transB=1))
    first = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", width])
    outputs = [first, *graph.output]
    del graph.output[:]
    graph.output.extend(outputs)
    return model


@pytest.mark.parametrize("width", [3, 40])
def test_labels_are_of_the_output_that_meets_them(width: int) -> None:
    """Not of the first of several; of fewer numbers than there are classes, too."""
    proto = with_features(width=width)
    scores = Session(proto.SerializeToString()).run({"x": IMAGES})["y"]
    labelled = [{"x": IMAGES, "labels": scores.argmax(axis=1)}]
    assert numbers(proto, labelled) == {"features"}
    accuracy = onnxcompress.compare(proto, proto, data=labelled, latency=False).accuracy
    assert accuracy is not None
    assert (accuracy.output, accuracy.original.top1, accuracy.numbers) == ("y", 100.0, ("features",))
    # Where the labels tell nothing, or both outputs meet them, the first one is judged as before.
    unmet = (scores.argmax(axis=1) + 1) % 4
    assert numbers(with_features(width=4), [{"x": IMAGES, "labels": unmet}]) == frozenset()
    twice = conv_net()
    twice.graph.node.append(helper.make_node("Identity", ["y"], ["z"], "again"))
    twice.graph.output.insert(0, helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", 4]))
    assert numbers(twice, labelled) == frozenset()


def relative_error(proto: onnx.ModelProto, model: Model) -> float:
    one, two = (run_all(each, {"x": IMAGES})["y"].astype(np.float64) for each in (Model.from_proto(proto), model))
    return float(np.linalg.norm(one - two) / np.linalg.norm(one))


def test_an_embedding_is_compressed_as_numbers() -> None:
    """By its largest number alone little else of it would be kept."""
    proto = embedding_net(scale=20.0)
    as_classes = onnxcompress.compress(proto, target={"params": 0.35}, task="classification", **OPTIONS)
    as_numbers = onnxcompress.compress(proto, target={"params": 0.35}, task="regression", **OPTIONS)
    assert relative_error(proto, as_numbers.model) < relative_error(proto, as_classes.model)
    accuracy = as_numbers.report.accuracy
    assert accuracy is not None
    assert (accuracy.output, accuracy.agreement, accuracy.numbers) == (None, None, ("y",))
    assert accuracy.relative_error == pytest.approx(relative_error(proto, as_numbers.model), rel=1e-4)
    assert as_classes.report.accuracy is not None
    assert as_classes.report.accuracy.output == "y"


def test_classes_of_a_sigmoid_diverge_each_by_itself() -> None:
    proto = embedding_net(width=6, scale=4.0, tail="Sigmoid")
    result = onnxcompress.compress(proto, target={"params": 0.35}, task="classification", **OPTIONS)
    p, q = (run_all(each, {"x": IMAGES})["y"].astype(np.float64) for each in (Model.from_proto(proto), result.model))
    p, q = (np.clip(each, 1e-6, 1 - 1e-6) for each in (p, q))
    lost = (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).sum(axis=1).mean()
    assert result.report.accuracy is not None
    assert result.report.accuracy.kl == pytest.approx(lost, rel=1e-3)
    assert result.report.accuracy.confidence == pytest.approx(p.max(axis=1).mean(), rel=1e-4)


def test_damages_and_gradients_are_those_of_numbers() -> None:
    """Ranks do not depend on whether the output is (N, C) or (N, C, 1, 2), which cannot be scores."""
    proto, doubled = embedding_net(scale=20.0), embedding_net(scale=20.0)
    doubled.graph.node.extend(
        [
            helper.make_node("Concat", ["y", "y"], ["both"], "twice", axis=1),
            helper.make_node("Reshape", ["both", "pairs"], ["z"], "pairs"),
        ]
    )
    doubled.graph.initializer.append(numpy_helper.from_array(np.array([0, 40, 1, 2], np.int64), "pairs"))
    doubled.graph.output[0].CopyFrom(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", 40, 1, 2]))
    options = {**OPTIONS, "target": {"macs": 0.5}}
    plans = [
        next(plan for plan in result.plan.plans if plan.pass_name == "allocate")
        for result in (
            onnxcompress.compress(proto, task="regression", **options),
            onnxcompress.compress(doubled, **options),
        )
    ]
    for one, other in zip(plans[0].decisions, plans[1].decisions, strict=True):
        assert one["node"] == other["node"]
        assert one["sensitivity"] == pytest.approx(other["sensitivity"], rel=0.02)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    onnx.save(embedding_net(scale=0.2), "in.onnx")
    np.savez("data.npz", x=IMAGES)
    np.savez("calib.npz", x=CALIB[0]["x"])
    return tmp_path


WORDS = ["in.onnx", "out.onnx", "--tucker", "ratio=0.5", "--data", "data.npz", "--no-latency", "--round-to", "1"]


def test_the_user_is_told_and_can_say_otherwise(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WORDS, "--report", "r.json"]) == 0
    said = "Output 'y' favours no class, and is judged as numbers, by its relative error: if it holds class scores"
    assert said in capsys.readouterr().err
    assert json.loads(Path("r.json").read_text())["accuracy"]["numbers"] == ["y"]
    assert main([*WORDS, "--overwrite", "--task", "regression"]) == 0
    assert "favours no class" not in capsys.readouterr().err
    assert main([*WORDS, "--overwrite", "--task", "classification"]) == 0
    seen = capsys.readouterr()
    assert "favours no class" not in seen.err
    assert "Agreement with the original" in seen.out
    assert main(["compare", "in.onnx", "out.onnx", "--data", "data.npz", "--no-latency"]) == 0
    assert said in capsys.readouterr().err
    assert main([*WORDS, "--overwrite", "--max-drop", "1"]) == 3
    assert "--task classification, if they are class scores" in capsys.readouterr().err


def test_doubtful_scores_are_asked_about(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(embedding_net(scale=1.5), "in.onnx")
    assert main([*WORDS, "--report", "r.json"]) == 0
    confidence = json.loads(Path("r.json").read_text())["accuracy"]["confidence"]
    scores = run_all(Model.load("in.onnx"), {"x": IMAGES})["y"].astype(np.float64)
    probable = np.exp(scores - scores.max(axis=1, keepdims=True))
    assert confidence == pytest.approx((probable.max(axis=1) / probable.sum(axis=1)).mean(), rel=1e-4)
    assert 0.05 < confidence < 0.2
    assert "but an embedding or other numbers, give --task regression" in capsys.readouterr().err


def test_a_search_needs_an_error_for_numbers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*WORDS[:2], "--tucker", "auto", "--svd", "auto", *WORDS[4:], "--calib", "calib.npz"]
    assert main([*words, "--max-drop", "1"]) == 5
    assert "give --max-error P, or --task classification" in capsys.readouterr().err
    assert main([*words, "--max-error", "30"]) == 0


def test_training_distils_numbers() -> None:
    pytest.importorskip("torch")
    proto = embedding_net(scale=20.0)
    options = {**OPTIONS, "tucker": "ratio=0.4", "svd": "ratio=0.5", "task": "regression"}
    start = relative_error(proto, onnxcompress.compress(proto, recover="none", **options).model)
    result = onnxcompress.compress(
        proto, recover="finetune", train=CALIB, epochs=3, loss="distill", train_batch=32, **options
    )
    (stage,) = [stage for stage in result.report.stages if stage.pass_name == "finetune"]
    # What is lost is relative to how much the answers vary.
    before = run_all(Model.from_proto(proto), {"x": IMAGES})["y"]
    energy, about_mean = (float(np.square(each).sum()) for each in (before, before - before.mean(axis=0)))
    lost = relative_error(proto, result.model) ** 2 * energy / about_mean
    assert stage.outcome["score"][1] == pytest.approx(lost, rel=0.5)
    assert relative_error(proto, result.model) < start
