"""The page of a sweep: Pareto plots, what both methods gain over the better one alone, and every point."""

from __future__ import annotations

from onnxcompress.recipe import Recipe
from onnxcompress.report.html import html_page, made_by
from onnxcompress.report.html_elements import Cell, Column, Markup, element, join, table, text, text_with_options, void
from onnxcompress.report.sweep_figures import Gain, SweepPoint, SweepReport
from onnxcompress.report.sweep_plots import METHOD_TITLES, any_below, join_plots
from onnxcompress.report.sweep_text import (
    MEASURE_TITLES,
    gain_row,
    gain_sentence,
    gain_text,
    judged_columns,
    point_row,
    sweep_command,
)
from onnxcompress.report.text import count, counted, duration, milliseconds, percent, size

_NOTHING = Markup("")


def sweep_html(report: SweepReport) -> str:
    """Return the sweep as a page that opens offline."""
    title = f"Sweep of {report.input.path or 'a model'}"
    what = {
        "top1": "accuracy is top-1",
        "agreement": "accuracy is agreement with the original's class",
        "relative_error": "the error is relative to the original's outputs",
    }[report.judged_by]
    if report.judged_by == "relative_error" and report.whole_numbers:
        what = "the error is the share of elements that differ from the original's, of a class 1 - IoU"
    failed = f", {len(report.failed)} without a result" if report.failed else ""
    about = f"{counted(len(report.points), 'point')}{failed}; {what}, on {counted(report.samples, 'sample')}"
    main = element(
        "main",
        element(
            "header",
            element("p", f"onnxcompress {report.command}", class_="soft small"),
            element("h1", title),
            element("p", about, class_="soft"),
            element("p", gain_sentence(report)),
        ),
        _tiles(report),
        _plots(report),
        _gains(report),
        _points(report),
        _failed(report),
        _run(report),
        element("footer", made_by(report.versions)),
    )
    return html_page(title, main)


def _tiles(report: SweepReport) -> Markup:
    """The best of both methods at the loss that is told first, for each measure."""
    tiles = []
    for gain in report.gains:
        if gain.loss != report.yardstick.told:
            continue
        bars = []
        largest = max((best[0] for best in gain.best.values()), default=1.0)
        for method, name in METHOD_TITLES.items():
            best = gain.best.get(method)
            width = 0.0 if best is None else best[0] / largest
            shown = "-" if best is None else f"{best[0]:.2f} x"
            bars.append(element("span", name))
            bars.append(element("span", class_=f"bar {method}", style=f"width:{100 * width:.2f}%"))
            bars.append(element("span", shown))
        heading = element("div", f"{_headline(gain.measure)}, {report.yardstick.loss()} or less", class_="what")
        about = "no comparison" if gain.gain is None else f"both: {gain_text(gain.gain)}"
        tiles.append(
            element(
                "div",
                heading,
                element("div", about, class_="change"),
                element("div", *bars, class_="three"),
                class_="tile",
            )
        )
    return element("div", *tiles, class_="tiles wide-tiles")


def _headline(measure: str) -> str:
    title = MEASURE_TITLES[measure]
    return title[0].upper() + title[1:]


def _plots(report: SweepReport) -> Markup:
    if not report.measures:
        return _NOTHING
    note = (
        "A line joins the points of one method that none of its others beats. Rest the pointer on a mark for its name."
    )
    paced = (
        " Latency is the original's, divided by the speed-up measured beside it."
        if "latency" in report.measures
        else ""
    )
    hollow = " Hollow marks on the axis lie deeper." if any_below(report) else ""
    return element(
        "section",
        element("h2", f"{'Error' if report.original_accuracy is None else 'Accuracy'} against what it costs"),
        join_plots(report),
        element("p", note + paced + hollow, class_="soft small"),
        id="plots",
    )


def _gains(report: SweepReport) -> Markup:
    if not report.gains:
        return _NOTHING
    columns = [Column("of"), Column(f"{report.yardstick.unit[1]} at most", "number")]
    columns += [Column(title, "number") for title in METHOD_TITLES.values()]
    columns += [Column("gain", "number"), Column(f"at the same {report.yardstick.distance}", "number")]
    return element(
        "section",
        element("h2", "Both methods against the better one alone"),
        element("div", table(columns, map(_gain_cells, report.gains), stack=True, class_="gains"), class_="scroll"),
        element(
            "p",
            "Original / compressed of the best measured point within the loss. The comparison is that of Goyal et al., "
            "IPDPSW 2019, who report gains of up to 57 %. The last column holds the best point of both against the "
            "better method alone where its answers are as far from the original's, between two of its points: that is "
            "less subject to chance than which points hold a loss. Nothing is said where no points enclose that.",
            class_="soft small",
        ),
        id="gains",
    )


def _gain_cells(gain: Gain) -> list[str]:
    measure, loss, *ratios, gained, at_distance = gain_row(gain)
    named = [
        element("span", ratio, title=gain.best[method][1]) if method in gain.best else text(ratio)
        for ratio, method in zip(ratios, METHOD_TITLES, strict=True)
    ]
    gains = ((gained, gain.gain), (at_distance, gain.gain_at_distance))
    return [measure, loss, *named, *(element("span", t, class_="good" if (g or 0.0) > 0.0 else "") for t, g in gains)]


def _points(report: SweepReport) -> Markup:
    done = [point for point in report.points if point.done]
    if not done:
        return _NOTHING
    on_front = {name for names in report.fronts.values() for name in names}
    columns = [
        Column("point", "name"),
        *(Column(title, "number") for title in judged_columns(report)),
    ]
    columns += [Column(MEASURE_TITLES[measure], "number") for measure in report.measures]
    columns += [Column("time", "number wide")]
    rows = [_point_cells(point, report, point.name in on_front) for point in done]
    before = report.input
    own = {"bytes": size(before.bytes), "params": count(before.params), "macs": count(before.macs)}
    times = [p.original_latency_ms for p in done if p.original_latency_ms is not None]
    own["latency"] = milliseconds(sorted(times)[len(times) // 2] if times else None)
    accuracy = [] if report.original_accuracy is None else [percent(report.original_accuracy)]
    original = f"Original: {', '.join([*accuracy, *(own[m] for m in report.measures)])}."
    return element(
        "section",
        element("h2", f"Points ({len(done)})"),
        void("input", type="search", placeholder="Filter by name", aria_label="Filter", data_filters="points"),
        element("div", table(columns, rows, sortable=True, stack=True, id="points"), class_="tall"),
        element(
            "p", f"{original} A dot marks points that no other beats in at least one measure.", class_="soft small"
        ),
        id="all-points",
    )


def _point_cells(point: SweepPoint, report: SweepReport, on_front: bool) -> list[str | Cell]:
    name, *cells_of = point_row(point, report)
    figures = [point.drop] if report.original_accuracy is None else [point.accuracy, point.drop]
    figures += [point.compression.get(measure) for measure in report.measures]
    key = element("span", class_=f"key {point.method}")
    dot = element("span", " ●", title="no other point beats it", class_="soft") if on_front else _NOTHING
    cells: list[str | Cell] = [join([key, text(name), dot])]
    cells += [Cell(written, figure) for written, figure in zip(cells_of, figures, strict=True)]
    return [*cells, Cell(duration(point.seconds), point.seconds)]


def _failed(report: SweepReport) -> Markup:
    if not report.failed:
        return _NOTHING
    rows = [[point.name, point.reason or ""] for point in report.failed]
    return element(
        "section",
        element("h2", f"Points without a result, and why ({len(rows)})"),
        element("div", table([Column("point", "name"), Column("why")], rows, stack=True), class_="scroll"),
        id="failed",
    )


def _run(report: SweepReport) -> Markup:
    recipe = Recipe.from_mapping(report.recipe).to_toml() or "# every option at its default\n"
    facts = {
        "model": f"{report.input.path or 'in memory'}, opset {report.input.opset}, sha256 {report.input.sha256}",
        "folder": report.folder,
        "versions": ", ".join(f"{name} {version}" for name, version in report.versions.items()),
        "machine": ", ".join(f"{name} {value}" for name, value in report.platform.items()),
        "time": duration(report.seconds),
        "resumed": f"{sum(point.resumed for point in report.points)} of {len(report.points)} points were there already",
    }
    described = [join([element("dt", name), element("dd", value)]) for name, value in facts.items() if value]
    lines = [part for line in recipe.splitlines() for part in (text(line), Markup("\n"))]
    return element(
        "section",
        element("h2", "This sweep"),
        element("h3", "Command"),
        element("pre", text_with_options(sweep_command(report))),
        element("details", element("summary", "What all points share, as a recipe (TOML)"), element("pre", *lines)),
        element("h3", "Files, versions, machine"),
        element("dl", *described),
        id="run",
    )
