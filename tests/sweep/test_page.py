"""The page of a sweep in a real browser: no complaint, no request, plots with all their marks, fit for a phone."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxcompress.report.sweep_html import sweep_html
from tests.report.chromium import browser, chromium_path
from tests.sweep.made_up import example

EXECUTABLE = chromium_path()


@pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium on this machine")
def test_the_page_shows_plots_and_sorts(tmp_path: Path) -> None:
    file = tmp_path / "sweep.html"
    file.write_text(sweep_html(example()), encoding="utf-8")
    assert EXECUTABLE is not None
    with browser(EXECUTABLE) as page:
        page.open(file.as_uri())
        page.emulate(width=1200, dark=False)
        assert page.complaints == []
        assert page.requests == [file.as_uri()]
        widths = page.value("Array.from(document.querySelectorAll('.pareto'), s => s.getBoundingClientRect().width)")
        assert len(widths) == 4
        assert min(widths) > 400
        marks = page.value("Array.from(document.querySelectorAll('.pareto'), s => s.querySelectorAll('.mark').length)")
        assert marks == [8] * 4
        first = "document.querySelector('#points tbody tr').cells[0].innerText.trim().split(' ')[0]"
        head = "Array.from(document.querySelectorAll('#points th button')).find(b => b.innerText === 'MACs')"
        page.value(f"{head}.click()")
        assert page.value(first) == "prune-1.1"
        page.value(f"{head}.click()")
        assert page.value(first) == "prune-4"
        for width in (360, 740, 1200):
            page.emulate(width=width, dark=True)
            assert page.value("document.documentElement.scrollWidth") <= width
            assert page.wider_than_their_place() == []


@pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [390, 1200])
def test_marks_use_the_plot_and_cover_no_label(tmp_path: Path, width: int) -> None:
    file = tmp_path / "sweep.html"
    file.write_text(sweep_html(example()), encoding="utf-8")
    assert EXECUTABLE is not None
    boxes = (
        "Array.from(document.querySelectorAll('.pareto'), s => Array.from(s.querySelectorAll('{}'),"
        " e => (b => [b.left, b.top, b.right, b.bottom])(e.getBoundingClientRect())))"
    )
    with browser(EXECUTABLE) as page:
        page.open(file.as_uri())
        page.emulate(width=width, dark=False)
        plots = zip(*(page.value(boxes.format(which)) for which in (".mark", ".mark.below", "text")), strict=True)
        for marks, deep, labels in plots:
            # One point of 8.5 % must not squeeze those from 75.5 to 78.5 % into a strip.
            tops = [top for left, top, right, bottom in marks if [left, top, right, bottom] not in deep]
            assert max(tops) - min(tops) > 200
            assert [top for _, top, _, _ in deep] > [max(tops)]
            covered = [
                (mark, label)
                for mark in marks
                for label in labels
                if mark[0] < label[2] and label[0] < mark[2] and mark[1] < label[3] and label[1] < mark[3]
            ]
            assert covered == []
