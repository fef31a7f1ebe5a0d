"""Processor seconds of `onnxcompress --help` and of `import onnxcompress`.

Run: python tests/benchmarks/bench_startup.py
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys

RUNS = 9


def processor_seconds(*arguments: str) -> float:
    """Return the median user and system time of a Python process over several runs."""
    seconds = []
    for _ in range(RUNS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return statistics.median(seconds)


def main() -> None:
    """Print the figures, beside an empty Python process."""
    for name, arguments in {
        "python -c pass": ("-c", "pass"),
        "import onnxcompress": ("-c", "import onnxcompress"),
        "onnxcompress --help": ("-m", "onnxcompress", "--help"),
    }.items():
        print(f"{name:22s} {processor_seconds(*arguments):.3f} s")


if __name__ == "__main__":
    main()
