"""The report as GitHub-flavoured Markdown, for the summary page of a CI job."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from onnxcompress.report.decisions import is_loose, loose_check_line
from onnxcompress.report.dry_run import dry_run_line, is_dry_run
from onnxcompress.report.figures import GateResult, Report, StageFigures
from onnxcompress.report.gate_text import gate_about, gate_advice, gate_limit, gate_value, gate_verdict
from onnxcompress.report.junit import why_no_self_check
from onnxcompress.report.profile_rows import NOTE, OP_HEADER, op_rows, providers_line
from onnxcompress.report.rows import before_and_after, before_and_after_title, stage_measures, step_rows
from onnxcompress.report.text import count, printable, size

_MOST_REASONS = 20
_MOST_NODES = 5
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_./:@()\[\]=%,+-]+( [A-Za-z0-9_./:@()\[\]=%,+-]+)*")
"""A name that stands between backticks as it is, in a table too."""
_MARKUP = re.compile(r"[&<>|`*_\[\]\\~@#!${}^]|:(?=\S)")
"""What GitHub could take for markup, a mention, a reference, an address or an emoji."""


def markdown_summary(report: Report) -> str:
    """Return the summary: verdict, before and after, gates, passes, and what was left alone and why."""
    blocks = [f"## onnxcompress: {_verdict(report)}", _models(report)]
    blocks += [_text(dry_run_line(report))] if is_dry_run(report) else []
    blocks += map(_warning, report.warnings)
    header = ("", "original", "compressed", "change")
    rows = [(_text(name), *map(_text, figures)) for name, *figures in before_and_after(report)]
    blocks += [f"### {_text(before_and_after_title(report))}", _table(header, "lrrl", rows)]
    if report.profile is not None:
        rows = [(name_in_markdown(row[0]), *map(_text, row[1:])) for row in op_rows(report.profile)]
        blocks += ["### Time by operator", _table(OP_HEADER, "lrrrrr", rows)]
        blocks += [_text(NOTE), _text(providers_line(report.profile))]
    if report.gates:
        gates = [_gate_row(gate, report) for gate in report.gates]
        blocks += ["### Gates", _table(("gate", "limit", "value", "", "what to do"), "lrrll", gates)]
    if report.stages:
        blocks += ["### Passes", _stages(report), _self_checks(report)]
    if any(stage.skipped for stage in report.stages):
        blocks += ["### Left alone, and why", _skipped(report.stages)]
    return "\n\n".join(blocks) + "\n"


def name_in_markdown(name: str) -> str:
    """Return a name of any characters as code that GitHub shows as it stands, in a table too."""
    shown = printable(name)
    if _PLAIN_NAME.fullmatch(shown):
        return f"`{shown}`"
    # Entities are text to Markdown, whatever they stand for; inside <code> GitHub looks for no mentions either.
    return f"<code>{re.sub(r'[^A-Za-z0-9 ]', _entity, shown)}</code>"


def _text(text: str) -> str:
    """Return prose that may hold names: no character of it is markup."""
    return _MARKUP.sub(_entity, printable(text)).replace("www.", "www&#46;")


def _entity(match: re.Match[str]) -> str:
    return f"&#{ord(match[0])};" if match[0].isascii() else match[0]


def _verdict(report: Report) -> str:
    failed = [gate for gate in report.gates if not gate.passed]
    if failed:
        return f"{len(failed)} of {len(report.gates)} gates failed :x:"
    if is_dry_run(report):
        return "dry run"
    return f"{len(report.gates)} of {len(report.gates)} gates passed :white_check_mark:" if report.gates else "no gates"


def _models(report: Report) -> str:
    compressed = report.output.path if report.output else None
    first = name_in_markdown(report.input.path or "a model in memory")
    if compressed is None:
        return f"{first}: no compressed model was written"
    return f"{first} to {name_in_markdown(compressed)}"


def _warning(line: str) -> str:
    return f"> [!WARNING]\n> {_text(line)}"


def _gate_row(gate: GateResult, report: Report) -> tuple[str, ...]:
    verdict = gate_verdict(gate) if gate.passed else f"**{_text(gate_verdict(gate))}**"
    advice = _text(gate_advice(gate, report))
    return (
        f"{name_in_markdown(gate.name)} {_text(gate_about(gate))}",
        gate_limit(gate),
        gate_value(gate),
        verdict,
        advice,
    )


def _stages(report: Report) -> str:
    params, macs = report.input.params, report.input.macs
    measured = stage_measures(report)
    originals = [figures[0] for _, figures in measured]
    rows = [("(original)", "", "", count(params), count(macs), size(report.input.bytes), "", *originals)]
    for number, stage in enumerate(report.stages, start=1):
        costs = (count(stage.params, params), count(stage.macs, macs), size(stage.bytes, report.input.bytes))
        figures = (*costs, f"{stage.seconds:.2f}", *(own[number] for _, own in measured))
        rows.append((name_in_markdown(stage.pass_name), str(len(stage.decisions)), str(len(stage.skipped)), *figures))
        for what, changes, left, seconds in step_rows(stage):
            rows.append((_text(what), changes, left, "", "", "", seconds, *("" for _ in measured)))
    titles = ("pass", "changes", "left alone", "parameters", "MACs", "file size", "seconds")
    shown = (*titles, *(_text(title) for title, _ in measured))
    return _table(shown, "l" + "r" * (len(shown) - 1), rows)


def _self_checks(report: Report) -> str:
    if not report.self_checks:
        return f"Self-check: none, {_text(why_no_self_check(report))}."
    sentences = []
    exact = [check for check in report.self_checks if not is_loose(check)]
    if exact:
        worst = max(exact, key=lambda check: check.difference)
        passes = ", ".join(name_in_markdown(check.pass_name) for check in exact)
        sentences.append(
            f"Self-check of {passes}: passed. What was written differs from what it should compute by at most "
            f"{worst.difference:.2g} of the range ({worst.tolerance:.2g} is allowed)."
        )
    sentences += [_text(loose_check_line(check)) for check in report.self_checks if is_loose(check)]
    return " ".join(sentences)


def _skipped(stages: Iterable[StageFigures]) -> str:
    rows = []
    for stage in stages:
        by_reason: dict[str, list[str]] = {}
        for skipped in stage.skipped:
            by_reason.setdefault(skipped.reason, []).append(skipped.node)
        for reason, nodes in sorted(by_reason.items(), key=lambda item: -len(item[1])):
            more = f" and {len(nodes) - _MOST_NODES} more" if len(nodes) > _MOST_NODES else ""
            named = ", ".join(map(name_in_markdown, nodes[:_MOST_NODES])) + more
            rows.append((name_in_markdown(stage.pass_name), str(len(nodes)), _text(reason), named))
    hidden = len(rows) - _MOST_REASONS
    table = _table(("pass", "nodes", "reason", "which"), "lrll", rows[:_MOST_REASONS])
    return table if hidden <= 0 else f"{table}\n\n{hidden} more reasons stand in the other reports."


def _table(header: Sequence[str], alignment: str, rows: Iterable[Sequence[str]]) -> str:
    lines = [header, [":--" if side == "l" else "--:" for side in alignment], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
