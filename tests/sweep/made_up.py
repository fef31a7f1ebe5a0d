"""A sweep's report made by hand."""

from __future__ import annotations

from dataclasses import replace

from onnxcompress.recipe import Recipe
from onnxcompress.recipe.sweep_options import SweepOptions
from onnxcompress.report.sweep_figures import YARDSTICKS, SweepPoint, SweepReport, fronts_of, gains_of
from tests.report.sample_reports import EVIL, ORIGINAL


def point(method: str, drop: float, ratio: float, *, name: str = "", latency: bool = True) -> SweepPoint:
    times = {"latency": ratio / 2} if latency else {}
    return SweepPoint(
        name or f"{method}-{ratio:g}",
        method,
        {"prune": 0.1} if method == "prune" else {"tucker": "energy=0.9"},
        accuracy=78.5 - drop,
        agreement=90.0,
        drop=drop,
        drop_interval=(drop - 1.0, drop + 1.0),
        bytes=int(ORIGINAL.bytes / ratio),
        params=int(ORIGINAL.params / ratio),
        macs=int((ORIGINAL.macs or 0) / ratio),
        latency_ms=36.0 / ratio if latency else None,
        original_latency_ms=18.0 if latency else None,
        compression={"bytes": ratio, "params": ratio, "macs": ratio, **times},
        seconds=12.0,
    )


def report_of(*points: SweepPoint) -> SweepReport:
    return SweepReport(
        ORIGINAL,
        labels=True,
        samples=200,
        original_accuracy=78.5,
        judged_by="top1",
        points=points,
        gains=gains_of(points, YARDSTICKS["top1"].losses),
        fronts=fronts_of(points),
        sweep=SweepOptions(points=3).to_json(),
        recipe=Recipe(recover="refit", data="val data/").to_json(),
        folder="out",
        seconds=100.0,
    )


def errors_example() -> SweepReport:
    """Of a network that does not classify: errors of its outputs in percent."""
    given = (
        point("prune", 0.9, 1.1),
        point("prune", 8.0, 1.6),
        point("prune", 90.0, 4.0),
        point("tucker", 2.0, 1.4),
        point("both", 4.5, 2.1),
        point("both", 5.1, 2.8),
    )
    points = tuple(replace(p, accuracy=None, agreement=None, relative_error=(p.drop or 0.0) / 100) for p in given)
    gains = gains_of(points, YARDSTICKS["relative_error"].losses)
    return replace(report_of(*points), labels=False, original_accuracy=None, judged_by="relative_error", gains=gains)


def example() -> SweepReport:
    failed = SweepPoint("both-broken", "both", {"prune": 0.9}, reason=f"no result because of {EVIL}", exit_code=3)
    return report_of(
        point("prune", 0.4, 1.1),
        point("prune", 3.0, 1.6),
        point("prune", 70.0, 4.0),
        point("tucker", 0.0, 1.4),
        point("tucker", 1.5, 2.0),
        point("both", 0.9, 2.1, name=f"both {EVIL}"),
        point("both", 1.9, 2.8),
        failed,
    )
