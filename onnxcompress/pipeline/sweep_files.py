"""What a sweep writes beside its points: all of them together, as JSON, CSV, a page and plots."""

from __future__ import annotations

from pathlib import Path

from onnxcompress.remote import Location
from onnxcompress.report.figures import SCHEMA
from onnxcompress.report.json_file import json_text, plain_json
from onnxcompress.report.sweep_figures import SweepReport
from onnxcompress.report.sweep_html import sweep_html
from onnxcompress.report.sweep_plots import pareto_file
from onnxcompress.report.sweep_text import sweep_csv

_FILE_OF = {"bytes": "size", "params": "params", "macs": "macs", "latency": "latency"}


def sweep_files(report: SweepReport, folder: Path) -> dict[Location, bytes]:
    """Return {file: content} of everything that a sweep's folder shows."""
    texts = {
        "sweep.json": json_text({"schema": SCHEMA, **plain_json(report)}),
        "sweep.csv": sweep_csv(report),
        "sweep.html": sweep_html(report),
    }
    texts |= {f"pareto-{_FILE_OF[measure]}.svg": pareto_file(report, measure) for measure in report.measures}
    return {folder / name: text.encode() for name, text in texts.items()}
