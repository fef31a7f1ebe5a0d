"""How a run tells how far it is, and a bar that shows it on standard error where that is a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from onnxcompress.report.text import printable

Batch = TypeVar("Batch", bound=Mapping[str, Any])

Progress = Callable[[str, int, int | None], None]
"""Called with what is being done, how many steps of it are done, and how many there are (None: not known)."""


def no_progress(doing: str, done: int, total: int | None) -> None:
    """Tell nobody."""


def told_stream(doing: str, batches: Iterable[Batch], total: int | None, tell: Progress) -> Iterator[Batch]:
    """Yield batches, {name: array (B, ...)}, and tell how many samples of them are through."""
    done = 0
    for batch in batches:
        tell(doing, done, total)
        yield batch
        done += min((len(array) for array in batch.values()), default=0)


@contextlib.contextmanager
def progress_bar(*, wanted: bool) -> Iterator[Progress | None]:
    """Give the callback that moves the bar, None where none is shown; the bar is gone afterwards."""
    if not wanted or not sys.stderr.isatty():
        yield None
        return
    from rich import progress
    from rich.console import Console

    columns = (
        progress.SpinnerColumn(),
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
    )
    console = Console(file=sys.stderr)
    with progress.Progress(
        *columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False
    ) as bar:
        task = bar.add_task("", total=None)
        doing_now = ""

        def move(doing: str, done: int, total: int | None) -> None:
            nonlocal doing_now
            if doing != doing_now:
                doing_now = doing
                bar.reset(task, description=printable(doing), total=total)
            bar.update(task, completed=done, total=total)

        yield move
