"""Where a run took place: versions, machine, memory."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from typing import Any

_LIBRARIES = ("numpy", "onnx", "onnx-graphsurgeon", "onnxruntime", "onnxruntime-gpu", "tensorly", "torch")


def versions() -> dict[str, str]:
    """Return the versions of onnxcompress, Python and the libraries that are installed, without importing them."""
    from onnxcompress import __version__

    found = {"onnxcompress": __version__, "python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Return system, architecture, processor and the number of cores this process may use."""
    return {
        "system": platform.system(),
        "release": platform.release(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": usable_cores(),
    }


def usable_cores() -> int:
    """Return the number of cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def peak_rss_bytes() -> int | None:
    """Return the most memory this process has held resident, None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts kibibytes, macOS bytes.
    return int(peak if sys.platform == "darwin" else peak * 1024)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as stream:
            named = (line.partition(":")[2].strip() for line in stream if line.startswith("model name"))
            return next(named, "") or platform.processor()
    except OSError:
        return platform.processor()
