"""Sweeps of a tiny model: what is written, what goes on after an interrupt, what fails without stopping the others."""

from __future__ import annotations

import importlib.util
import json
import logging
import logging.handlers
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import onnx
import pytest

import onnxcompress
from onnxcompress.cli import main
from onnxcompress.errors import BudgetInfeasibleError, DataError, ModelError, ProviderUnavailableError, RecipeError
from onnxcompress.pipeline import outputs, sweep_executors, sweep_work
from tests.tiny_models import conv_net, map_net, samples, save_data

GRID: dict[str, Any] = {"prune_range": "0.25,0.5", "tucker_range": "ratio=0.5", "latency": False}
NAMES = ["prune-0.25", "prune-0.5", "tucker-ratio-0.5", "prune-0.25-tucker-ratio-0.5", "prune-0.5-tucker-ratio-0.5"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    onnx.save(conv_net(), "in.onnx")
    save_data(Path("data.npz"), conv_net(), count=24)
    return tmp_path


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the points that really run in this process."""
    ran: list[str] = []
    real = sweep_work._compressed

    def compressed(task: sweep_work.Task, tell: Any) -> Any:
        ran.append(task.name)
        return real(task, tell)

    monkeypatch.setattr(sweep_work, "_compressed", compressed)
    return ran


def test_every_point_is_compressed_evaluated_and_kept(folder: Path) -> None:
    report = onnxcompress.sweep("in.onnx", out="out", data="data.npz", **GRID)
    assert [point.name for point in report.points] == NAMES
    assert report.labels
    assert (report.samples, report.original_accuracy) == (24, 100.0)
    for point in report.points:
        assert point.done
        assert point.model is not None
        model = onnxcompress.Model.load(Path("out") / point.model)
        direct = onnxcompress.compress("in.onnx", dict(point.options), data="data.npz", latency=False)
        assert model.to_bytes() == direct.model.to_bytes()
        assert direct.report.accuracy is not None
        assert point.accuracy == direct.report.accuracy.compressed.top1
        assert direct.report.compression is not None
        assert point.compression["macs"] == direct.report.compression.macs
    written = json.loads(Path("out/sweep.json").read_text())
    assert [point["name"] for point in written["points"]] == NAMES
    assert written["input"]["sha256"] == report.input.sha256
    assert {"sweep.csv", "sweep.html", "pareto-size.svg"} <= {path.name for path in Path("out").iterdir()}


def test_a_network_that_does_not_classify_is_judged_by_its_error(folder: Path) -> None:
    onnx.save(map_net(), "map.onnx")
    np.savez("maps.npz", x=samples(24, seed=3))
    report = onnxcompress.sweep("map.onnx", out="out", data="maps.npz", **GRID)
    assert (report.judged_by, report.original_accuracy, report.labels) == ("relative_error", None, False)
    for point in report.points:
        direct = onnxcompress.compress("map.onnx", dict(point.options), data="maps.npz", latency=False).report.accuracy
        assert direct is not None
        assert direct.relative_error is not None
        assert point.accuracy is None
        assert point.relative_error == direct.relative_error
        assert point.drop == pytest.approx(100 * direct.relative_error)
        assert point.drop_interval == pytest.approx([100 * end for end in direct.relative_error_interval or ()])
    written = json.loads(Path("out/sweep.json").read_text())
    assert [gain["loss"] for gain in written["gains"] if gain["measure"] == "macs"] == [1.0, 2.0, 5.0, 10.0]
    # The same call again reads the same from what was kept.
    again = onnxcompress.sweep("map.onnx", out="out", data="maps.npz", **GRID)
    assert all(point.resumed for point in again.points)
    assert (again.judged_by, again.gains) == (report.judged_by, report.gains)


def test_classes_of_places_are_told_as_what_differs(folder: Path) -> None:
    """1 - IoU of a class is no error relative to the size of a number."""
    onnx.save(map_net(classes=True), "places.onnx")
    np.savez("maps.npz", x=samples(24, seed=3))
    report = onnxcompress.sweep("places.onnx", out="out", data="maps.npz", **GRID)
    assert report.judged_by == "relative_error"
    assert report.whole_numbers
    plot = next(Path("out").glob("pareto-macs.svg")).read_text()
    for written in (Path("out/sweep.html").read_text(), plot):
        assert "1 - IoU" in written
        assert "elative error" not in written
        assert "relative to" not in written


def test_a_sweep_goes_on_with_what_is_missing(folder: Path, counted: list[str]) -> None:
    onnxcompress.sweep("in.onnx", out="out", data="data.npz", **{**GRID, "prune_range": "0.25"})
    assert counted == [NAMES[0], NAMES[2], NAMES[3]]
    counted.clear()
    report = onnxcompress.sweep("in.onnx", out="out", data="data.npz", **GRID)
    assert counted == [NAMES[1], NAMES[4]]
    assert [point.resumed for point in report.points] == [True, False, True, True, False]


@pytest.mark.parametrize("change", ["recipe", "model", "data", "damaged point", "damaged model"])
def test_what_has_changed_is_done_anew(change: str, folder: Path, counted: list[str]) -> None:
    grid = {**GRID, "method": ("tucker",)}
    first = onnxcompress.sweep("in.onnx", out="out", data="data.npz", **grid)
    counted.clear()
    if change == "recipe":
        grid["seed"] = 1
    elif change == "model":
        onnx.save(conv_net(seed=1), "in.onnx")
    elif change == "data":
        save_data(Path("data.npz"), conv_net(), count=20)
    elif change == "damaged point":
        (point,) = Path("out/points").iterdir()
        point.write_text(point.read_text()[:-100])
    else:
        (Path("out") / str(first.points[0].model)).write_bytes(b"no model")
    onnxcompress.sweep("in.onnx", out="out", data="data.npz", **grid)
    assert counted == ["tucker-ratio-0.5"]
    counted.clear()
    onnxcompress.sweep("in.onnx", out="out", data="data.npz", **grid)
    assert counted == []


def test_an_interrupt_keeps_the_finished_points(
    folder: Path, counted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sweep_executors.run_task

    def interrupted(task: sweep_work.Task, tell: Any) -> sweep_work.Outcome:
        if task.name == NAMES[2]:
            raise KeyboardInterrupt
        return real(task, tell)

    monkeypatch.setattr(sweep_executors, "run_task", interrupted)
    with pytest.raises(KeyboardInterrupt):
        onnxcompress.sweep("in.onnx", out="out", data="data.npz", **GRID)
    assert not Path("out/sweep.json").exists()
    monkeypatch.setattr(sweep_executors, "run_task", real)
    counted.clear()
    onnxcompress.sweep("in.onnx", out="out", data="data.npz", **GRID)
    assert counted == NAMES[2:]


def test_a_point_that_fails_stops_no_other(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = sweep_work.compress

    def failing(model: Any, recipe: Any, **options: Any) -> Any:
        if recipe.prune == 0.5:
            raise BudgetInfeasibleError("macs: cannot be reached")
        return real(model, recipe, **options)

    monkeypatch.setattr(sweep_work, "compress", failing)
    words = ["sweep", "in.onnx", "--out", "out", "--data", "data.npz", "--prune-range", "0.25,0.5", "--no-latency"]
    assert main([*words, "--tucker-range", "ratio=0.5"]) == 0
    shown = capsys.readouterr()
    assert "prune-0.5: macs: cannot be reached" in shown.err
    points = {point["name"]: point for point in json.loads(Path("out/sweep.json").read_text())["points"]}
    assert points["prune-0.5"]["exit_code"] == 3
    assert points["prune-0.25"]["accuracy"] is not None
    assert main([*words, "--method", "prune", "--prune-range", "0.5"]) == 3


def test_a_bug_in_a_point_is_told_with_its_traceback(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **options: Any) -> Any:
        raise ZeroDivisionError("boom")

    monkeypatch.setattr(sweep_work, "compress", broken)
    words = ["sweep", "in.onnx", "--out", "out", "--data", "data.npz", "--method", "prune", "--points", "1", "-q"]
    assert main([*words, "--no-latency"]) == 70
    (kept,) = Path("out/points").iterdir()
    assert "ZeroDivisionError: boom" in json.loads(kept.read_text())["traceback"]


def test_latency_is_measured_at_the_end_and_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {**GRID, "latency": True, "method": ("tucker",), "round_to": 1, "warmup": 1, "repeat": 5, "threads": 1}
    report = onnxcompress.sweep("in.onnx", out="out", data="data.npz", **options)
    assert report.points[0].latency_ms is not None
    assert report.points[0].compression["latency"] > 0.0
    again = onnxcompress.sweep("in.onnx", out="out", data="data.npz", **options)
    assert again.points[0].latency_ms == report.points[0].latency_ms


def test_models_are_deleted_where_they_are_not_wanted(folder: Path, counted: list[str]) -> None:
    options = {**GRID, "keep_models": False}
    report = onnxcompress.sweep("in.onnx", out="out", data="data.npz", **options)
    assert list(Path("out/models").iterdir()) == []
    assert {point.model for point in report.points} == {None}
    counted.clear()
    onnxcompress.sweep("in.onnx", out="out", data="data.npz", **options)
    assert counted == []


def test_nor_are_their_weights_where_those_lie_beside_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of a model above 2 GB do."""
    monkeypatch.setattr(outputs, "PROTOBUF_LIMIT_BYTES", 0)
    onnxcompress.sweep("in.onnx", out="kept", data="data.npz", **GRID)
    assert len(list(Path("kept/models").glob("*.data"))) == len(NAMES)
    onnxcompress.sweep("in.onnx", out="out", data="data.npz", keep_models=False, **GRID)
    assert list(Path("out/models").iterdir()) == []


def test_all_points_are_judged_on_the_same_samples(folder: Path) -> None:
    onnxcompress.sweep("in.onnx", out="out", data="data.npz", importance="activation", **GRID)
    found = {json.loads(path.read_text())["report"]["accuracy"]["samples"] for path in Path("out/points").iterdir()}
    assert found == {18}


def test_data_in_memory_without_labels(folder: Path) -> None:
    def batches() -> Iterator[dict[str, np.ndarray]]:
        yield {"x": samples(8)}

    report = onnxcompress.sweep(conv_net(), out="out", data=batches, **{**GRID, "method": ("prune",)})
    assert not report.labels
    assert report.points[0].drop == 100.0 - (report.points[0].agreement or 0.0)


def test_each_method_chooses_for_itself_under_a_target(folder: Path) -> None:
    options = {"target_range": "macs=0.6", "latency": False, "svd": "auto"}
    np.savez("calib.npz", x=samples(120, seed=5))
    report = onnxcompress.sweep("in.onnx", out="out", data="data.npz", calib="calib.npz", **options)
    assert [point.name for point in report.points] == ["prune-macs-0.6", "tucker-macs-0.6", "both-macs-0.6"]
    for point in report.points:
        assert point.done, point.reason
        assert point.compression["macs"] >= 1.0 / 0.6


def test_points_run_in_processes(folder: Path) -> None:
    alone = onnxcompress.sweep("in.onnx", out="alone", data="data.npz", **GRID)
    told: list[str] = []
    report = onnxcompress.sweep(
        "in.onnx", out="out", data="data.npz", jobs=2, progress=lambda doing, done, total: told.append(doing), **GRID
    )
    assert [(p.accuracy, p.bytes, p.params) for p in report.points] == [
        (p.accuracy, p.bytes, p.params) for p in alone.points
    ]
    for one, other in zip(alone.points, report.points, strict=True):
        assert Path("alone", str(one.model)).read_bytes() == Path("out", str(other.model)).read_bytes()
    assert any(text.startswith("point 3 of 5, about ") for text in told)


@pytest.mark.skipif(importlib.util.find_spec("distributed") is None, reason="dask.distributed is not installed")
def test_points_run_on_a_dask_cluster(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import distributed

        with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
            options = {**GRID, "prune_range": "0.25"}
            report = onnxcompress.sweep(
                Path("in.onnx").absolute(),
                out="out",
                data=str(Path("data.npz").absolute()),
                scheduler=cluster.scheduler_address,
                **options,
            )
    assert [point.done for point in report.points] == [True] * 3
    direct = onnxcompress.compress("in.onnx", prune=0.25, latency=False)
    assert Path("out", str(report.points[0].model)).read_bytes() == direct.model.to_bytes()


def test_a_scheduler_that_goes_is_not_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dask cancels what a client waits for once it has lost the scheduler."""
    client, future = MagicMock(), MagicMock()
    client.__enter__.return_value = client
    client.submit.return_value = future
    future.cancelled.return_value, future.exception.return_value = True, None
    future.result.side_effect = RuntimeError("cancelled for reason: scheduler-connection-lost")
    log, told = logging.getLogger("distributed.client"), logging.handlers.BufferingHandler(100)
    log.addHandler(told)
    level = log.level

    def loses_the_scheduler(futures: Any) -> Iterator[Any]:
        log.error("Traceback (most recent call last)")
        return iter(futures)

    cluster = MagicMock(Client=MagicMock(return_value=client), as_completed=loses_the_scheduler)
    monkeypatch.setitem(sys.modules, "distributed", cluster)
    with pytest.raises(ProviderUnavailableError, match=r"tcp://x:1: the Dask scheduler is gone; points that were"):
        onnxcompress.sweep(
            "in.onnx", out="out", data="data.npz", method=["prune"], prune_range="0.25", scheduler="tcp://x:1"
        )
    log.removeHandler(told)
    assert told.buffer == []
    assert log.level == level


def test_what_is_no_address_meets_no_client(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(distributed, "Client", MagicMock(side_effect=AssertionError("a client was made")))
    options = {"method": ["prune"], "prune_range": "0.25", "scheduler": "nonsense"}
    with pytest.raises(ProviderUnavailableError, match="--scheduler nonsense: no Dask scheduler answers there"):
        onnxcompress.sweep("in.onnx", out="out", data="data.npz", **options)


@pytest.mark.parametrize(
    ("error", "complaint", "options"),
    [
        (RecipeError, "needs evaluation data", {"data": None}),
        (RecipeError, "a sweep goes through it", {"prune": 0.2}),
        (RecipeError, "unknown key", {"prume": 0.2}),
        (RecipeError, "as a path", {"jobs": 2, "data": [{"x": samples(4)}]}),
        (RecipeError, "needs training data", {"recover": "finetune"}),
        (RecipeError, "is a file", {"out": "in.onnx"}),
        (RecipeError, "holds no sweep", {"out": "."}),
        (DataError, "no such file", {"data": "nothing.npz"}),
        (ModelError, "no.onnx", {"model": "no.onnx"}),
        (ProviderUnavailableError, "no Dask scheduler answers", {"scheduler": "tcp://127.0.0.1:9"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_work_is_refused_before_any_point(
    error: type[Exception], complaint: str, options: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "scheduler" in options:
        pytest.importorskip("distributed")
        monkeypatch.setattr(sweep_executors, "_CONNECT_SECONDS", 0.5)
    asked = {"model": "in.onnx", "out": "out", "data": "data.npz", **GRID, **options}
    warnings.simplefilter("ignore")  # what distributed says of a scheduler that is not there
    with pytest.raises(error, match=complaint):
        onnxcompress.sweep(asked.pop("model"), **asked)
    assert not list(Path("out").glob("points/*"))


def test_the_command_line_refuses_in_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sweep", "in.onnx", "--data", "data.npz"]
    for more, expected in (
        ([], "--out"),
        (["--out", "out", "--prune-range", "2"], "--prune-range: 2.0 is out of range"),
        (["--out", "out", "--prune", "0.2"], "unrecognized arguments: --prune"),
    ):
        assert main([*words, *more]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert expected in line
