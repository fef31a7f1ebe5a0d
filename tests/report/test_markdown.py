"""The Markdown summary, read back by a Markdown parser."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from onnxcompress.report.figures import Report, SkippedNode, StageFigures
from onnxcompress.report.markdown import markdown_summary, name_in_markdown
from tests.report.sample_reports import DOUBTFUL, EVIL, SPEED, evil_report, sample_report

markdown_it = pytest.importorskip("markdown_it", reason="comes with rich")


class _Reader(HTMLParser):
    """The tables of a page as text, and every tag that occurs."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.rows: list[list[str]] = []
        self._cell = False
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self._cell = True
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._cell:
            self.rows[-1][-1] += data


def rendered(report: Report) -> _Reader:
    return read(markdown_summary(report))


def read(markdown: str) -> _Reader:
    parser = markdown_it.MarkdownIt("commonmark", {"html": True}).enable("table")
    return _Reader(parser.render(markdown))


def test_it_shows_before_and_after_gates_passes_and_what_was_left_alone() -> None:
    page = rendered(sample_report())
    assert ["File size", "28.01 MB", "11.02 MB", "2.54 x smaller"] in page.rows
    assert ["Top-1", "78.5 %", "77.0 %", "-1.5 points (95 %: -3.5 to +0.5)"] in page.rows
    gates = {row[0].split()[0]: row[1:] for row in page.rows if row[0].startswith(("max_", "min_"))}
    assert gates["max_drop"][:3] == ["at most 1 points", "1.50 (95 %: -0.50 to 3.50)", "FAILED"]
    assert gates["max_drop"][3].startswith("To keep more: lower --prune (now 0.4")
    assert gates["min_speedup"] == ["at least 1.2 x", "2.00 (95 %: 1.90 to 2.10)", "passed", ""]
    assert ["prune", "1", "1", "2.75 M", "596.00 M", "11.02 MB", "0.40"] in page.rows
    assert ["prune", "1", "is the graph output", "fc"] in page.rows
    assert ["lrn: writes LRN as a convolution (1.52 x on CPU)", *"10", "", "", "", "0.09"] in page.rows
    assert any(row[:3] == ["by clean-up alone", "18.0 ms", "12.0 ms"] for row in page.rows)
    assert "2 of 3 gates failed" in page.text
    assert "Self-check of prune: passed" in page.text


def test_the_verdict_stands_first() -> None:
    assert markdown_summary(sample_report(gates=(SPEED,))).startswith("## onnxcompress: 1 of 1 gates passed")
    assert markdown_summary(sample_report(gates=())).startswith("## onnxcompress: no gates\n")
    assert "--strict: the interval crosses the limit" in rendered(sample_report(gates=(DOUBTFUL,))).text


def test_many_reasons_and_nodes_are_cut_short_and_counted() -> None:
    skipped = [SkippedNode(f"n{n}", "kernel is 1x1" if n % 2 else f"reason {n}") for n in range(100)]
    page = rendered(sample_report(stages=(StageFigures("tucker", 0.1, 1, 1, (), tuple(skipped)),)))
    assert ["tucker", "50", "kernel is 1x1", "n1, n3, n5, n7, n9 and 45 more"] in page.rows
    assert "31 more reasons" in page.text


def test_names_are_text_and_keep_every_table_whole() -> None:
    page = rendered(evil_report())
    assert not page.tags & {"script", "em", "a"}
    widths = [len(row) for row in page.rows]
    assert set(widths) <= {4, 5, 7}
    shown = EVIL.replace("\x1b", "\\x1b").replace("\n", "\\n").replace("\u202e", "\\u202e").replace("\ud800", "\\ud800")
    assert [row[:4] for row in page.rows if row[0] == shown and len(row) == 4] == [
        [shown, "2", shown, f"{shown}, n"],
    ]


@pytest.mark.parametrize(
    "name", ["conv1", "a|b", "``", "`x", "a  b", "a\\|b", "<b>", "&lt;", "*a*", "数", "@you", "a\nb", "x" * 300]
)
def test_any_name_survives_a_table_cell(name: str) -> None:
    table = f"| a | b |\n| :-- | :-- |\n| {name_in_markdown(name)} | end |\n"
    assert read(table).rows[1] == [name.replace("\n", "\\n"), "end"]
