"""Reports made by hand, with names that try to break out of whatever format they are written in."""

from __future__ import annotations

import dataclasses
from typing import Any

from onnxcompress.evaluation.accuracy import Accuracy, Hits
from onnxcompress.evaluation.latency import Credit, Latency
from onnxcompress.evaluation.timing import Milliseconds
from onnxcompress.recipe import Recipe
from onnxcompress.report.figures import (
    GateResult,
    ModelFigures,
    Report,
    SelfCheck,
    SkippedNode,
    StageFigures,
    StepFigures,
    compression_between,
)

EVIL = (
    "</script><script>alert(1)</script>|`|``*a*_b_\\|&amp;\"'\x1b[31m\n\u202e\ud800]]>@octocat https://evil.example #1"
)
"""A node name; graphs may hold any text."""

ORIGINAL = ModelFigures("a.onnx", "0a", 28_010_000, 6_998_552, 1_582_671_616, 17, {"Conv": 57, "Gemm": 1})
COMPRESSED = ModelFigures("b.onnx", "0b", 11_020_000, 2_749_000, 596_000_000, 17, {"Conv": 57, "Gemm": 1})
ACCURACY = Accuracy(
    samples=200,
    labels=True,
    output="prob",
    original=Hits(78.5, 93.5),
    compressed=Hits(77.0, 93.0),
    drop_top1=1.5,
    drop_top1_interval=(-0.5, 3.5),
    agreement=95.0,
    agreement_interval=(91.0, 97.3),
    kl=0.04,
)
LATENCY = Latency(
    provider="CPUExecutionProvider",
    requested="cpu",
    options={},
    batch=1,
    threads=2,
    affinity=(0, 1),
    copies=True,
    warmup=5,
    runs=50,
    original_ms=Milliseconds(18.0, 19.0),
    compressed_ms=Milliseconds(9.0, 9.5),
    speedup=2.0,
    interval=(1.9, 2.1),
    credit=Credit(Milliseconds(12.0, 13.0), 1.5, (1.4, 1.6), 1.33, None),
)
STEPS = (
    StepFigures("fold", "computes constants beforehand", 0.01, 0, 0),
    StepFigures("lrn", "writes LRN as a convolution", 0.09, 1, 0, "1.52 x on CPU"),
)
DROP = GateResult("max_drop", 1.0, 1.5, False, (-0.5, 3.5))
DOUBTFUL = GateResult("max_drop", 2.0, 1.5, False, (-0.5, 3.5), strict=True)
SPEED = GateResult("min_speedup", 1.2, 2.0, True, (1.9, 2.1))
SIZE = GateResult("min_compression", 3.0, 2.54, False)


def sample_report(**changes: Any) -> Report:
    """Return a report with something of everything; `changes` replace its fields."""
    prune = {"kind": "prune", "node": "conv1", "filters": [64, 38], "removed": {"conv1": [1, 2], "conv2": [3]}}
    stages = (
        StageFigures(
            "cleanup", 0.1, 6_998_552, 1_582_671_616, ({"step": "lrn", "node": "norm"},), (), None, steps=STEPS
        ),
        StageFigures(
            "prune",
            0.4,
            2_749_000,
            596_000_000,
            (prune,),
            (SkippedNode("fc", "is the graph output"),),
            bytes=11_020_000,
        ),
    )
    full = Report(
        input=ORIGINAL,
        output=COMPRESSED,
        stages=stages,
        accuracy=ACCURACY,
        latency=(LATENCY,),
        compression=compression_between(ORIGINAL, COMPRESSED),
        gates=(DROP, SPEED, SIZE),
        self_checks=(SelfCheck("prune", 1.2e-6, 1e-3),),
        recipe=Recipe(prune=0.4, tucker="auto", max_drop=1.0, min_speedup=1.2, min_compression=3.0).to_json(),
        seed=0,
        versions={"onnxcompress": "0.1.0", "onnx": "1.19"},
        platform={"system": "Linux", "cores": 2},
        seconds=1.5,
        peak_rss_bytes=100_000_000,
    )
    return dataclasses.replace(full, **changes)


def evil_report() -> Report:
    """Return a report in which everything that users or graphs name is `EVIL`."""
    names = {"path": EVIL, "ops": {EVIL: 1}}
    decisions = ({"kind": "prune", "node": EVIL, "filters": [4, 2], "removed": {EVIL: [1]}}, {EVIL: EVIL})
    stage = StageFigures(EVIL, 0.1, 1, 1, decisions, (SkippedNode(EVIL, EVIL), SkippedNode("n", EVIL)))
    return sample_report(
        input=dataclasses.replace(ORIGINAL, **names),
        output=dataclasses.replace(COMPRESSED, **names),
        stages=(stage,),
        latency=(dataclasses.replace(LATENCY, requested=EVIL, provider=EVIL),),
        gates=(GateResult(EVIL, 1.0, None, False), DROP),
        self_checks=(SelfCheck(EVIL, 0.0, 1.0),),
        warnings=(EVIL,),
        versions={EVIL: EVIL},
        platform={EVIL: EVIL},
    )
