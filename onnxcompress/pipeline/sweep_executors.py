"""Where the points of a sweep run: one after another, in several processes, or on a Dask cluster."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import signal
import time
import warnings
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.synchronize import Event
from types import FrameType
from typing import Any

from onnxcompress.errors import EXIT_BUG, Notice, ProviderUnavailableError, RecipeError
from onnxcompress.pipeline.sweep_work import Outcome, Task, limit_worker, run_in_worker, run_task
from onnxcompress.report.progress import Progress
from onnxcompress.report.text import duration
from onnxcompress.termination import ENDING, signals_handled

_CONNECT_SECONDS = 10
_NOT_STARTED = (
    "--jobs: no process of the sweep came up. Each runs the script that started it: call sweep in it under "
    "if __name__ == '__main__':, or leave jobs out"
)
_NO_WORKERS = (
    "--scheduler {}: the cluster has no workers; the sweep waits until one is started (dask worker {}), Ctrl-C ends it"
)


class Clock:
    """How long a sweep will go on: by the points that it has finished."""

    def __init__(self, total: int) -> None:
        self._started, self._total, self._done = time.monotonic(), total, 0

    def finished(self) -> None:
        """Count one more point."""
        self._done += 1

    def text(self) -> str:
        """Return `point 3 of 24, about 12 min left`."""
        text = f"point {min(self._done + 1, self._total)} of {self._total}"
        if self._done == 0:
            return text
        each = (time.monotonic() - self._started) / self._done
        return f"{text}, about {duration(each * (self._total - self._done))} left"


class _Stop(BaseException):
    """Ctrl-C: a training ends early on KeyboardInterrupt and keeps its best, which would pass for a finished point."""


def run_here(tasks: Sequence[Task], tell: Progress) -> Generator[Outcome, None, None]:
    """Run tasks one after another."""
    clock = Clock(len(tasks))
    for task in tasks:
        where = f"{clock.text()} ({task.name})"

        def step(doing: str, done: int, total: int | None, where: str = where) -> None:
            tell(f"{where}: {doing}", done, total)

        yield run_task(task, step)
        clock.finished()


def run_in_processes(tasks: Sequence[Task], jobs: int, tell: Progress) -> Generator[Outcome, None, None]:
    """Run tasks in `jobs` processes, each with its part of the cores; outcomes come as they finish.

    Each process is an executor of its own: where one is killed, as on lack of memory, its point is lost and no other.

    Raises:
        RecipeError: no process comes up, as from a script that starts a sweep again when it is imported.
    """
    workers, clock, finished, waiting = min(jobs, len(tasks)), Clock(len(tasks)), 0, deque(tasks)
    context = multiprocessing.get_context("spawn")
    came_up = context.Event()
    executors = [_process(number, workers, came_up) for number in range(workers)]
    running: dict[Future[Outcome], tuple[int, Task]] = {}

    def start(number: int) -> None:
        if not waiting:
            return
        task = waiting.popleft()
        try:
            future = executors[number].submit(run_in_worker, task)
        except BrokenProcessPool:
            executors[number].shutdown()
            executors[number] = _process(number, workers, came_up)
            future = executors[number].submit(run_in_worker, task)
        running[future] = number, task

    try:
        tell(clock.text(), 0, len(tasks))
        for number in range(workers):
            start(number)
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                number, task = running.pop(future)
                try:
                    outcome = future.result()
                except BrokenProcessPool:
                    if not came_up.is_set():
                        raise RecipeError(_NOT_STARTED) from None
                    reason = "its process ended without a word, as on lack of memory; try fewer --jobs"
                    outcome = Outcome(task.name, task.key, {"reason": reason, "exit_code": EXIT_BUG, "seconds": None})
                start(number)
                yield outcome
                finished += 1
                clock.finished()
                tell(clock.text(), finished, len(tasks))
    except BaseException:
        for executor in executors:
            for process in list((getattr(executor, "_processes", None) or {}).values()):
                process.terminate()
        raise
    finally:
        for executor in executors:
            executor.shutdown(wait=True, cancel_futures=True)


def _process(number: int, workers: int, came_up: Event) -> ProcessPoolExecutor:
    """Return an executor of one process, one of so many, which tells by an event that it came up."""
    context = multiprocessing.get_context("spawn")
    arguments = (number, workers, came_up)
    return ProcessPoolExecutor(1, mp_context=context, initializer=limit_worker, initargs=arguments)


def run_on_cluster(tasks: Sequence[Task], address: str, tell: Progress) -> Generator[Outcome, None, None]:
    """Run tasks on a Dask cluster; outcomes come as they finish.

    Raises:
        ProviderUnavailableError: `distributed` is not installed, or nobody answers at the address (any more).
    """
    try:
        import distributed
    except ImportError as error:
        raise ProviderUnavailableError(
            "--scheduler needs dask.distributed, which is not installed: pip install 'onnxcompress[sweep]', "
            "or --jobs N on this machine"
        ) from error
    try:
        # A client of what is no address complains again when it goes.
        distributed.comm.addressing.get_address_host(address)
        client = distributed.Client(address, timeout=_CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ProviderUnavailableError(f"--scheduler {address}: no Dask scheduler answers there ({reason})") from error
    clock = Clock(len(tasks))
    with _without_its_log(), client, client.as_current():
        futures = {client.submit(run_task, task, pure=False, retries=1): task for task in tasks}
        try:
            tell(clock.text(), 0, len(tasks))
            if not _has_workers(client):
                warnings.warn(Notice(_NO_WORKERS.format(address, address)), stacklevel=2)
            for number, future in enumerate(distributed.as_completed(futures), 1):
                if future.cancelled():
                    raise ProviderUnavailableError(
                        f"--scheduler {address}: the Dask scheduler is gone; points that were finished are kept, and "
                        "the same command goes on with the others"
                    )
                failure = future.exception()
                if failure is None:
                    yield future.result()
                else:
                    task, lost = futures[future], f"the cluster lost it ({type(failure).__name__}: {failure})"
                    reason = " ".join(lost.split())
                    yield Outcome(task.name, task.key, {"reason": reason, "exit_code": EXIT_BUG, "seconds": None})
                clock.finished()
                tell(clock.text(), number, len(tasks))
        finally:
            client.cancel(list(futures))


def _has_workers(client: Any) -> bool:
    """Wait for the first worker of a cluster that is starting."""
    end = time.monotonic() + _CONNECT_SECONDS
    with contextlib.suppress(OSError):  # a scheduler that is gone is told by the futures
        while not client.nthreads():
            if time.monotonic() > end:
                return False
            time.sleep(0.1)
    return True


@contextlib.contextmanager
def _without_its_log() -> Iterator[None]:
    """Hold back what Dask's client logs: a scheduler that goes is told in one line, not by its traceback."""
    log = logging.getLogger("distributed.client")
    previous = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        log.setLevel(previous)


@contextlib.contextmanager
def interrupts_stop() -> Iterator[None]:
    """Ctrl-C ends the block by a KeyboardInterrupt that nothing inside it catches, and what tells the process to end
    by `Terminated`; what a training has saved stays for the next time."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise _Stop

    try:
        with signals_handled(signal.SIGINT, by=stop), signals_handled(*ENDING):
            yield
    except _Stop:
        raise KeyboardInterrupt from None
