"""The HTML report, read back: self-contained, whole, and every name text."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import re
from html.parser import HTMLParser

import pytest

from onnxcompress.evaluation.accuracy import Accuracy
from onnxcompress.evaluation.class_errors import OneClass
from onnxcompress.report.figures import GateResult, Report, SkippedNode, StageFigures
from onnxcompress.report.gate_text import gate_value
from onnxcompress.report.html import html_report
from onnxcompress.report.html_elements import Cell, Column, Markup, element, join, table, text_with_options
from onnxcompress.report.html_plots import bar_pair, ticks
from onnxcompress.report.layers import LayerChange
from tests.report.sample_reports import ACCURACY, DROP, EVIL, evil_report, sample_report

LAYERS = (
    LayerChange("conv1", "Conv", 9_408, 5_000, 118_013_952, 60_000_000, ("conv1_tucker_in", "conv1_tucker_core")),
    LayerChange("conv2", "Conv", 4_096, 4_096, 12_845_056, 12_845_056, ("conv2",)),
    LayerChange("bn", "BatchNormalization", 256, 0, 0, 0, ()),
    LayerChange("new", "Gemm", None, 10, None, None, ("new",)),
    LayerChange("free", "MatMul", 0, 0, 0, 0, ("free",)),
)
VOID = {"meta", "input", "br", "hr", "img", "link"}


class _Reader(HTMLParser):
    """A page's elements; fails where a tag is not closed in its turn."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join(data for tag, data in self.texts if tag not in ("style", "script"))


def read(report: Report) -> _Reader:
    return _Reader(html_report(report))


def test_the_page_has_every_section_and_the_figures() -> None:
    page = read(sample_report(layers=LAYERS))
    ids = {attributes.get("id") for attributes in page.all("section")}
    assert ids == {"gates", "figures", "layer-by-layer", "passes", "left-alone", "run"}
    for expected in ("2 of 3 gates failed", "2.54 x smaller", "-1.5 points", "2.00 x faster", "95 %: -3.5 to +0.5"):
        assert expected in page.text
    words = re.sub(r"\s+", " ", page.text)
    assert "To keep more: lower --prune (now 0.4" in words
    assert "onnxcompress a.onnx b.onnx --prune 0.4" in words
    assert "is the graph output" in page.text
    assert "conv1: 64 -> 38 filters" in page.text
    assert "lrn: writes LRN as a convolution (1.52 x on CPU)" in page.text
    assert "by clean-up alone" in page.text
    assert "onnx 1.19" in page.text
    assert len(page.all("svg")) == 2


def test_nothing_is_loaded_from_elsewhere() -> None:
    page = read(sample_report(layers=LAYERS))
    for tag, attributes in page.elements:
        assert not {"src", "href", "srcset", "action", "data", "background"} & set(attributes), tag
        assert not any(name.startswith("on") for name in attributes), tag
        assert tag not in ("link", "img", "iframe", "object", "base", "form")
    source = html_report(sample_report())
    assert "url(" not in source
    assert "@import" not in source
    assert "http" not in source.replace("http-equiv", "")


def test_only_the_pages_own_script_may_run() -> None:
    source = html_report(evil_report())
    (script,) = re.findall(r"<script>(.*?)</script>", source, re.S)
    (policy,) = [a["content"] for a in _Reader(source).all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy is not None
    assert f"script-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';")


def test_names_are_text() -> None:
    evil_layers = (LayerChange(EVIL, EVIL, 5, 5, 5, 5, (EVIL,)),)
    page, harmless = read(dataclasses.replace(evil_report(), layers=evil_layers)), read(sample_report(layers=LAYERS))
    assert len(page.all("script")) == 1
    assert {tag for tag, _ in page.elements} <= {tag for tag, _ in harmless.elements}
    shown = EVIL.replace("\x1b", "\\x1b").replace("\n", "\\n").replace("\u202e", "\\u202e").replace("\ud800", "\\ud800")
    assert page.text.count(shown) >= 10
    assert not re.search("[\x00-\x09\x0b-\x1f\u202e\ud800]", html_report(evil_report()))
    html_report(evil_report()).encode()


def test_what_belongs_to_the_row_above_is_set_in() -> None:
    source = html_report(sample_report())
    steps = re.findall(r'<td><span class="step">(.*?)</span></td>', source)
    assert steps == ["by clean-up alone", "by compression", "lrn: writes LRN as a convolution (1.52 x on CPU)"]


def test_what_rounds_to_zero_has_no_sign() -> None:
    gate = dataclasses.replace(DROP, value=-0.001, interval=(-0.000252, -6.93))
    assert gate_value(gate) == "0.00 (95 %: 0.00 to -6.93)"


def test_what_was_not_measured_or_done_is_left_out() -> None:
    bare = sample_report(accuracy=None, latency=(), gates=(), stages=(), layers=(), output=None, compression=None)
    page = read(bare)
    assert {attributes.get("id") for attributes in page.all("section")} == {"figures", "run"}
    assert "no gates" in page.text
    assert "not measured" in page.text
    assert page.all("svg") == []
    assert "nan" not in html_report(bare).lower().replace("provenance", "")


def test_without_labels_the_agreement_is_shown() -> None:
    unlabelled = dataclasses.replace(ACCURACY, labels=False, drop_top1=None, drop_top1_interval=None)
    page = read(sample_report(accuracy=unlabelled))
    assert "Samples without agreement in percent" in page.text
    assert "Top-1" not in page.text
    assert read(sample_report(accuracy=dataclasses.replace(unlabelled, agreement=None, relative_error=0.1)))


def test_of_what_does_not_classify_the_error_is_shown() -> None:
    error = Accuracy(
        200, False, relative_error=0.041, relative_error_interval=(0.03, 0.05), relative_error_output="map"
    )
    gate = GateResult("max_error", 5.0, 4.1, True, (3.0, 5.0))
    page = read(sample_report(accuracy=error, gates=(gate,)))
    assert "Relative error of 'map'" in page.text
    assert "4.1 % (95 %: 3.0 to 5.0)" in page.text
    assert "Relative error of the outputs in percent, with its 95 % interval (200 samples)" in page.text
    assert "limit of max_error: 5" in page.text
    assert "Top-1" not in page.text
    # Beside a fall of accuracy its interval stands only where a gate judges it.
    both = dataclasses.replace(ACCURACY, relative_error=0.041, relative_error_interval=(0.03, 0.05))
    assert "Relative error of the outputs in percent" not in read(sample_report(accuracy=both)).text
    assert "Relative error of the outputs in percent" in read(sample_report(accuracy=both, gates=(gate,))).text
    of_class = dataclasses.replace(error, relative_error_part=OneClass(7, 0.018))
    text = read(sample_report(accuracy=of_class, gates=(gate,))).text
    assert text.count("1 - IoU of a class of the outputs") >= 2
    assert "Relative error of the outputs" not in text


def test_layers_have_bars_in_proportion() -> None:
    source = html_report(sample_report(layers=LAYERS))
    body = source.split('<table id="layers"')[1].split("</table>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", body.split("<tbody>")[1])
    assert len(rows) == 4  # a layer that costs nothing has no bar
    widths = re.findall(r'class="bar (\w+)" style="width:([\d.]+)%"', rows[0])
    assert widths[0] == ("before", "100.00")
    assert widths[1] == ("after", f"{100 * 60_000_000 / 118_013_952:.2f}")
    assert "Conv, split into 2" in rows[0]
    assert "BatchNormalization, gone" in rows[2]
    assert "only in the compressed model" in rows[3]


def test_a_table_that_sorts_has_buttons_and_values() -> None:
    skipped = tuple(SkippedNode(f"n{number}", "why") for number in range(3))
    page = read(sample_report(stages=(StageFigures("tucker", 0.1, 1, 1, (), skipped),), layers=LAYERS))
    buttons = [data for tag, data in page.texts if tag == "button"]
    assert buttons == ["layer", "original", "compressed", "change", "node", "pass", "why"]
    (field,) = [a for a in page.all("input") if a.get("type") == "search"]
    assert field["data-filters"] in {a.get("id") for a in page.all("table")}


def test_only_names_of_options_are_kept_whole() -> None:
    whole = [
        re.findall(r'<span class="keep">(.*?)</span>', text_with_options(text))
        for text in (
            "lower --prune (--calib PATH --recover refit)",
            "a--b --- --A --",
            "--" + 200 * "a",
            "<--x> --y=<b>",
        )
    ]
    assert whole == [["--prune", "--calib", "--recover"], [], [], ["--y"]]
    assert text_with_options("<i> --y") == '&lt;i&gt; <span class="keep">--y</span>'


def test_text_is_escaped_unless_it_is_markup() -> None:
    assert element("p", "<b>", Markup("<i></i>"), title='"') == '<p title="&quot;">&lt;b&gt;<i></i></p>'
    assert join(["a&b", Markup("&amp;")], ", ") == "a&amp;b, &amp;"
    written = table([Column("<"), Column("n", "number")], [["<", Cell("1 k", 1000)]])
    assert "<td>&lt;</td>" in written
    assert '<td class="number" data-value="1000">1 k</td>' in written
    with pytest.raises(ValueError, match="argument"):
        table([Column("one")], [["a", "b"]])


@pytest.mark.parametrize(("low", "high"), [(-0.7, 3.9), (0.94, 1.31), (-5.0, 95.0), (0.0, 1e-3), (1.0, 40.0)])
def test_ticks_are_few_and_within(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 2 <= len(found) <= 7
    assert all(low <= tick <= high for tick in found)


def test_bars_of_unknown_and_zero() -> None:
    assert bar_pair(None, 1.0, 2.0).count("<span") == 1
    assert 'width:0.00%"' in bar_pair(0.0, None, 0.0)
