"""A sweep's folder: each finished point in a file of its own, so that an interrupted sweep goes on where it stopped.

    DIR/points/NAME-HASH.json    one point: what it is, and its report or why it failed
    DIR/models/NAME-HASH.onnx    its model
    DIR/sweep.json, .csv, .html, pareto-*.svg    all points together

The hash is that of everything that decides the point: after a change of model, data or recipe the old files stay, and
new ones are written beside them.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnxcompress.errors import EXIT_GATE, RecipeError
from onnxcompress.pipeline.source import file_sha256
from onnxcompress.pipeline.sweep_grid import GridPoint, short
from onnxcompress.pipeline.sweep_work import Outcome
from onnxcompress.report.figures import SCHEMA
from onnxcompress.report.json_file import json_text, plain_json
from onnxcompress.report.sweep_figures import SweepPoint
from onnxcompress.serialization import atomic_file

POINTS, MODELS, SUMMARY = "points", "models", "sweep.json"


@dataclass(frozen=True)
class Store:
    """The files of a sweep in its folder."""

    folder: Path

    def prepare(self) -> None:
        """Make the folder, or take one that an earlier sweep made.

        Raises:
            RecipeError: it cannot be made or written, or holds something else.
        """
        folder = self.folder
        try:
            if folder.exists() and not folder.is_dir():
                raise RecipeError(f"--out {folder}: is a file; give a folder")
            ours = (folder / POINTS).is_dir() or (folder / SUMMARY).is_file()
            if folder.is_dir() and not ours and any(folder.iterdir()):
                raise RecipeError(f"--out {folder}: is not empty and holds no sweep; give a new or an empty folder")
            for part in (POINTS, MODELS):
                (folder / part).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RecipeError(f"--out {folder}: cannot be written ({error.strerror or error})") from error

    def model_path(self, name: str, key: str) -> Path:
        """Return where a point's model stands."""
        return self.folder / MODELS / f"{name}-{short(key)}.onnx"

    def read(self, name: str, key: str) -> dict[str, Any] | None:
        """Return what is kept of a point; None where nothing is, or a result that is worth another try."""
        try:
            value = json.loads(self._point_path(name, key).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None
        if not isinstance(value, dict) or value.get("schema") != SCHEMA or value.get("key") != key:
            return None
        if "report" in value:
            return value
        # A target that cannot be reached stays so; any other failure may be gone the next time.
        return value if value.get("exit_code") == EXIT_GATE else None

    def has_model(self, name: str, key: str, value: Mapping[str, Any]) -> bool:
        """Whether the model of a finished point is there, whole."""
        path = self.model_path(name, key)
        with contextlib.suppress(OSError, KeyError, TypeError):
            expected = value["report"]["output"]["sha256"]
            return path.is_file() and (expected is None or file_sha256(path) == expected)
        return False

    def keep(self, point: GridPoint, outcome: Outcome) -> dict[str, Any]:
        """Write an outcome, the model first; return what is kept."""
        if outcome.content is not None:
            with atomic_file(self.model_path(point.name, outcome.key)) as stream:
                stream.write(outcome.content)
        value = {"schema": SCHEMA, "key": outcome.key, "point": plain_json(point), **outcome.value}
        self.write(point.name, outcome.key, value)
        return value

    def write(self, name: str, key: str, value: Mapping[str, Any]) -> None:
        """Write what is kept of a point, whole or not at all."""
        with atomic_file(self._point_path(name, key)) as stream:
            stream.write(json_text(value).encode())

    def _point_path(self, name: str, key: str) -> Path:
        return self.folder / POINTS / f"{name}-{short(key)}.json"


def is_readable(point: GridPoint, value: Mapping[str, Any]) -> bool:
    """Whether what is kept of a point gives its figures: not where its file was damaged and is JSON all the same."""
    try:
        own = point_of(point, value, None, resumed=True)
        figures = [own.drop, own.bytes, own.params, own.macs, own.latency_ms, *own.compression.values()]
        finite = all(figure is None or math.isfinite(figure) for figure in figures)
        return finite and (value["report"]["accuracy"]["samples"] >= 0 if own.done else "reason" in value)
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError):
        return False


def point_of(point: GridPoint, value: Mapping[str, Any], model: str | None, *, resumed: bool) -> SweepPoint:
    """Return a point's figures from what is kept of it."""
    own = SweepPoint(point.name, point.method, point.options, resumed=resumed, seconds=value.get("seconds"))
    if "report" not in value:
        reason, code = str(value.get("reason")), int(value.get("exit_code", 0))
        return replace(own, reason=reason, exit_code=code)
    report = value["report"]
    seen, output = report.get("accuracy") or {}, report["output"]
    labels = bool(seen.get("labels"))
    agreement, interval = seen.get("agreement"), seen.get("agreement_interval")
    if labels:
        lost, drop_interval = seen.get("drop_top1"), seen.get("drop_top1_interval")
    elif agreement is not None:
        lost = 100.0 - agreement
        drop_interval = None if interval is None else (100.0 - interval[1], 100.0 - interval[0])
    else:
        error, interval = seen.get("relative_error"), seen.get("relative_error_interval")
        lost = None if error is None else 100.0 * error
        drop_interval = None if interval is None else (100.0 * interval[0], 100.0 * interval[1])
    timed = next(iter((value.get("latency") or {}).get("entries", ())), None)
    ratios = {name: ratio for name, ratio in (report.get("compression") or {}).items() if ratio is not None}
    if timed is not None:
        ratios["latency"] = timed["speedup"]
    return replace(
        own,
        accuracy=seen["compressed"]["top1"] if labels else agreement,
        agreement=agreement,
        kl=seen.get("kl"),
        relative_error=seen.get("relative_error"),
        drop=lost,
        drop_interval=None if drop_interval is None else tuple(drop_interval),
        bytes=output["bytes"],
        params=output["params"],
        macs=output["macs"],
        latency_ms=None if timed is None else timed["compressed_ms"]["p50"],
        original_latency_ms=None if timed is None else timed["original_ms"]["p50"],
        speedup_interval=None if timed is None or timed["interval"] is None else tuple(timed["interval"]),
        compression=ratios,
        model=model,
    )
