"""Where a model runs: threads, CPU affinity, inputs and outputs that stay in the accelerator's memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from onnxcompress.runtime.session import Session
from onnxcompress.runtime.tensors import Array

_TOPOLOGY = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


def cpu_affinity() -> tuple[int, ...] | None:
    """Return the numbers of the logical CPUs this process may use, or None where the system does not say."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    return tuple(sorted(os.sched_getaffinity(0)))


def core_cpus() -> tuple[int, ...] | None:
    """Return one logical CPU of each core this process may use, or None where the system does not say."""
    allowed = cpu_affinity()
    if allowed is None:
        return None
    try:
        cores = {Path(_TOPOLOGY.format(number)).read_text(): number for number in reversed(allowed)}
    except OSError:
        return allowed
    return tuple(sorted(cores.values()))


def physical_cores() -> int:
    """Return how many cores this process may use: onnxruntime's own choice of threads, hyper-threads not counted."""
    return len(core_cpus() or ()) or os.cpu_count() or 1


def single_run(session: Session, feeds: Mapping[str, Array]) -> Callable[[], object]:
    """Return a callable that runs the batch once, with all copies from and to numpy."""
    names = [info.name for info in session.outputs]
    arrays = dict(feeds)
    return lambda: session.raw.run(names, arrays)


def bound_run(session: Session, feeds: Mapping[str, Array], device: str, device_id: int = 0) -> Callable[[], object]:
    """Return a callable that runs the batch once on inputs that already lie on `device`, leaving the outputs there."""
    import onnxruntime

    binding = session.raw.io_binding()
    for name, array in feeds.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array, device, device_id))
    for info in session.outputs:
        binding.bind_output(info.name, device, device_id)

    def run() -> None:
        session.raw.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return run
