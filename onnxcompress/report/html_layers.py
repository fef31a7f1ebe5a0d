"""Bars for every layer of the HTML report: parameters, MACs and time, original against compressed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from onnxcompress.report.figures import Report
from onnxcompress.report.html_elements import Cell, Column, Markup, element, join, table, text, void
from onnxcompress.report.html_plots import bar_pair
from onnxcompress.report.layers import LayerChange
from onnxcompress.report.profile_rows import NODE_HEADER, NOTE, OP_HEADER, node_rows, op_rows, providers_line
from onnxcompress.report.text import count, milliseconds

_TABLE = "layers"
_NOTE = "What a layer was split into counts as that layer. MACs are those of one sample."
_NOTE_ON_TIMES = (
    " Times are of one run in onnxruntime's profile: what it fused into a layer counts as that layer, measuring costs "
    "time itself, and the sum is not the latency."
)

Pair = tuple[float | None, float | None]


@dataclass(frozen=True)
class _Figure:
    """What the bars can show: a figure of the original and of the compressed layer, and how it is written."""

    key: str
    title: str
    of: Callable[[LayerChange], Pair]
    written: Callable[[float | None], str]


def _count(value: float | None) -> str:
    return count(None if value is None else int(value))


_FIGURES = (
    _Figure("macs", "MACs", lambda layer: (layer.original_macs, layer.compressed_macs), _count),
    _Figure("params", "parameters", lambda layer: (layer.original_params, layer.compressed_params), _count),
    _Figure("ms", "time", lambda layer: (layer.original_ms, layer.compressed_ms), milliseconds),
)


def layers_section(report: Report) -> Markup:
    """Return the bars of all layers that cost anything, nothing where there are no layers."""
    layers = [layer for layer in report.layers if any(any(figure.of(layer)) for figure in _FIGURES)]
    figures = [figure for figure in _FIGURES if any(any(figure.of(layer)) for layer in layers)]
    if not figures:
        return Markup("")
    columns = [Column("layer", "name"), Column("", "bars"), Column("original", "number wide")]
    columns += [Column("compressed", "number"), Column("change", "number")]
    largest = {f.key: max((v for layer in layers for v in f.of(layer) if v is not None), default=0.0) for f in figures}
    rows = [_row(layer, figures, largest) for layer in layers]
    legend = element(
        "span",
        element("span", element("span", class_="key before"), "original"),
        element("span", element("span", class_="key after"), "compressed"),
        class_="legend small",
    )
    return element(
        "section",
        element("h2", "Layer by layer"),
        element("fieldset", element("legend", "Show"), *_choices(figures), legend, class_="switch"),
        element(
            "div",
            table(columns, rows, sortable=True, id=_TABLE, class_="layers", data_figure=figures[0].key),
            class_="tall",
        ),
        element("p", _NOTE + (_NOTE_ON_TIMES if figures[-1].key == "ms" else ""), class_="soft small"),
        id="layer-by-layer",
    )


def profile_section(report: Report) -> Markup:
    """Return where the time goes, by operator and by node; nothing where it was not profiled."""
    if report.profile is None:
        return Markup("")
    tables = []
    for title, header, rows, left in (
        ("By operator", OP_HEADER, op_rows(report.profile), (0,)),
        ("Nodes that take most time", NODE_HEADER, node_rows(report.profile), (0, 1, 4)),
    ):
        columns = [Column(name, "name" if at in left else "number") for at, name in enumerate(header)]
        tables.append(element("h3", title))
        tables.append(element("div", table(columns, [list(row) for row in rows], stack=True), class_="tall"))
    return element(
        "section",
        element("h2", "Where the time goes"),
        *tables,
        element("p", NOTE, class_="soft small"),
        element("p", providers_line(report.profile), class_="soft small"),
        id="profile",
    )


def _choices(figures: Sequence[_Figure]) -> list[Markup]:
    return [
        element(
            "label",
            void("input", type="radio", name=_TABLE, value=figure.key, checked=number == 0, autocomplete="off"),
            " ",
            figure.title,
        )
        for number, figure in enumerate(figures)
    ]


def _row(layer: LayerChange, figures: Sequence[_Figure], largest: dict[str, float]) -> list[str | Cell]:
    bars, before, after, change = [], [], [], []
    for figure in figures:
        first, second = figure.of(layer)
        pair = bar_pair(first, second, largest[figure.key])
        bars.append(element("span", pair, data_of=figure.key, data_value=_order(first)))
        before.append(element("span", figure.written(first), data_of=figure.key, data_value=_order(first)))
        after.append(element("span", figure.written(second), data_of=figure.key, data_value=_order(second)))
        ratio = second / first if first and second is not None else None
        shown = "" if ratio is None else "=" if ratio == 1.0 else f"{100 * (ratio - 1):+.0f} %"
        change.append(element("span", shown, data_of=figure.key, data_value=_order(ratio)))
    # Rows that have a time only are shown with the times only.
    only = None if layer.parts or layer.original_params or layer.original_macs else "ms"
    name = join([text(layer.node), " ", element("span", _about(layer), class_="about", data_only=only)])
    return [name, join(bars), join(before), join(after), join(change)]


def _order(value: float | None) -> str:
    return f"{-1.0 if value is None else value:.10g}"


def _about(layer: LayerChange) -> str:
    if layer.original_ms is not None and not layer.original_params and not layer.original_macs:
        return layer.op
    if layer.original_params is None:
        return f"{layer.op}, only in the compressed model"
    if not layer.parts:
        return f"{layer.op}, gone"
    return f"{layer.op}, split into {len(layer.parts)}" if len(layer.parts) > 1 else layer.op
