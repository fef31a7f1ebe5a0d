"""The report as tables for people. Colours and width follow the terminal; NO_COLOR and pipes get plain text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import IO, TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from onnxcompress.evaluation.profile import ProfileComparison
from onnxcompress.report.decisions import decision_line, is_loose, loose_check_line, outcome_line
from onnxcompress.report.figures import GateResult, Report, StageFigures
from onnxcompress.report.gate_text import gate_value, gate_verdict
from onnxcompress.report.profile_rows import NODE_HEADER, NOTE, OP_HEADER, node_rows, op_rows, providers_line
from onnxcompress.report.rows import before_and_after, before_and_after_title, stage_measures, step_rows
from onnxcompress.report.search_figures import (
    JUDGED,
    Found,
    chosen_text,
    judged_texts,
    search_title,
    trial_row,
    trial_titles,
)
from onnxcompress.report.text import count, printable, size

if TYPE_CHECKING:
    from rich.console import JustifyMethod

_PLAIN_WIDTH = 120
_MOST_REASONS = 6
_MOST_NODES = 3


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
    if report.search is not None:
        _print_search(report.search, console)
    for stage in report.stages:
        if stage.outcome is not None and "score" in stage.outcome:
            console.print(cell(outcome_line(stage.pass_name, stage.outcome)), "")
    for check in report.self_checks:
        if is_loose(check):
            console.print(cell(loose_check_line(check)), "")
    if verbose or decisions:
        _print_decisions(report.stages, console)
    _print_skipped(report.stages, console, verbose=verbose)
    console.print(_before_and_after(report))
    if report.profile is not None:
        print_profile(report.profile, console)
    if report.gates:
        console.print("", _gates_table(report.gates), sep="\n")


def print_profile(profile: ProfileComparison, console: Console) -> None:
    """Show where the time goes: by operator, and the most expensive nodes."""
    for title, header, rows, left in (
        ("Time by operator", OP_HEADER, op_rows(profile), (0,)),
        ("Nodes that take most time", NODE_HEADER, node_rows(profile), (0, 1, 4)),
    ):
        table = new_table(title, *((name, "left" if at in left else "right") for at, name in enumerate(header)))
        for row in rows:
            table.add_row(*map(cell, row))
        console.print("", table, sep="\n")
    console.print(cell(NOTE), cell(providers_line(profile)), sep="\n")


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
    measured = stage_measures(report)
    table = new_table(
        "Passes",
        ("pass", "left"),
        ("changes", "right"),
        ("left alone", "right"),
        ("parameters", "right"),
        ("MACs", "right"),
        ("file size", "right"),
        ("seconds", "right"),
        *((title, "right") for title, _ in measured),
    )
    params, macs = report.input.params, report.input.macs
    costs = (count(params), count(macs), size(report.input.bytes))
    table.add_row("(original)", "", "", *costs, "", *(figures[0] for _, figures in measured))
    for number, stage in enumerate(report.stages, start=1):
        table.add_row(
            cell(stage.pass_name),
            str(len(stage.decisions)),
            str(len(stage.skipped)),
            count(stage.params, params),
            count(stage.macs, macs),
            size(stage.bytes, report.input.bytes),
            f"{stage.seconds:.2f}",
            *(figures[number] for _, figures in measured),
        )
        for what, changes, left, seconds in step_rows(stage):
            table.add_row(cell(f"  {what}"), changes, left, "", "", "", seconds)
    return table


def _print_search(found: Found, console: Console) -> None:
    if found.trials:
        table = new_table(search_title(found), *((title, "right") for title in trial_titles(found)))
        for trial in found.trials:
            table.add_row(*trial_row(trial, found))
        console.print(table)
    console.print(cell(f"Chosen: {chosen_text(found.chosen)}"))
    for line in (JUDGED, *(f"  {each}" for each in judged)) if (judged := judged_texts(found)) else ():
        console.print(cell(line))
    console.print()


def _before_and_after(report: Report) -> Table:
    table = new_table(
        before_and_after_title(report), ("", "left"), ("original", "right"), ("compressed", "right"), ("", "left")
    )
    for name, before, after, change in before_and_after(report):
        table.add_row(cell(name), before, after, change)
    return table


def _gates_table(gates: Iterable[GateResult]) -> Table:
    table = new_table("Gates", ("gate", "left"), ("limit", "right"), ("value", "right"), ("", "left"))
    for gate in gates:
        verdict = Text(gate_verdict(gate), "green" if gate.passed else "bold red")
        table.add_row(cell(gate.name), f"{gate.limit:g}", gate_value(gate), verdict)
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
