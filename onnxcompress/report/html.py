"""The HTML report: one file that opens offline, in light and dark, on a phone and without scripts too.

A Content-Security-Policy allows nothing but the page's own style sheet and its one script, by its hash: no request can
leave the page, and no text in it can run.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from importlib import resources

from onnxcompress.report import html_sections as sections
from onnxcompress.report.dry_run import dry_run_line, is_dry_run
from onnxcompress.report.figures import Report
from onnxcompress.report.html_elements import Markup, element, text, text_with_options, void
from onnxcompress.report.html_layers import layers_section, profile_section
from onnxcompress.report.html_search import search_section


def html_report(report: Report) -> str:
    """Return the report as a page."""
    title = _title(report)
    header = element(
        "header",
        element("p", f"onnxcompress {report.command}", class_="soft small"),
        element("h1", title),
        sections.verdict(report),
        *([element("p", dry_run_line(report))] if is_dry_run(report) else []),
        *(element("p", text_with_options(line), class_="note") for line in report.warnings),
    )
    main = element(
        "main",
        header,
        sections.tiles(report),
        sections.gates_section(report),
        sections.figures_section(report),
        layers_section(report),
        search_section(report),
        profile_section(report),
        sections.passes_section(report),
        sections.skipped_section(report),
        sections.run_section(report),
        element("footer", made_by(report.versions)),
    )
    return html_page(title, main)


def html_page(title: str, main: Markup) -> str:
    """Return a whole page of one `main` element, with the style sheet and the script of all pages."""
    style, script = _template("report.css"), _template("report.js")
    head = [
        void("meta", charset="utf-8"),
        void("meta", http_equiv="Content-Security-Policy", content=_policy(script)),
        void("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", f"onnxcompress: {title}"),
        element("style", Markup(style)),
    ]
    body = element("body", main, element("script", Markup(script)))
    page = element("html", element("head", *head), body, lang="en")
    return f"<!DOCTYPE html>\n{page}\n"


def made_by(versions: Mapping[str, str]) -> Markup:
    """Return the line at a page's foot."""
    maker = " ".join(["onnxcompress", *([versions["onnxcompress"]] if "onnxcompress" in versions else [])])
    return text(f"Made by {maker}. A figure that was not measured is not shown.")


def _title(report: Report) -> str:
    before = report.input.path or "model"
    after = report.output.path if report.output else None
    return f"{before} → {after}" if after else f"{before} (no compressed model was written)"


def _template(name: str) -> str:
    folder = resources.files("onnxcompress.report") / "templates"
    return (folder / name).read_text(encoding="utf-8")


def _policy(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # Widths of bars are style attributes: text in a style can show nothing from elsewhere under `default-src 'none'`.
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; base-uri 'none'; "
        "form-action 'none'"
    )
