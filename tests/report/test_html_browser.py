"""The HTML report in a real browser: no complaint, no request, plots drawn, tables that sort, fit for a phone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from onnxcompress.evaluation.profile import NodeTimes, OpTimes, ProfileComparison
from onnxcompress.report.html import html_report
from onnxcompress.report.layers import LayerChange
from onnxcompress.report.search_figures import Found, Trial
from tests.report.chromium import Page, browser, chromium_path, contrast
from tests.report.sample_reports import EVIL, evil_report, sample_report

LAYERS = tuple(LayerChange(f"conv{n}", "Conv", 100 * n, 90 * n, 9_000 - n, 5_000, (f"conv{n}",)) for n in range(1, 12))
PROFILE = ProfileComparison(
    (OpTimes("Conv", 57, 15.25, 114, 7.5), OpTimes("LRN", 2, 3.0, None, None)),
    (NodeTimes("inception_3a/5x5_reduce", "Conv", 15.25, None, "CPUExecutionProvider", None),),
)
SEARCH = Found("expected_top1", 100, {"prune": 0.1}, (Trial(0.1, 0.5, 0.5, 0.6, 0.25, 1.0, 0.01, 12.0),), limit=1.0)
EXECUTABLE = chromium_path()

pytestmark = pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A page with an ordinary report."""
    file = tmp_path_factory.mktemp("html") / "report.html"
    file.write_text(html_report(sample_report(layers=LAYERS, profile=PROFILE, search=SEARCH)), encoding="utf-8")
    assert EXECUTABLE is not None
    with browser(EXECUTABLE) as opened:
        opened.open(file.as_uri())
        yield opened


def rows_of(page: Page, table: str) -> list[str]:
    script = f"Array.from(document.querySelectorAll('#{table} tbody tr'), row => row.cells[0].innerText)"
    return [str(name).split()[0] for name in page.value(script)]


def test_it_loads_nothing_and_complains_about_nothing(page: Page) -> None:
    assert len(page.requests) == 1
    assert page.requests[0].startswith("file:")
    assert page.complaints == []


def test_plots_and_bars_are_drawn(page: Page) -> None:
    page.emulate(width=1200, dark=False)
    plots = page.value("Array.from(document.querySelectorAll('figure svg'), s => s.getBoundingClientRect().width)")
    assert len(plots) == 2
    assert min(plots) > 300
    bars = page.value(
        "Array.from(document.querySelectorAll('#layers .bars [data-of=macs] .bar'),"
        " b => [b.getBoundingClientRect().width, getComputedStyle(b).backgroundColor])"
    )
    assert len(bars) == 2 * len(LAYERS)
    assert bars[0][0] == pytest.approx(bars[1][0] * 8_999 / 5_000, rel=0.02)
    assert len({colour for _, colour in bars}) == 2


def test_heads_sort_and_the_switch_changes_the_figure(page: Page) -> None:
    page.emulate(width=1200, dark=False)
    head = "Array.from(document.querySelectorAll('#layers th button')).find(b => b.innerText === 'original')"
    assert rows_of(page, "layers")[0] == "conv1"
    page.value(f"{head}.click()")
    assert rows_of(page, "layers")[0] == "conv11"  # MACs ascending
    page.value("document.querySelector('.switch input[value=params]').click()")
    assert page.value("document.querySelector('#layers td.number').innerText") == "1,100"
    page.value(f"{head}.click()")
    page.value(f"{head}.click()")
    assert rows_of(page, "layers")[0] == "conv1"  # parameters ascending


def test_typing_filters_what_was_left_alone(page: Page) -> None:
    shown = "Array.from(document.querySelectorAll('#skipped tbody tr')).filter(r => r.offsetParent !== null).length"
    assert page.value(shown) == 1
    typed = "f = document.querySelector('input[type=search]'); f.value = '{}'; f.dispatchEvent(new Event('input'))"
    page.value(typed.format("no such node"))
    assert page.value(shown) == 0
    page.value(typed.format("GRAPH"))
    assert page.value(shown) == 1


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1200])
def test_it_fits_its_width_in_both_themes(page: Page, width: int, dark: bool) -> None:
    page.emulate(width=width, dark=dark)
    assert page.value("document.documentElement.scrollWidth") <= width
    colours = page.value("[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]")
    text, background = (sum(map(int, c[4:-1].split(","))) for c in colours)
    assert (text > background + 300) if dark else (background > text + 300)


@pytest.mark.parametrize("dark", [False, True])
def test_text_and_bars_stand_out_in_both_themes(page: Page, dark: bool) -> None:
    page.emulate(width=1200, dark=dark)
    card, *texts = page.colours("--card", "--text", "--soft", "--good", "--bad")
    assert min(contrast(card, colour) for colour in texts) >= 4.5
    marks = page.colours("--before", "--after", "--prune", "--tucker", "--both")
    assert min(contrast(card, colour) for colour in marks) >= 3.0


@pytest.mark.parametrize("width", [360, 390, 740])
def test_where_room_is_short_no_table_is_cut_off_and_every_figure_says_what_it_is(page: Page, width: int) -> None:
    page.emulate(width=width, dark=False)
    assert page.wider_than_their_place() == []
    told = page.value(
        "Array.from(document.querySelectorAll('.stack td.number, .stack td.keep')).filter(c => c.offsetParent !== null)"
        ".map(c => [getComputedStyle(c, '::before').content.slice(1, -1),"
        " c.closest('table').tHead.rows[0].cells[c.cellIndex].innerText])"
    )
    assert len(told) > 40
    assert all(shown == head.strip() != "" for shown, head in told)


def test_heads_of_layers_stand_above_their_columns_on_a_phone(page: Page) -> None:
    page.emulate(width=390, dark=False)
    edges = "Array.from(document.querySelectorAll('#layers {} .number:not(.wide)'), c => c.getBoundingClientRect().{})"
    assert page.value(edges.format("thead", "right")) == page.value(edges.format("tbody tr:first-child", "right"))
    assert len(set(page.value(edges.format("thead", "top")))) == 1


def test_names_of_options_are_not_broken(page: Page) -> None:
    page.emulate(width=390, dark=False)
    lines = page.value("Array.from(document.querySelectorAll('.keep'), e => [e.innerText, e.getClientRects().length])")
    options = {name: count for name, count in lines if name.startswith("--")}
    assert {"--exclude", "--calib", "--max-drop"} <= set(options)
    assert set(options.values()) == {1}


def test_evil_names_do_nothing(tmp_path: Path) -> None:
    layers = (LayerChange(EVIL, EVIL, 5, 5, 5, 5, (EVIL,)),)
    file = tmp_path / "evil.html"
    file.write_text(html_report(dataclasses.replace(evil_report(), layers=layers)), encoding="utf-8")
    assert EXECUTABLE is not None
    with browser(EXECUTABLE) as opened:
        opened.open(file.as_uri())
        assert opened.value("document.scripts.length") == 1
        assert opened.complaints == []
        assert len(opened.requests) == 1
        opened.emulate(width=360, dark=False)
        assert opened.value("document.documentElement.scrollWidth") <= 360
        assert opened.wider_than_their_place() == []
