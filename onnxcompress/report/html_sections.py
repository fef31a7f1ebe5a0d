"""The sections of the HTML report that are text and tables."""

from __future__ import annotations

from collections.abc import Sequence

from onnxcompress.evaluation.accuracy import Accuracy
from onnxcompress.evaluation.class_errors import OneClass
from onnxcompress.report.command import command_of, recipe_of
from onnxcompress.report.decisions import decision_line
from onnxcompress.report.dry_run import is_dry_run
from onnxcompress.report.figures import ModelFigures, Report
from onnxcompress.report.gate_text import gate_about, gate_advice, gate_limit, gate_value, gate_verdict
from onnxcompress.report.html_elements import Cell, Column, Markup, element, join, table, text_with_options, void
from onnxcompress.report.html_plots import Axis, bar, interval_plot
from onnxcompress.report.junit import why_no_self_check
from onnxcompress.report.rows import before_and_after, before_and_after_title, stage_measures, step_rows
from onnxcompress.report.text import count, milliseconds, percent, points, size, times

NOTHING = Markup("")


def verdict(report: Report) -> Markup:
    """Return the badge: whether the gates passed."""
    failed = sum(not gate.passed for gate in report.gates)
    if not report.gates:
        return element("span", "dry run" if is_dry_run(report) else "no gates", class_="verdict none")
    if failed:
        return element("span", f"{failed} of {len(report.gates)} gates failed", class_="verdict bad")
    return element("span", f"all {len(report.gates)} gates passed", class_="verdict good")


def _error_title(accuracy: Accuracy) -> str:
    """Say of what kind the outputs' error is; the table names the output and the class."""
    is_of_class = isinstance(accuracy.relative_error_part, OneClass)
    return "1 - IoU of a class of the outputs" if is_of_class else "Relative error of the outputs"


def tiles(report: Report) -> Markup:
    """Return the figures that matter most, each with its pair of bars."""
    before, after, ratios = report.input, report.output, report.compression
    found: list[Markup] = []
    accuracy = report.accuracy
    if accuracy is not None and accuracy.labels:
        top1 = (accuracy.original.top1, accuracy.compressed.top1)
        change = None if accuracy.drop_top1 is None else -accuracy.drop_top1
        found.append(_tile("Top-1 accuracy", points(change), top1, (percent(top1[0]), percent(top1[1]))))
    elif accuracy is not None and accuracy.agreement is not None:
        found.append(_tile("Agreement with the original", percent(accuracy.agreement), None, None))
    elif accuracy is not None and accuracy.relative_error is not None:
        found.append(_tile(_error_title(accuracy), percent(100.0 * accuracy.relative_error), None, None))
    if after is not None and ratios is not None:
        found.append(
            _tile(
                "File size",
                times(ratios.bytes, "smaller", "larger"),
                (before.bytes, after.bytes),
                (size(before.bytes), size(after.bytes, before.bytes)),
            )
        )
        for title, ratio, costs in (
            ("Parameters", ratios.params, (before.params, after.params)),
            ("MACs per sample", ratios.macs, (before.macs, after.macs)),
        ):
            written = count(costs[0]), count(costs[1], costs[0])
            found.append(_tile(title, times(ratio, "fewer", "more"), costs, written))
    for latency in report.latency[:2]:
        medians = latency.original_ms.p50, latency.compressed_ms.p50
        faster = times(latency.speedup, "faster", "slower")
        found.append(_tile(f"Latency, {latency.requested}", faster, medians, tuple(map(milliseconds, medians))))
    return element("div", *found, class_="tiles")


def _tile(
    title: str, change: str, pair: tuple[float | None, float | None] | None, written: tuple[str, ...] | None
) -> Markup:
    bars = NOTHING
    if pair is not None and written is not None and pair[0] is not None and pair[1] is not None:
        largest = max(pair[0], pair[1]) or 1.0
        cells = [
            join([bar(value / largest, kind), element("span", shown)])
            for value, shown, kind in zip(pair, written, ("before", "after"), strict=True)
            if value is not None
        ]
        bars = element("div", *cells, class_="pair")
    shown = element("div", change, class_="change")
    return element("div", element("div", title, class_="what"), shown, bars, class_="tile")


def figures_section(report: Report) -> Markup:
    """Return the table of before and after, with the intervals as plots."""
    columns = [Column(""), Column("original", "number"), Column("compressed", "number"), Column("change")]
    plots = [*_accuracy_plot(report), *_latency_plots(report)]
    return element(
        "section",
        element("h2", before_and_after_title(report)),
        element("div", table(columns, map(_indented, before_and_after(report)), stack=True), class_="scroll"),
        *([element("h3", "How sure that is"), *plots] if plots else []),
        id="figures",
    )


def _indented(row: Sequence[str]) -> list[str]:
    """A row whose name begins with spaces belongs to the one above."""
    name = row[0].lstrip()
    return [name if name == row[0] else element("span", name, class_="step"), *row[1:]]


def _accuracy_plot(report: Report) -> list[Markup]:
    accuracy = report.accuracy
    if accuracy is None:
        return []
    plots = []
    axis = _axis_of(report, "max_drop")
    if accuracy.labels and accuracy.drop_top1 is not None:
        title = f"Fall of top-1 in points, with its 95 % interval ({accuracy.samples} samples; left of 0 is better)"
        plots.append(interval_plot(title, accuracy.drop_top1, accuracy.drop_top1_interval, axis))
    elif accuracy.agreement is not None and accuracy.agreement_interval is not None:
        low, high = accuracy.agreement_interval
        title = f"Samples without agreement in percent, with the 95 % interval ({accuracy.samples} samples)"
        plots.append(interval_plot(title, 100.0 - accuracy.agreement, (100.0 - high, 100.0 - low), axis))
    axis, interval = _axis_of(report, "max_error"), accuracy.relative_error_interval
    if accuracy.relative_error is not None and interval is not None and (axis.limit is not None or not plots):
        title = f"{_error_title(accuracy)} in percent, with its 95 % interval ({accuracy.samples} samples)"
        shown = (100.0 * interval[0], 100.0 * interval[1])
        plots.append(interval_plot(title, 100.0 * accuracy.relative_error, shown, axis))
    return plots


def _axis_of(report: Report, gate: str) -> Axis:
    limit = next((each.limit for each in report.gates if each.name == gate), None)
    return Axis(0.0, limit, "" if limit is None else f"limit of {gate}: {limit:g}", "")


def _latency_plots(report: Report) -> list[Markup]:
    limit = next((gate.limit for gate in report.gates if gate.name == "min_speedup"), None)
    limit_text = "" if limit is None else f"limit of min_speedup: {limit:g}"
    axis = Axis(1.0, limit, limit_text, " x")
    return [
        interval_plot(
            f"Speed-up on {latency.requested}, with its 95 % interval ({latency.runs} runs; right of 1 is faster)",
            latency.speedup,
            latency.interval,
            axis,
        )
        for latency in report.latency
    ]


def gates_section(report: Report) -> Markup:
    """Return the gates; nothing where there are none."""
    if not report.gates:
        return NOTHING
    rows = []
    for gate in report.gates:
        result = element("span", gate_verdict(gate), class_="good" if gate.passed else "bad")
        name = join([element("code", gate.name), element("div", gate_about(gate), class_="soft small")])
        if not gate.passed:
            advice = element("div", text_with_options(gate_advice(gate, report)), class_="small")
            result = join([result, advice])
        rows.append([name, gate_limit(gate), gate_value(gate), result])
    columns = [Column("gate"), Column("limit", "keep"), Column("value", "keep"), Column("")]
    heading = element("h2", "Gates")
    return element("section", heading, element("div", table(columns, rows, stack=True), class_="scroll"), id="gates")


def passes_section(report: Report) -> Markup:
    """Return the passes, their proof and their decisions; nothing for a comparison."""
    if not report.stages:
        return NOTHING
    params, macs = report.input.params, report.input.macs
    differences = {check.pass_name: check.difference for check in report.self_checks}
    measured = stage_measures(report)
    originals = [figures[0] for _, figures in measured]
    rows = [["(original)", "", "", count(params), count(macs), size(report.input.bytes), *originals, "", ""]]
    for number, stage in enumerate(report.stages, start=1):
        difference = differences.get(stage.pass_name)
        rows.append(
            [
                stage.pass_name,
                str(len(stage.decisions)),
                str(len(stage.skipped)),
                count(stage.params, params),
                count(stage.macs, macs),
                size(stage.bytes, report.input.bytes),
                *(figures[number] for _, figures in measured),
                f"{stage.seconds:.2f} s",
                "" if difference is None else f"{difference:.1g}",
            ]
        )
        empty = ["", "", "", *("" for _ in measured)]
        for what, changes, left, spent in step_rows(stage):
            rows.append([element("span", what, class_="step"), changes, left, *empty, f"{spent} s", ""])
    columns = [
        Column("pass"),
        Column("changes", "number"),
        Column("left alone", "number"),
        Column("parameters", "number"),
        Column("MACs", "number"),
        Column("file size", "number"),
        *(Column(title, "number") for title, _ in measured),
        Column("time", "number wide"),
        Column("self-check", "number wide"),
    ]
    note = (
        "Self-check: how far what the pass made is from what it should compute, as part of the range of the values."
        if report.self_checks
        else f"No self-check: {why_no_self_check(report)}."
    )
    decided = [
        element(
            "details",
            element("summary", f"Decisions of {stage.pass_name} ({len(stage.decisions)})"),
            element("ul", *(element("li", decision_line(d)) for d in stage.decisions), class_="small"),
        )
        for stage in report.stages
        if stage.decisions
    ]
    return element(
        "section",
        element("h2", "Passes"),
        element("div", table(columns, rows, stack=True), class_="scroll"),
        element("p", note, class_="soft small"),
        *decided,
        id="passes",
    )


def skipped_section(report: Report) -> Markup:
    """Return what was left alone and why, sortable and searchable; nothing where nothing was."""
    rows: list[list[str | Cell]] = [
        [skipped.node, Cell(stage.pass_name, number), skipped.reason]
        for number, stage in enumerate(report.stages)
        for skipped in stage.skipped
    ]
    if not rows:
        return NOTHING
    columns = [Column("node", "name"), Column("pass"), Column("why")]
    return element(
        "section",
        element("h2", f"Left alone, and why ({len(rows)})"),
        void(
            "input", type="search", placeholder="Filter by name or reason", aria_label="Filter", data_filters="skipped"
        ),
        element("div", table(columns, rows, sortable=True, stack=True, id="skipped"), class_="tall"),
        id="left-alone",
    )


def run_section(report: Report) -> Markup:
    """Return how to repeat the run: command, recipe, files, versions, machine."""
    recipe = recipe_of(report).to_toml() or "# every option at its default\n"
    facts = {
        "original": _file(report.input),
        "compressed": "none" if report.output is None else _file(report.output),
        "seed": "" if report.seed is None else str(report.seed),
        "versions": ", ".join(f"{name} {version}" for name, version in report.versions.items()),
        "machine": ", ".join(f"{name} {value}" for name, value in report.platform.items()),
        "time": "" if report.seconds is None else f"{report.seconds:.1f} s",
        "most memory": "" if report.peak_rss_bytes is None else size(report.peak_rss_bytes),
    }
    described = [join([element("dt", name), element("dd", value)]) for name, value in facts.items() if value]
    return element(
        "section",
        element("h2", "This run"),
        element("h3", "Command"),
        element("pre", text_with_options(command_of(report))),
        element("details", element("summary", "The same as a recipe (TOML)"), element("pre", *_lines(recipe))),
        element("h3", "Files, versions, machine"),
        element("dl", *described),
        id="run",
    )


def _file(figures: ModelFigures) -> str:
    parts = [figures.path or "not written", f"opset {figures.opset}"]
    parts += [] if figures.sha256 is None else [f"sha256 {figures.sha256}"]
    return ", ".join(parts)


def _lines(source: str) -> list[str]:
    """Lines with their ends: escaping spells out what is invisible, and a line's end must stay one."""
    return [part for line in source.splitlines() for part in (line, Markup("\n"))]
