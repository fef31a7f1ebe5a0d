"""Accuracy and latency after every stage: measured where that is asked for, in every report."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from onnxcompress.pipeline.compress import CompressionResult, compress
from onnxcompress.report.html import html_report
from onnxcompress.report.json_file import report_to_json
from onnxcompress.report.markdown import markdown_summary
from onnxcompress.report.rows import stage_measures
from tests.report.sample_reports import ACCURACY, LATENCY, sample_report
from tests.tiny_models import CLASSES, conv_net, samples


def run(**options: Any) -> CompressionResult:
    labels = np.arange(len(samples())) % CLASSES
    data = [{"x": samples(), "labels": labels}]
    return compress(conv_net(channels=32), data=data, calib=[{"x": samples()}], round_to=1, **options)


def test_every_stage_that_changed_something_is_measured() -> None:
    options: dict[str, Any] = {"prune": 0.5, "recover": "refit", "quantize": "int8", "latency": False}
    result = run(**options, measure_stages=True)
    stages = {stage.pass_name: stage for stage in result.report.stages}
    assert stages["cleanup"].accuracy is None
    measured = [stages[name].accuracy for name in ("prune", "refit", "int8")]
    assert all(each is not None and each.original == result.report.accuracy.original for each in measured)
    assert measured[-1] == result.report.accuracy
    kl = [each.kl for each in measured]
    assert kl[1] < kl[0]
    assert not any(stage.latency for stage in stages.values())
    written = report_to_json(result.report)["stages"]
    assert [entry["accuracy"] is None for entry in written] == [name == "cleanup" for name in stages]
    assert run(**options).model.to_bytes() == result.model.to_bytes()


def test_nothing_is_measured_unless_it_is_asked_for() -> None:
    report = run(prune=0.5, latency=False).report
    assert not any(stage.accuracy for stage in report.stages)
    assert stage_measures(report) == []


def test_latency_is_measured_where_the_run_measures_it() -> None:
    report = run(prune=0.5, warmup=1, repeat=5, threads=1, measure_stages=True).report
    (entry,) = next(stage for stage in report.stages if stage.pass_name == "prune").latency
    assert entry.compressed_ms.p50 > 0.0
    assert [title for title, _ in stage_measures(report)] == ["top-1", "p50 on cpu"]


@pytest.mark.parametrize(
    ("accuracy", "title", "figures"),
    [
        (ACCURACY, "top-1", ["78.5 %", "", "77.0 %"]),
        (dataclasses.replace(ACCURACY, labels=False), "agreement", ["100.0 %", "", "95.0 %"]),
        (
            dataclasses.replace(ACCURACY, labels=False, output=None, relative_error=0.02),
            "error",
            ["0.0 %", "", "2.0 %"],
        ),
    ],
)
def test_the_tables_have_a_column_for_each_figure(accuracy: Any, title: str, figures: list[str]) -> None:
    report = sample_report(accuracy=accuracy)
    first, last = report.stages
    last = dataclasses.replace(last, accuracy=accuracy, latency=(LATENCY,))
    report = dataclasses.replace(report, stages=(first, last))
    assert stage_measures(report) == [(title, figures), ("p50 on cpu", ["18.0 ms", "", "9.00 ms (2.00 x)"])]
    assert f"| {title} | p50 on cpu |" in markdown_summary(report)
    assert "9.00 ms (2.00 x)" in html_report(report)
