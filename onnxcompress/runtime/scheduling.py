"""What the scheduler of the operating system does to a measurement: binding to CPUs, and how long threads waited.

A thread that is ready to run and has no CPU is a disturbance of the run that needs it. Linux counts that time for each
thread (`/proc/PID/task/TID/schedstat`, its second number); other systems do not say, and there nothing is counted.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from types import TracebackType

_TASKS = "/proc/self/task"


@contextlib.contextmanager
def bound_to(cpus: Sequence[int]) -> Iterator[None]:
    """Let the calling thread, and threads that it starts meanwhile, run on these CPUs only; no CPUs change nothing."""
    if not cpus:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class WaitingTime:
    """How long the calling thread and those started since this object was made have waited for a CPU.

    The threads are looked up at the first reading, so that the pools of sessions made in between are in. A context:
    the files it reads stay open until its end.
    """

    def __init__(self) -> None:
        self._others = _threads() - {threading.get_native_id()}
        self._files: list[int] | None = None

    def __enter__(self) -> WaitingTime:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for file in self._files or ():
            os.close(file)
        self._files = []

    def __call__(self) -> int:
        """Return nanoseconds, all threads added up; 0 where the system does not count them."""
        if self._files is None:
            self._files = self._opened()
        return sum(_waited(file) for file in self._files)

    def _opened(self) -> list[int]:
        files = []
        for thread in sorted(_threads() - self._others):
            with contextlib.suppress(OSError):
                file = os.open(f"{_TASKS}/{thread}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
                files.append(file)
        return files


def _threads() -> set[int]:
    try:
        return {int(name) for name in os.listdir(_TASKS)}
    except OSError:
        return set()


def _waited(file: int) -> int:
    try:
        return int(os.pread(file, 64, 0).split()[1])
    except (OSError, IndexError):
        # The thread has ended, or the kernel keeps no such statistics.
        return 0
