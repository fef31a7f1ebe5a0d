"""OpenVINO, a second real provider: `make test-openvino` installs it in an environment of its own and runs these.

It replaces onnxruntime's module, so it cannot be installed beside it; without it the tests are skipped.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from onnxcompress.cli import main
from onnxcompress.evaluation.latency import LatencySettings, measure_latency
from onnxcompress.evaluation.profile import ElsewhereNode, profile_model
from onnxcompress.runtime.providers import OPENVINO, resolve_provider
from onnxcompress.runtime.session import Session
from tests.runtime.networks import classifier, proto_of

pytestmark = pytest.mark.skipif(
    OPENVINO not in onnxruntime.get_available_providers(), reason="needs onnxruntime-openvino: make test-openvino"
)
MODELS = Path(__file__).resolve().parents[2] / "models"
DIGITS = MODELS / "googlenet-digits.onnx"
QUICK = LatencySettings(threads=1, warmup=1, repeat=20)


def normalized() -> onnx.ModelProto:
    """LRN, which the GoogLeNet for digits lacks, with what stands before and behind it in the real one."""
    model = classifier()
    (relu,) = (node for node in model.graph.node if node.op_type == "Relu")
    relu.output[0] = "before"
    model.graph.node.insert(2, helper.make_node("LRN", ["before"], ["r"], "norm", size=5, alpha=1e-4))
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.mark.parametrize("model", [DIGITS, normalized().SerializeToString()], ids=["digits", "LRN"])
def test_every_node_runs_on_it(model: Path | bytes) -> None:
    seen = measure_latency(model, model, resolve_provider("openvino"), QUICK)
    assert (seen.provider, seen.requested) == (OPENVINO, "openvino")
    assert seen.original_elsewhere == seen.compressed_elsewhere == ()
    assert seen.original_nodes.keys() == {OPENVINO}
    assert seen.options == {"device_type": "CPU", "num_of_threads": "1"}
    assert not seen.bound
    assert seen.original_ms.p50 > 0


@pytest.mark.parametrize("model", [DIGITS, normalized().SerializeToString()], ids=["digits", "LRN"])
def test_it_computes_what_the_cpu_provider_computes(model: Path | bytes) -> None:
    cpu, openvino = Session(model), Session(model, resolve_provider("openvino"))
    (info,) = cpu.inputs
    shape = [size if isinstance(size, int) else 8 for size in info.shape]
    feed = {info.name: np.random.default_rng(0).random(shape, dtype=np.float32)}
    for name, expected in cpu.run(feed).items():
        np.testing.assert_allclose(openvino.run(feed)[name], expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def busy_threads(session: Session, runs: int) -> int:
    """How many of the process's threads computed while the session ran."""

    def computed() -> dict[str, int]:
        tasks = Path("/proc/self/task")
        return {task.name: int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir()}

    feed = {info.name: np.zeros([64, *info.shape[1:]], info.dtype) for info in session.inputs}
    session.run(feed)
    before = computed()
    for _ in range(runs):
        session.run(feed)
    after = computed()
    spent = {task: time - before.get(task, 0) for task, time in after.items()}
    return sum(time > 0.01 * sum(spent.values()) for time in spent.values())


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="counts threads by what Linux says of them")
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
@pytest.mark.parametrize("threads", [1, 2])
def test_it_runs_on_as_many_threads_as_it_is_told(threads: int) -> None:
    assert busy_threads(Session(DIGITS, resolve_provider("openvino").with_threads(threads)), 20) == threads


@pytest.mark.parametrize("op_type", ["Det", "Hardmax"])
def test_what_it_cannot_run_is_named(op_type: str) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], "relu"),
        helper.make_node(op_type, ["r"], ["d"], "odd"),
        helper.make_node("Neg", ["d"], ["y"], "neg"),
    ]
    shape = [] if op_type == "Det" else [4, 4]
    model = proto_of(nodes, {"x": (TensorProto.FLOAT, [4, 4])}, {"y": (TensorProto.FLOAT, shape)}).SerializeToString()
    seen = measure_latency(model, model, resolve_provider("openvino"), QUICK)
    assert ElsewhereNode("odd", op_type, "CPUExecutionProvider") in seen.original_elsewhere
    assert seen.original_elsewhere == seen.compressed_elsewhere
    assert seen.original_nodes[OPENVINO] >= 1


def test_its_profile_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    feed = {"x": np.zeros((1, 3, 8, 8), np.float32)}
    nodes = profile_model(classifier().SerializeToString(), feed, resolve_provider("openvino"), threads=1, runs=1)
    assert {node.provider for node in nodes} == {OPENVINO}
    assert list(tmp_path.iterdir()) == []


def test_compression_and_comparison_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = ["--data", str(MODELS / "digits-test.npz"), "--preprocess", "unit", "--samples", "100"]
    timing = ["--provider", "openvino", "--threads", "1", "--repeat", "20", "--no-progress", "-q"]
    assert main([str(DIGITS), "small.onnx", "--prune", "0.3", *data, *timing, "--report", "a.json"]) == 0
    assert main(["compare", str(DIGITS), "small.onnx", *data, *timing, "--report", "b.json"]) == 0
    assert main(["compare", str(DIGITS), "small.onnx", *data, "--no-latency", "-q", "--report", "cpu.json"]) == 0
    first, second, cpu = (json.loads(Path(name).read_text()) for name in ("a.json", "b.json", "cpu.json"))
    for report in (first, second):
        (latency,) = report["latency"]
        assert (latency["provider"], latency["threads"], latency["compressed_elsewhere"]) == (OPENVINO, 1, [])
        for model in ("original", "compressed"):
            assert report["accuracy"][model]["top1"] == pytest.approx(cpu["accuracy"][model]["top1"], abs=1.0)


@pytest.mark.parametrize(
    ("option", "code", "message"),
    [
        ("openvino.colour=red", 2, "refuses its options: Invalid OpenVINO EP option: colour"),
        ("openvino.device_type=ABACUS", 6, "runs none of the model's"),
    ],
)
def test_refused_options_and_absent_devices(
    option: str, code: int, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    same = ["compare", str(DIGITS), str(DIGITS), "--provider", "openvino", "--no-progress", "-q"]
    assert main([*same, "--provider-option", option]) == code
    captured = capfd.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("onnxcompress: error: provider 'openvino'")
    assert message in line
