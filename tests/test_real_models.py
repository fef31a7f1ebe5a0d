"""The promises of the main job on the real GoogLeNet and SqueezeNet, and on GoogLeNet from both exporters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from onnxcompress.analysis.cost import model_cost
from onnxcompress.cli import main
from onnxcompress.graph import Model
from onnxcompress.passes.base import PassContext, PassResult
from onnxcompress.passes.execution import run_model
from onnxcompress.passes.pruning import FilterPruning, PruningConfig, verify_pruning
from onnxcompress.passes.tucker import TuckerConfig, TuckerDecomposition
from onnxcompress.passes.verification import relative_difference, sample_feeds

GOOGLENET, SQUEEZENET = "googlenet-bvlc.onnx", "squeezenet-1.0.onnx"


def outputs(path: Path, batch: int) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    image = np.random.default_rng(0).normal(0, 50, (batch, 3, 224, 224)).astype(np.float32)
    return session.run(None, {session.get_inputs()[0].name: image})


def check(path: Path) -> None:
    onnx.checker.check_model(str(path), full_check=True)
    onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True, check_type=True, data_prop=True)


def pruned(model: Model, ratio: float) -> PassResult:
    context, pruning = PassContext(), FilterPruning(PruningConfig(ratio))
    return pruning.apply(model, pruning.plan(model, context), context)


@pytest.mark.parametrize("name", [GOOGLENET, SQUEEZENET])
def test_main_job_is_valid_runs_at_batch_1_and_8_and_repeats_its_bytes(
    shared_data: Path, tmp_path: Path, name: str
) -> None:
    written = []
    for number in (1, 2):
        out = tmp_path / f"{number}.onnx"
        arguments = ["--prune", "0.4", "--tucker", "auto", "--no-latency", "-q"]
        assert main([str(shared_data / name), str(out), *arguments]) == 0
        written.append(out.read_bytes())
    assert written[0] == written[1]
    check(out)
    for batch in (1, 8):
        (probabilities,) = outputs(out, batch)
        assert probabilities.shape[0] == batch
        assert probabilities.reshape(batch, -1).sum(axis=1) == pytest.approx(np.ones(batch), abs=1e-4)


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_main_job_on_googlenet_from_both_exporters(tmp_path: Path, exporter: str) -> None:
    export = pytest.importorskip("export", reason="needs torch")
    source, out = tmp_path / "googlenet.onnx", tmp_path / "out.onnx"
    export.main(["--model", "googlenet", "--exporter", exporter, "--dynamic-batch", "--out", str(source)])
    result = pruned(Model.load(source), 0.4)
    assert not [s for s in result.plan.skipped if "graph output" not in s.reason]
    assert main([str(source), str(out), "--prune", "0.4", "--tucker", "auto", "--no-latency", "-q"]) == 0
    check(out)
    for batch in (1, 8):
        assert outputs(out, batch)[0].shape == (batch, 1000)


def test_forty_percent_of_every_group_leaves_googlenet(shared_data: Path) -> None:
    result = pruned(Model.load(shared_data / GOOGLENET), 0.4)
    for decision in result.plan.decisions:
        width, kept = decision["filters"]
        assert kept == width - int(np.floor(0.4 * width + 0.5))
    assert [skipped.node for skipped in result.plan.skipped] == ["loss3/classifier"]
    assert model_cost(result.model).params <= 2_850_000


@pytest.mark.parametrize("name", [GOOGLENET, SQUEEZENET])
def test_pruned_model_is_the_original_with_removed_channels_zeroed_at_their_consumers(
    shared_data: Path, name: str
) -> None:
    model = Model.load(shared_data / name)
    verification = verify_pruning(model, pruned(model, 0.4), sample_feeds(model))
    assert len(verification.tensors) == 2
    assert verification.difference <= 1e-5


@pytest.mark.parametrize("name", [GOOGLENET, SQUEEZENET])
def test_full_rank_split_reproduces_the_original(shared_data: Path, name: str) -> None:
    model = Model.load(shared_data / name)
    split = TuckerDecomposition(TuckerConfig.from_spec("ratio=1.0"))
    result = split.apply(model, split.plan(model, PassContext()), PassContext())
    feeds, output = sample_feeds(model), model.graph.outputs[0].name
    logits = model.graph.outputs[0].inputs[0].inputs[0].name
    for tensor in (output, logits):
        expected, seen = (run_model(m, feeds, [tensor])[tensor] for m in (model, result.model))
        assert relative_difference(expected, seen) <= 1e-4


def test_nothing_asked_changes_no_output_bit(shared_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    options = ["--prune", "0", "--tucker", "off", "--cleanup", "off", "--no-latency", "-q"]
    assert main([str(shared_data / GOOGLENET), str(out), *options]) == 0
    for before, after in zip(outputs(shared_data / GOOGLENET, 2), outputs(out, 2), strict=True):
        assert np.array_equal(before, after)


def test_evbmf_ranks_are_the_published_ones(shared_data: Path) -> None:
    model = Model.load(shared_data / GOOGLENET)
    context = PassContext(exclude=("^conv1/7x7_s2$",))
    split = TuckerDecomposition(TuckerConfig.from_spec("evbmf"))
    cost = model_cost(split.apply(model, split.plan(model, context), context).model)
    assert cost.params == pytest.approx(4.44e6, rel=0.02)
    assert cost.macs == pytest.approx(738e6, rel=0.02)
