"""Latency of real sessions (no figure is judged here), inputs bound to a device, and the profile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from onnxcompress.errors import DataError, ModelError, ProviderUnavailableError
from onnxcompress.evaluation import latency
from onnxcompress.evaluation.latency import LatencySettings, measure_latency, measure_together, measure_with_credit
from onnxcompress.evaluation.profile import (
    ElsewhereNode,
    NodeTime,
    compare_profiles,
    node_times,
    nodes_elsewhere,
    profile_model,
)
from onnxcompress.runtime.device import bound_run, cpu_affinity, physical_cores, single_run
from onnxcompress.runtime.providers import Provider
from onnxcompress.runtime.session import Session
from tests.runtime.networks import classifier

MODEL = classifier().SerializeToString()
QUICK = LatencySettings(threads=1, warmup=1, repeat=6)
X = {"x": np.random.default_rng(0).standard_normal((2, 3, 8, 8), dtype=np.float32)}


def test_what_is_recorded() -> None:
    seen = measure_latency(MODEL, classifier(seed=1).SerializeToString(), settings=QUICK)
    assert (seen.provider, seen.requested, seen.batch, seen.threads) == ("CPUExecutionProvider", "cpu", 1, 1)
    assert seen.runs >= 6
    assert seen.warmup == 1
    assert seen.copies
    assert 0 < seen.original_ms.p50 <= seen.original_ms.p95
    assert seen.interval is not None
    assert seen.interval[0] <= seen.speedup <= seen.interval[1]
    assert seen.affinity == cpu_affinity()
    entry = json.loads(json.dumps(seen.to_json()))
    wanted = {"provider", "requested", "batch", "threads", "runs", "original_ms", "compressed_ms", "speedup"}
    assert wanted <= entry.keys()
    assert entry["original_ms"].keys() == {"p50", "p95"}


def test_three_models_in_the_same_rounds() -> None:
    seen = measure_together([MODEL, classifier(seed=1).SerializeToString(), MODEL], settings=QUICK)
    assert seen.rounds.times.shape[:2] == (3, 6)
    first, second, both = seen.between(0, 1), seen.between(1, 2), seen.between(0, 2)
    assert first.compressed_ms == second.original_ms
    assert (both.original_ms, both.compressed_ms) == (first.original_ms, second.compressed_ms)
    assert {(one.threads, one.batch, one.runs) for one in (first, second, both)} == {(1, 1, 6)}


def test_what_clean_up_earned_is_told_apart() -> None:
    seen = measure_with_credit(MODEL, classifier(seed=1).SerializeToString(), MODEL, settings=QUICK)
    credit = seen.credit
    assert credit is not None
    assert credit.cleanup_speedup > 0
    assert credit.compression_speedup > 0
    # Medians over rounds of each ratio: their product is the whole's but for the noise between the rounds.
    assert credit.cleanup_speedup * credit.compression_speedup == pytest.approx(seen.speedup, rel=0.5)
    assert seen.to_json()["credit"]["cleaned_ms"].keys() == {"p50", "p95"}
    assert measure_latency(MODEL, MODEL, settings=QUICK).credit is None


def test_batch_and_shapes() -> None:
    assert measure_latency(MODEL, MODEL, settings=LatencySettings(batch=5, threads=1, repeat=1)).batch == 5
    fixed = classifier(batch=3).SerializeToString()
    assert measure_latency(fixed, fixed, settings=QUICK).batch == 3
    with pytest.raises(DataError, match="batch 5 does not fit"):
        measure_latency(fixed, fixed, settings=LatencySettings(batch=5))
    unsized = classifier(size=None).SerializeToString()
    with pytest.raises(DataError, match="give --input-shape x:1x3xNxN"):
        measure_latency(unsized, unsized, settings=QUICK)
    shaped = LatencySettings(threads=1, repeat=1, shapes={"x": (2, 3, 16, 16)})
    assert measure_latency(unsized, unsized, settings=shaped).batch == 2


def test_threads_are_the_cores_unless_given() -> None:
    assert measure_latency(MODEL, MODEL, settings=LatencySettings(repeat=1)).threads == physical_cores()
    assert 1 <= physical_cores() <= len(cpu_affinity() or [1])


def test_a_model_that_does_not_run() -> None:
    with pytest.raises(ModelError, match="cannot load it"):
        measure_latency(MODEL, b"nothing", settings=QUICK)


def test_a_bound_run_computes_the_same() -> None:
    session = Session(MODEL)
    expected = session.run(X)["y"]
    np.testing.assert_array_equal(single_run(session, X)()[0], expected)  # type: ignore[index]
    bound_run(session, X, "cpu")()


class Recorder:
    """Takes every call of onnxruntime's binding interface and writes it down."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any) -> Any:
            self.calls.append((name, *args))
            return self

        return call


def test_on_cuda_inputs_and_outputs_stay_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    session = Session(MODEL, Provider("cpu", "CPUExecutionProvider"))
    session.provider = Provider("cuda", "CUDAExecutionProvider", {"device_id": "1"})
    session.raw = recorder
    monkeypatch.setattr(
        onnxruntime.OrtValue, "ortvalue_from_numpy", lambda array, device, number: (array.shape, device, number)
    )
    run = latency._run(session, X, copies=False)
    assert recorder.calls == [
        ("io_binding",),
        ("bind_ortvalue_input", "x", ((2, 3, 8, 8), "cuda", 1)),
        ("bind_output", "y", "cuda", 1),
    ]
    run()
    assert [call[0] for call in recorder.calls[3:]] == ["run_with_iobinding", "synchronize_outputs"]


@pytest.mark.parametrize(
    ("name", "asked", "timed"), [("CUDA", False, False), ("CUDA", True, True), ("CPU", False, True)]
)
def test_copies_are_timed_where_asked_for_or_unavoidable(
    name: str, asked: bool, timed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound: list[str] = []

    def binding(session: Session, feeds: Any, device: str, number: int) -> Any:
        bound.append(f"{device}:{number}")
        return single_run(session, feeds)

    monkeypatch.setattr(latency, "bound_run", binding)
    ran = (NodeTime("conv", "Conv", f"{name}ExecutionProvider", 1.0),)
    monkeypatch.setattr(latency, "profile_model", lambda *args, **kwargs: ran)

    def on_cpu(model: Any, provider: Provider, settings: Any) -> Session:
        session = Session(model, settings=settings)
        session.provider = provider
        return session

    monkeypatch.setattr(latency, "Session", on_cpu)
    provider = Provider(name.lower(), f"{name}ExecutionProvider", {"device_id": "1"} if name == "CUDA" else {})
    seen = measure_latency(MODEL, MODEL, provider, LatencySettings(threads=1, repeat=2, copies=asked))
    assert seen.copies == timed
    assert bound == ([] if timed else ["cuda:1", "cuda:1"])


def test_a_profile_of_a_real_model_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    nodes = profile_model(MODEL, X, threads=1, runs=3)
    assert {node.provider for node in nodes} == {"CPUExecutionProvider"}
    assert {"GlobalAveragePool", "Gemm"} <= {node.op_type for node in nodes}
    assert all(node.ms >= 0 for node in nodes)
    assert list(tmp_path.iterdir()) == []


def event(name: str, ts: int, dur: int, provider: str = "CUDAExecutionProvider", index: str = "0") -> dict[str, Any]:
    args = {"op_name": name.split("/")[0], "provider": provider, "node_index": index}
    return {"cat": "Node", "name": f"{name}_kernel_time", "ts": ts, "dur": dur, "args": args}


def run_event(ts: int) -> dict[str, Any]:
    return {"cat": "Session", "name": "model_run", "ts": ts, "dur": 90}


EVENTS = [
    {"cat": "Session", "name": "session_initialization", "ts": 0, "dur": 5},
    event("Conv/a", 5, 999999),
    run_event(10),
    event("Conv/a", 11, 9000),
    run_event(110),
    event("Conv/a", 111, 2000),
    event("LRN/b", 112, 500, "CPUExecutionProvider", "1"),
    {"cat": "Node", "name": "Conv/a_fence_before", "ts": 110, "dur": 7},
    run_event(210),
    event("Conv/a", 211, 1000),
    event("Conv/a", 212, 1000),
    event("LRN/b", 213, 700, "CPUExecutionProvider", "1"),
]


def test_events_to_times_without_the_first_runs() -> None:
    nodes = node_times(EVENTS, skipped_runs=1)
    assert nodes == (
        NodeTime("Conv/a", "Conv", "CUDAExecutionProvider", 2.0),
        NodeTime("LRN/b", "LRN", "CPUExecutionProvider", 0.6),
    )
    assert nodes_elsewhere(nodes, Provider("cuda", "CUDAExecutionProvider")) == (
        ElsewhereNode("LRN/b", "LRN", "CPUExecutionProvider"),
    )
    with pytest.raises(ModelError, match="holds no node"):
        node_times(EVENTS[:1])


def test_nodes_that_fell_back_are_reported_for_other_providers_than_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = (NodeTime("a", "Conv", "XProvider", 1.0), NodeTime("b", "LRN", "CPUExecutionProvider", 1.0))
    monkeypatch.setattr(latency, "profile_model", lambda *args, **kwargs: nodes)
    monkeypatch.setattr(latency, "Session", lambda model, provider, settings: Session(model, settings=settings))
    seen = measure_latency(MODEL, MODEL, Provider("x", "XProvider"), QUICK)
    assert seen.compressed_elsewhere == (ElsewhereNode("b", "LRN", "CPUExecutionProvider"),)
    assert seen.original_nodes == seen.compressed_nodes == {"XProvider": 1, "CPUExecutionProvider": 1}
    assert seen.provider == "CPUExecutionProvider"
    assert seen.requested == "x"


def test_a_provider_that_runs_nothing_is_no_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = (NodeTime("a", "Conv", "CPUExecutionProvider", 1.0), NodeTime("b", "LRN", "CPUExecutionProvider", 1.0))
    monkeypatch.setattr(latency, "profile_model", lambda *args, **kwargs: nodes)
    monkeypatch.setattr(latency, "Session", lambda model, provider, settings: Session(model, settings=settings))
    with pytest.raises(ProviderUnavailableError, match=r"'x' .*runs none of the model's 2 nodes; all ran on CPUEx"):
        measure_latency(MODEL, MODEL, Provider("x", "XProvider", {"device_type": "ABACUS"}), QUICK)


def test_two_profiles_side_by_side() -> None:
    original = [NodeTime("a", "Conv", "p", 5.0), NodeTime("n", "LRN", "p", 9.0), NodeTime("r", "Reorder", "p", 0.25)]
    compressed = [
        NodeTime("a.first", "Conv", "p", 1.0),
        NodeTime("a.core", "Conv", "p", 2.0),
        NodeTime("r", "Reorder", "p", 0.25),
        NodeTime("r", "Reorder", "p", 0.5),
    ]
    seen = compare_profiles(original, compressed)
    assert [(r.op_type, r.original_nodes, r.original_ms, r.compressed_nodes, r.compressed_ms) for r in seen.by_op] == [
        ("LRN", 1, 9.0, None, None),
        ("Conv", 1, 5.0, 2, 3.0),
        ("Reorder", 1, 0.25, 2, 0.75),
    ]
    assert [(r.name, r.original_ms, r.compressed_ms) for r in seen.by_node] == [
        ("n", 9.0, None),
        ("a", 5.0, None),
        ("a.core", None, 2.0),
        ("a.first", None, 1.0),
        ("r", 0.25, 0.75),
    ]
