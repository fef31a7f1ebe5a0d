"""The report as tables for people. Colours and width follow the terminal; NO_COLOR and pipes get plain text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import IO, TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from onnxcompress.evaluation.accuracy import Accuracy
from onnxcompress.evaluation.latency import Latency
from onnxcompress.report.decisions import decision_line
from onnxcompress.report.figures import GateResult, ModelFigures, Report, StageFigures
from onnxcompress.report.text import count, milliseconds, percent, points, printable, size, times

if TYPE_CHECKING:
    from rich.console import JustifyMethod

_PLAIN_WIDTH = 120
_MOST_REASONS = 6
_MOST_NODES = 3

Row = tuple[str, str, str, str]


def console_for(stream: IO[str]) -> Console:
    """Return a console that shows text as it stands: no markup, no emoji codes, no highlighting of numbers."""
    # A pipe has no width: rich would assume 80 columns and break lines that scripts read.
    width = None if stream.isatty() else _PLAIN_WIDTH
    return _Console(file=stream, width=width, markup=False, emoji=False, highlight=False)


class _Console(Console):
    """rich ends the process where the reader of a pipe leaves; here the caller decides."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def print_report(report: Report, console: Console, *, verbose: bool = False, decisions: bool = False) -> None:
    """Show what was done, what it cost and what it gained.

    Args:
        verbose: name every node that was left alone, and every decision.
        decisions: name every decision.
    """
    if report.stages:
        console.print(_stages_table(report), "")
    if verbose or decisions:
        _print_decisions(report.stages, console)
    _print_skipped(report.stages, console, verbose=verbose)
    console.print(_before_and_after(report))
    if report.gates:
        console.print("", _gates_table(report.gates), sep="\n")


def new_table(title: str, *columns: tuple[str, JustifyMethod]) -> Table:
    """Return a table without lines between its cells, so that it reads well in logs."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for header, justify in columns:
        table.add_column(header, justify=justify, overflow="fold")
    return table


def cell(text: str, style: str = "") -> Text:
    """Return text that may hold anything as it is shown."""
    return Text(printable(text), style=style)


def _stages_table(report: Report) -> Table:
    table = new_table(
        "Passes",
        ("pass", "left"),
        ("changes", "right"),
        ("left alone", "right"),
        ("parameters", "right"),
        ("MACs", "right"),
        ("seconds", "right"),
    )
    params, macs = report.input.params, report.input.macs
    table.add_row("(original)", "", "", count(params), count(macs), "")
    for stage in report.stages:
        table.add_row(
            cell(stage.pass_name),
            str(len(stage.decisions)),
            str(len(stage.skipped)),
            count(stage.params, params),
            count(stage.macs, macs),
            f"{stage.seconds:.2f}",
        )
    return table


def _before_and_after(report: Report) -> Table:
    title = "Before and after"
    if report.accuracy is not None:
        samples = report.accuracy.samples
        title += f" (accuracy on {samples} samples: one is {100 / samples:.2g} points)"
    table = new_table(title, ("", "left"), ("original", "right"), ("compressed", "right"), ("", "left"))
    for name, before, after, change in [*_accuracy_rows(report), *_size_rows(report), *_latency_rows(report.latency)]:
        table.add_row(cell(name), before, after, change)
    return table


def _accuracy_rows(report: Report) -> list[Row]:
    accuracy = report.accuracy
    if accuracy is None:
        return [("Accuracy", "not measured", "not measured", "give --data PATH")]
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
    if accuracy.relative_error is not None:
        rows.append(("Relative error of the outputs", "", percent(100 * accuracy.relative_error), ""))
    if accuracy.not_finite:
        rows.append(("Samples with NaN or infinity", "", str(accuracy.not_finite), ""))
    if accuracy.kl is not None:
        rows.append(("Mean KL divergence", "", f"{accuracy.kl:.3g}", ""))
    return rows


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
    ]


def _latency_rows(latency: Iterable[Latency]) -> list[Row]:
    rows: list[Row] = []
    for figures in latency:
        threads = f"{figures.threads} thread{'s' * (figures.threads != 1)}"
        where = f"{figures.requested}, batch {figures.batch}, {threads}"
        before, after = figures.original_ms, figures.compressed_ms
        change = times(figures.speedup, "faster", "slower")
        if figures.interval is not None:
            change += f" (95 %: {figures.interval[0]:.2f} to {figures.interval[1]:.2f})"
        rows.append((f"Latency p50 ({where})", milliseconds(before.p50), milliseconds(after.p50), change))
        rows.append(("Latency p95", milliseconds(before.p95), milliseconds(after.p95), ""))
        if figures.compressed_elsewhere or figures.original_elsewhere:
            counts = [str(len(nodes)) for nodes in (figures.original_elsewhere, figures.compressed_elsewhere)]
            rows.append((f"Nodes not run by {figures.provider}", counts[0], counts[1], ""))
    return rows


def _gates_table(gates: Iterable[GateResult]) -> Table:
    table = new_table("Gates", ("gate", "left"), ("limit", "right"), ("value", "right"), ("", "left"))
    for gate in gates:
        value = "not measured" if gate.value is None else f"{gate.value:.2f}"
        verdict = Text("passed", "green") if gate.passed else Text("FAILED", "bold red")
        table.add_row(cell(gate.name), f"{gate.limit:g}", value, verdict)
    return table


def _print_decisions(stages: Iterable[StageFigures], console: Console) -> None:
    for stage in stages:
        if stage.decisions:
            console.print(cell(f"Decisions of {stage.pass_name}", "bold"))
        for decision in stage.decisions:
            console.print(cell("  " + decision_line(decision)))


def _print_skipped(stages: Iterable[StageFigures], console: Console, *, verbose: bool) -> None:
    for stage in stages:
        if not stage.skipped:
            continue
        by_reason: dict[str, list[str]] = {}
        for skipped in stage.skipped:
            by_reason.setdefault(skipped.reason, []).append(skipped.node)
        console.print(cell(f"Left alone by {stage.pass_name}", "bold"))
        reasons = sorted(by_reason.items(), key=lambda item: -len(item[1]))
        shown = reasons if verbose else reasons[:_MOST_REASONS]
        for reason, nodes in shown:
            named = nodes if verbose else nodes[:_MOST_NODES]
            more = f" and {len(nodes) - len(named)} more" if len(nodes) > len(named) else ""
            console.print(cell(f"  {reason}: {', '.join(named)}{more}"))
        if len(reasons) > len(shown):
            hidden = sum(len(nodes) for _, nodes in reasons[_MOST_REASONS:])
            console.print(cell(f"  {hidden} more nodes for {len(reasons) - len(shown)} other reasons (-v shows all)"))
