"""Binding to CPUs, and the time that threads wait for one."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from onnxcompress.runtime.device import core_cpus, cpu_affinity, physical_cores
from onnxcompress.runtime.scheduling import WaitingTime, bound_to
from onnxcompress.runtime.session import Session, SessionSettings
from tests.runtime.networks import classifier

linux = pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="the system does not count waiting time")


def test_a_cpu_for_each_core() -> None:
    cores, allowed = core_cpus(), cpu_affinity()
    if cores is None or allowed is None:
        pytest.skip("the system does not say which CPUs there are")
    assert set(cores) <= set(allowed)
    assert len(cores) == physical_cores()


@linux
def test_binding_ends() -> None:
    before = os.sched_getaffinity(0)
    one = min(before)
    with bound_to([one]):
        assert os.sched_getaffinity(0) == {one}
    with pytest.raises(ZeroDivisionError), bound_to([one]):
        raise ZeroDivisionError
    with bound_to([]):
        assert os.sched_getaffinity(0) == before
    assert os.sched_getaffinity(0) == before


@linux
def test_threads_of_a_pool_are_bound() -> None:
    cpu = max(os.sched_getaffinity(0))
    before = set(os.listdir("/proc/self/task"))
    session = Session(classifier().SerializeToString(), settings=SessionSettings(threads=2, worker_cpus=(cpu,)))
    started = set(os.listdir("/proc/self/task")) - before
    (thread,) = started
    until = time.perf_counter() + 10
    # The thread binds itself, once it runs.
    while os.sched_getaffinity(int(thread)) != {cpu} and time.perf_counter() < until:
        time.sleep(0.001)
    assert os.sched_getaffinity(int(thread)) == {cpu}
    del session


def spin(seconds: float) -> None:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


@linux
def test_who_shares_a_cpu_waits() -> None:
    cpu = min(os.sched_getaffinity(0))
    busy = f"import os\nos.sched_setaffinity(0, [{cpu}])\nprint(flush=True)\nwhile True: pass"
    other = subprocess.Popen([sys.executable, "-c", busy], stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None
        other.stdout.readline()
        with WaitingTime() as waited, bound_to([cpu]):
            before = waited()
            spin(0.3)
            shared = waited() - before
    finally:
        other.kill()
        other.communicate()
    assert shared > 0.02e9


@linux
def test_only_threads_that_started_meanwhile_count() -> None:
    stop = threading.Event()
    before = threading.Thread(target=stop.wait)
    before.start()
    waited = WaitingTime()
    after = threading.Thread(target=stop.wait)
    after.start()
    with waited:
        assert waited() >= 0
        assert waited._files is not None
        assert len(waited._files) == 2
    stop.set()
    for thread in (before, after):
        thread.join()
    assert waited() == 0


def test_a_system_that_counts_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("onnxcompress.runtime.scheduling._TASKS", str(tmp_path / "nothing"))
    with WaitingTime() as waited:
        spin(0.001)
        assert waited() == 0
