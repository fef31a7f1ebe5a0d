"""The report in every form that a recipe asks for: which files, and what stands in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from onnxcompress.recipe import Recipe
from onnxcompress.remote import Location
from onnxcompress.report.figures import Report
from onnxcompress.report.html import html_report
from onnxcompress.report.json_file import json_text, report_to_json
from onnxcompress.report.junit import junit_xml
from onnxcompress.report.markdown import markdown_summary


def _json(report: Report) -> str:
    return json_text(report_to_json(report))


_WRITERS: Mapping[str, Callable[[Report], str]] = MappingProxyType(
    {"report": _json, "html": html_report, "markdown": markdown_summary, "junit": junit_xml}
)
"""{option of the recipe: the report as the text of its file}."""


def report_paths(recipe: Recipe) -> dict[str, Location | None]:
    """Return {`--option`: the file it asks for}, None where it is not given."""
    return {f"--{name}": getattr(recipe, name) for name in _WRITERS}


def report_files(report: Report, recipe: Recipe) -> dict[Location, bytes]:
    """Return {file: its content} of every form of the report that is asked for."""
    asked = {name: getattr(recipe, name) for name in _WRITERS}
    return {path: _WRITERS[name](report).encode() for name, path in asked.items() if path is not None}
