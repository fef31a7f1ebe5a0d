"""A sweep's tables: rows that the terminal, the page and the CSV file share."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Sequence

from onnxcompress.recipe.sweep_options import METHODS, SweepOptions
from onnxcompress.report.command import option_words
from onnxcompress.report.sweep_figures import Gain, SweepPoint, SweepReport
from onnxcompress.report.sweep_plots import METHOD_TITLES
from onnxcompress.report.text import count, milliseconds, percent, printable, size

MEASURE_TITLES = {"bytes": "file size", "params": "parameters", "macs": "MACs", "latency": "latency"}

_FIGURES = (
    "accuracy",
    "drop",
    "agreement",
    "kl",
    "relative_error",
    "bytes",
    "params",
    "macs",
    "original_latency_ms",
    "latency_ms",
)


def sweep_csv(report: SweepReport) -> str:
    """Return one line for each point; compression is original / compressed, empty what was not measured."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    ratios = [f"compression_{measure}" for measure in ("bytes", "params", "macs", "latency")]
    options = ("prune", "tucker", "target")
    ends = ("drop_low", "drop_high", "speedup_low", "speedup_high")
    writer.writerow(["name", "method", *options, "status", *_FIGURES, *ends, *ratios, "seconds", "model", "reason"])
    for point in report.points:
        figures = [getattr(point, name) for name in _FIGURES]
        bounds = [*(point.drop_interval or (None, None)), *(point.speedup_interval or (None, None))]
        found = [point.compression.get(name.removeprefix("compression_")) for name in ratios]
        asked = [_option(point, name) for name in options]
        status = "done" if point.done else "failed"
        writer.writerow(
            [
                printable(point.name),
                point.method,
                *asked,
                status,
                *figures,
                *bounds,
                *found,
                point.seconds,
                point.model,
                printable(point.reason or ""),
            ]
        )
    return stream.getvalue()


def _option(point: SweepPoint, name: str) -> str:
    value = point.options.get(name, "")
    return " ".join(f"{kind}={share:g}" for kind, share in value.items()) if isinstance(value, dict) else str(value)


def judged_columns(report: SweepReport) -> list[str]:
    """Return the titles of the columns that points are judged by."""
    return [report.yardstick.column, *(["lost"] if report.original_accuracy is not None else [])]


def point_row(point: SweepPoint, report: SweepReport) -> list[str]:
    """Return a point's cells: name, what it is judged by, size, parameters, MACs, latency with their ratios.

    It is judged by two cells, accuracy and what is lost of it, or by its error alone: `judged_columns`.
    """
    before = report.input
    lost = "-" if point.drop is None else f"{point.drop:+.1f}"
    cells = [
        point.name,
        *((percent(point.accuracy), lost) if report.original_accuracy is not None else (percent(point.drop),)),
    ]
    written = {
        "bytes": size(point.bytes, before.bytes),
        "params": count(point.params, before.params),
        "macs": count(point.macs, before.macs),
        "latency": milliseconds(point.latency_ms),
    }
    for measure in report.measures:
        ratio = point.compression.get(measure)
        cells.append("-" if ratio is None else f"{written[measure]} ({ratio:.2f} x)")
    return cells


def gain_row(gain: Gain) -> list[str]:
    """Return a row of the table of gains: measure, loss, the best of each method, the gains of both."""
    cells = [MEASURE_TITLES[gain.measure], f"{gain.loss:g}"]
    for method in METHODS:
        best = gain.best.get(method)
        cells.append("-" if best is None else f"{best[0]:.2f} x")
    return [*cells, gain_text(gain.gain), gain_text(gain.gain_at_distance)]


def gain_text(gain: float | None) -> str:
    """Return a gain of both over the better one alone: `+57 %`."""
    return "-" if gain is None else f"{100.0 * gain:+.0f} %"


def gain_sentence(report: SweepReport) -> str:
    """Return what the sweep shows at the loss that is told first, in one sentence."""
    told = report.yardstick.loss()
    own = next((g for g in report.gains if g.loss == report.yardstick.told and g.measure == "params"), None)
    if own is None:
        return "No point has a result."
    alone = {method: best for method, best in own.best.items() if method != "both"}
    if "both" in own.best:
        both = f"At {told} or less both together reach {own.best['both'][0]:.2f} x fewer parameters"
        against = (
            "neither alone keeps within that" if own.gain is None else f"{gain_text(own.gain)} against the better alone"
        )
        return f"{both}; {against}."
    if not alone:
        return f"No point keeps within {told}."
    method, best = max(alone.items(), key=lambda item: item[1][0])
    reached = f"{METHOD_TITLES[method]} reaches {best[0]:.2f} x fewer parameters"
    return f"At {told} or less {reached}; no point that does both keeps within that."


def sweep_command(report: SweepReport) -> str:
    """Return the command that repeats (or goes on with) the sweep, quoted for a POSIX shell."""
    words: Sequence[str] = [
        "onnxcompress",
        "sweep",
        report.input.path or "IN",
        "--out",
        report.folder,
        *option_words(report.sweep, SweepOptions()),
        *option_words(report.recipe),
    ]
    return " ".join(map(shlex.quote, words))
