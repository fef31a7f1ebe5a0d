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
        page.emulate(width=360, dark=True)
        assert page.wider_than_their_place() == []
