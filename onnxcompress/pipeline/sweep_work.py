"""One point of a sweep, run anywhere: in this process, in another one, on another machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, replace
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from onnxcompress.errors import EXIT_BUG, EXIT_INTERRUPTED, DataError, ModelError, explained
from onnxcompress.pipeline.compress import compress
from onnxcompress.pipeline.measure import open_data
from onnxcompress.pipeline.recovery import CHECKPOINT_SUFFIX
from onnxcompress.pipeline.source import ModelLike, read_source
from onnxcompress.recipe import Recipe
from onnxcompress.report.json_file import report_to_json
from onnxcompress.report.progress import Progress, no_progress
from onnxcompress.termination import ENDING, signals_handled


@dataclass(frozen=True)
class Task:
    """What running a point takes; it can be pickled where model and data can.

    Attributes:
        sha256: of the model, so that another file at the same path on another machine is noticed.
        data, calib, train: None takes the recipe's.
        calibrated: whether any point of the sweep needs calibration data. Where they are a part of the evaluation
            data, every point leaves the same part out, so that all are judged on the same samples.
        output: where the model goes; None returns it instead.
    """

    name: str
    key: str
    model: ModelLike
    sha256: str
    recipe: Recipe
    calibrated: bool
    output: Path | None
    data: Any = None
    calib: Any = None
    train: Any = None


@dataclass(frozen=True)
class Outcome:
    """What came of a task: plain JSON values, and the model where the task did not write it."""

    name: str
    key: str
    value: Mapping[str, Any]
    content: bytes | None = None


def run_task(task: Task, tell: Progress = no_progress) -> Outcome:
    """Compress and measure accuracy; what goes wrong becomes part of the outcome."""
    started = time.perf_counter()
    content = None
    try:
        value, content = _compressed(task, tell)
    except Exception as error:
        told = explained(error)
        reason = f"a bug ({type(error).__name__}: {error})" if told is None else str(told)
        code = EXIT_BUG if told is None else told.exit_code
        value = {"reason": " ".join(reason.split()), "exit_code": code}
        if code == EXIT_BUG:
            value["traceback"] = traceback.format_exc()
    return Outcome(task.name, task.key, {**value, "seconds": time.perf_counter() - started}, content)


def _compressed(task: Task, tell: Progress) -> tuple[dict[str, Any], bytes | None]:
    source = read_source(task.model)
    if source.sha256 != task.sha256:
        raise ModelError(f"{source.path or 'model'}: is not the model that the sweep began with (sha256 differs)")
    given = [
        own if own is not None else asked
        for own, asked in ((task.data, task.recipe.data), (task.calib, task.recipe.calib), (task.train, None))
    ]
    train = task.train if task.train is not None else task.recipe.train
    sets = open_data(source.content, task.recipe, given[0], given[1], train, needs_calibration=task.calibrated)
    if sets.evaluation is None:
        raise DataError("a sweep needs evaluation data: give --data PATH")
    resume = task.output is not None and any(task.output.parent.glob(f"{task.output.name}{CHECKPOINT_SUFFIX}*"))
    result = compress(
        task.model,
        replace(task.recipe, overwrite=True, resume=resume),
        output=task.output,
        data=sets.evaluation,
        calib=sets.calibration,
        train=train,
        progress=tell,
    )
    value = report_to_json(replace(result.report, layers=()))
    return {"report": value}, result.model.to_bytes() if task.output is None else None


def run_in_worker(task: Task) -> Outcome:
    """Run a task in a process of its own; one that is told to end clears away what it has begun to write."""
    with signals_handled(*ENDING):
        return run_task(task)


def limit_worker(number: int, workers: int, came_up: Event) -> None:
    """Give a worker process, one of so many, its own part of the cores, and let it end with the one that started it.

    Ctrl-C is left to that one.
    """
    came_up.set()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        share = max(1, len(cores) // workers)
        start = (number * share) % len(cores)
        os.sched_setaffinity(0, cores[start : start + share])


def _end_with_parent() -> None:
    """End this process when its parent is gone: a killed sweep is run again, and its points have one writer only."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(EXIT_INTERRUPTED)
