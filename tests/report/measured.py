"""Measurements and reports made by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

from onnxcompress.evaluation.accuracy import Accuracy, Hits
from onnxcompress.recipe import Recipe
from onnxcompress.report.figures import (
    GateResult,
    Report,
    StageFigures,
    compression_between,
)
from tests.report import sample_reports
from tests.report.sample_reports import COMPRESSED, ORIGINAL

LATENCY = dataclasses.replace(sample_reports.LATENCY, credit=None)


def accuracy(before: float = 78.5, after: float = 1.0, *, labels: bool = True, agreement: float = 2.0) -> Accuracy:
    if not labels:
        return Accuracy(200, False, "prob", agreement=agreement, kl=4.2)
    drop = before - after
    return Accuracy(
        samples=200,
        labels=True,
        output="prob",
        original=Hits(before, 93.5),
        compressed=Hits(after, 3.0),
        drop_top1=drop,
        drop_top1_interval=(drop - 2.0, drop + 3.0),
        agreement=agreement,
        kl=4.2,
    )


def report(**changes: Any) -> Report:
    stage = StageFigures(
        "pruning", 0.4, 2_749_000, 596_000_000, ({"group": "g", "removed": [1, 2]},), (), bytes=11_020_000
    )
    full = Report(
        input=ORIGINAL,
        output=COMPRESSED,
        stages=(stage,),
        accuracy=accuracy(),
        latency=(LATENCY,),
        compression=compression_between(ORIGINAL, COMPRESSED),
        gates=(GateResult("max_drop", 1.0, 77.5, False),),
        recipe=Recipe(prune=0.4).to_json(),
        seed=0,
        versions={"onnx": "1"},
        platform={"cores": 2},
        seconds=1.5,
        peak_rss_bytes=1,
    )
    return dataclasses.replace(full, **changes)
