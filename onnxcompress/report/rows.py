"""Before and after as rows of text: one source for the terminal, the Markdown summary and the HTML report."""

from __future__ import annotations

from collections.abc import Iterable

from onnxcompress.evaluation.accuracy import Accuracy
from onnxcompress.evaluation.class_errors import OneClass
from onnxcompress.evaluation.latency import Credit, Latency
from onnxcompress.report.advice import WORTH_SAYING_WAITS
from onnxcompress.report.dry_run import is_dry_run
from onnxcompress.report.figures import ModelFigures, Report, StageFigures
from onnxcompress.report.text import count, milliseconds, percent, points, size, times

Row = tuple[str, str, str, str]
"""What it is, the original's figure, the compressed model's, and the change in words."""


def before_and_after(report: Report) -> list[Row]:
    """Return the rows of the table that every report begins with."""
    return [*_accuracy_rows(report), *_size_rows(report), *_latency_rows(report.latency)]


def before_and_after_title(report: Report) -> str:
    """Return the table's title, with what one sample weighs: few samples tell little."""
    if report.accuracy is None:
        return "Before and after"
    samples = report.accuracy.samples
    if report.accuracy.output is None and report.accuracy.agreement is None:
        return f"Before and after (outputs compared on {samples} samples)"
    return f"Before and after (accuracy on {samples} samples: one is {100 / samples:.2g} points)"


def _accuracy_rows(report: Report) -> list[Row]:
    accuracy = report.accuracy
    if accuracy is None:
        why = "give --data PATH"
        if is_dry_run(report) or report.output is None:
            why = "dry run" if is_dry_run(report) else "no model was made"
        return [("Accuracy", "not measured", "not measured", why)]
    rows: list[Row] = []
    if accuracy.labels:
        for name, before, after, interval in [
            ("Top-1", accuracy.original.top1, accuracy.compressed.top1, _interval_of_change(accuracy)),
            ("Top-5", accuracy.original.top5, accuracy.compressed.top5, ""),
        ]:
            change = None if before is None or after is None else after - before
            rows.append((name, percent(before), percent(after), points(change) + interval))
    if accuracy.agreement is not None:
        rows.append(("Agreement with the original", "", percent(accuracy.agreement), ""))
    if accuracy.relative_error is not None and _shows_error(report, accuracy):
        output, part = accuracy.relative_error_output, accuracy.relative_error_part
        which = "the outputs" if output is None else f"'{output}'"
        alone = f", {part}, 1 - IoU" if isinstance(part, OneClass) else f", small numbers ({part})"
        rows.append((f"Relative error of {which}{'' if part is None else alone}", "", _error(accuracy), ""))
    if accuracy.not_finite:
        rows.append(("Samples with NaN or infinity", "", str(accuracy.not_finite), ""))
    if accuracy.kl is not None:
        rows.append(("Mean KL divergence", "", f"{accuracy.kl:.3g}", ""))
    return rows


def _shows_error(report: Report, accuracy: Accuracy) -> bool:
    """Whether the outputs' error is worth a row: where classes do not tell all, or a gate judges it."""
    told_by_classes = accuracy.output is not None and accuracy.relative_error_output == accuracy.output
    return not told_by_classes or any(gate.name == "max_error" for gate in report.gates)


def _error(accuracy: Accuracy) -> str:
    """Return the relative error with its 95 % interval."""
    value, interval = percent(100.0 * (accuracy.relative_error or 0.0)), accuracy.relative_error_interval
    return value if interval is None else f"{value} (95 %: {100 * interval[0]:.1f} to {100 * interval[1]:.1f})"


def _interval_of_change(accuracy: Accuracy) -> str:
    """Return the 95 % interval of the change of top-1: the drop's, turned round."""
    interval = accuracy.drop_top1_interval
    return "" if interval is None else f" (95 %: {-interval[1]:+.1f} to {-interval[0]:+.1f})"


def _size_rows(report: Report) -> list[Row]:
    before, after = report.input, report.output
    ratios = report.compression
    if after is None or ratios is None:
        return [("File size", size(before.bytes), "-", ""), *_cost_rows(before, None)]
    file_row = (
        "File size",
        size(before.bytes),
        size(after.bytes, before.bytes),
        times(ratios.bytes, "smaller", "larger"),
    )
    changes = (times(ratios.params, "fewer", "more"), times(ratios.macs, "fewer", "more"))
    return [file_row, *_cost_rows(before, after, changes)]


def _cost_rows(before: ModelFigures, after: ModelFigures | None, changes: tuple[str, str] = ("", "")) -> list[Row]:
    params, macs = (after.params, after.macs) if after else (None, None)
    return [
        ("Parameters", count(before.params), count(params, before.params), changes[0]),
        ("MACs per sample", count(before.macs), count(macs, before.macs), changes[1]),
        *_lrn_rows(before, after),
    ]


def _lrn_rows(before: ModelFigures, after: ModelFigures | None) -> list[Row]:
    own = [each.lrn_macs if each else 0 for each in (before, after)]
    if own == [0, 0]:
        return []
    shown = ["-" if macs == 0 else count(macs) for macs in own]
    return [("MACs of LRN written as Conv, not in these", shown[0], shown[1], "")]


def _latency_rows(latency: Iterable[Latency]) -> list[Row]:
    rows: list[Row] = []
    for figures in latency:
        threads = f"{figures.threads} thread{'s' * (figures.threads != 1)}"
        where = f"{figures.requested}, batch {figures.batch}, {threads}"
        before, after = figures.original_ms, figures.compressed_ms
        change = _faster(figures.speedup, figures.interval)
        rows.append((f"Latency p50 ({where})", milliseconds(before.p50), milliseconds(after.p50), change))
        if figures.credit is not None:
            middle = milliseconds(figures.credit.cleaned_ms.p50)
            rows.append(("  by clean-up alone", milliseconds(before.p50), middle, _by_cleanup(figures.credit)))
            rows.append(("  by compression", middle, milliseconds(after.p50), _by_compression(figures.credit)))
        rows.append(("Latency p95", milliseconds(before.p95), milliseconds(after.p95), ""))
        waited = (figures.original_interrupted, figures.compressed_interrupted)
        if max(waited) >= WORTH_SAYING_WAITS:
            left_out = ", left out" if figures.interrupted_left_out else ""
            shares = [percent(100 * share) for share in waited]
            rows.append((f"Runs that waited for a CPU{left_out}", shares[0], shares[1], ""))
        if figures.compressed_elsewhere or figures.original_elsewhere:
            counts = [str(len(nodes)) for nodes in (figures.original_elsewhere, figures.compressed_elsewhere)]
            rows.append((f"Nodes not run by {figures.provider}", counts[0], counts[1], ""))
    return rows


def _by_cleanup(credit: Credit) -> str:
    return _faster(credit.cleanup_speedup, credit.cleanup_interval)


def _by_compression(credit: Credit) -> str:
    return _faster(credit.compression_speedup, credit.compression_interval)


def _faster(speedup: float, interval: tuple[float, float] | None) -> str:
    change = times(speedup, "faster", "slower")
    if interval is not None and change.endswith("slower"):
        interval = 1.0 / interval[1], 1.0 / interval[0]
    return change if interval is None else f"{change} (95 %: {interval[0]:.2f} to {interval[1]:.2f})"


def stage_measures(report: Report) -> list[tuple[str, list[str]]]:
    """Return columns of what was measured after each stage: a title, the original's figure, and one of each stage.

    There are none where the recipe measured no stages.
    """
    columns: list[tuple[str, list[str]]] = []
    final = report.accuracy
    accuracies = [stage.accuracy for stage in report.stages]
    if final is not None and any(accuracies):
        title, original = ("top-1", final.original.top1) if final.labels else ("agreement", 100.0)
        if final.output is None:
            title, original = "error", 0.0
        columns.append((title, [percent(original), *("" if a is None else percent(_of_stage(a)) for a in accuracies)]))
    for number, timed in enumerate(report.latency):
        entries = [stage.latency[number] if stage.latency else None for stage in report.stages]
        if any(entries):
            shown = ["" if e is None else f"{milliseconds(e.compressed_ms.p50)} ({e.speedup:.2f} x)" for e in entries]
            columns.append((f"p50 on {timed.requested}", [milliseconds(timed.original_ms.p50), *shown]))
    return columns


def _of_stage(accuracy: Accuracy) -> float | None:
    if accuracy.output is None:
        return None if accuracy.relative_error is None else 100.0 * accuracy.relative_error
    return accuracy.compressed.top1 if accuracy.labels else accuracy.agreement


def step_rows(stage: StageFigures) -> list[Row]:
    """Return a row for each step of a stage that had something to look at: name, changes, left alone, seconds."""
    rows = []
    for step in stage.steps:
        if step.changes or step.skipped:
            why = f" ({step.why})" if step.why else ""
            what = f"{step.step}: {step.what}{why}"
            rows.append((what, str(step.changes), str(step.skipped), f"{step.seconds:.2f}"))
    return rows
