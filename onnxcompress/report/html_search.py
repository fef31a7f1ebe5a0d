"""The search for how much to compress, in the HTML report."""

from __future__ import annotations

from onnxcompress.report.figures import Report
from onnxcompress.report.html_elements import Column, Markup, element, table
from onnxcompress.report.search_figures import (
    JUDGED,
    chosen_text,
    judged_texts,
    limits_text,
    search_title,
    trial_row,
    trial_titles,
)


def search_section(report: Report) -> Markup:
    """Return the trials and what was chosen; nothing where there was no search."""
    found = report.search
    if found is None:
        return Markup("")
    columns = [Column(title, "number") for title in trial_titles(found)]
    rows = [trial_row(trial, found) for trial in found.trials]
    trials = element("div", table(columns, rows, stack=True), class_="scroll") if rows else Markup("")
    limits = limits_text(found)
    limit = f" It looked for the smallest model that loses at most {limits}." if limits else ""
    judged = judged_texts(found)
    note = f"{search_title(found)}.{limit} The gate judges on other data."
    return element(
        "section",
        element("h2", "Search"),
        element("p", "Chosen: ", element("code", chosen_text(found.chosen))),
        *((element("p", JUDGED), element("ul", *(element("li", line) for line in judged))) if judged else ()),
        trials,
        element("p", note, class_="soft small"),
        id="search",
    )
