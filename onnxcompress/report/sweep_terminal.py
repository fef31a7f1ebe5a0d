"""A sweep as tables for people."""

from __future__ import annotations

from rich.console import Console

from onnxcompress.report.sweep_figures import SweepReport
from onnxcompress.report.sweep_plots import METHOD_TITLES
from onnxcompress.report.sweep_text import MEASURE_TITLES, gain_row, gain_sentence, judged_columns, point_row
from onnxcompress.report.terminal import cell, new_table
from onnxcompress.report.text import count, counted, percent, size


def print_sweep(report: SweepReport, console: Console) -> None:
    """Show every point and the gains."""
    before = report.input
    table = new_table(
        f"{counted(len(report.points), 'point')} on {counted(report.samples, 'sample')}",
        ("point", "left"),
        *((title, "right") for title in judged_columns(report)),
        *((MEASURE_TITLES[measure], "right") for measure in report.measures),
    )
    original = {"bytes": size(before.bytes), "params": count(before.params), "macs": count(before.macs)}
    own = [] if report.original_accuracy is None else [percent(report.original_accuracy)]
    table.add_row("(original)", *own, "", *(original.get(m, "") for m in report.measures))
    for point in report.points:
        if point.done:
            name, *figures = point_row(point, report)
            table.add_row(cell(name), *figures)
    console.print(table, "")
    if report.failed:
        console.print(cell("Points without a result", "bold"))
        for point in report.failed:
            console.print(cell(f"  {point.name}: {point.reason}"))
        console.print("")
    gains = new_table(
        "Best compression within a loss (measured points), and both against the better one alone",
        ("of", "left"),
        (report.yardstick.unit[1], "right"),
        *((title, "right") for title in METHOD_TITLES.values()),
        ("gain", "right"),
        (f"at the same {report.yardstick.distance}", "right"),
    )
    for gain in report.gains:
        gains.add_row(*gain_row(gain))
    console.print(gains, "", cell(gain_sentence(report)), sep="\n")
