"""Signals that tell a process to end: they unwind what is at work, so that its temporary files are removed."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

from onnxcompress.errors import Terminated

ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
"""What a scheduler and a closed terminal send."""

Handler = Callable[[int, FrameType | None], object]


def raise_terminated(number: int, frame: FrameType | None) -> NoReturn:
    """Handle a signal by an exception."""
    raise Terminated(signal.Signals(number).name)


@contextlib.contextmanager
def signals_handled(*numbers: int, by: Handler = raise_terminated) -> Iterator[None]:
    """Handle signals inside the block; those that the caller has ignored (`nohup`) stay ignored.

    Only the main thread can; in others nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # None: handled by what is not Python.
    mine = [number for number in numbers if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    previous = {number: signal.signal(number, by) for number in mine}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
