"""A/A: a model against itself, on a quiet machine and with another process on one core.

    python tests/benchmarks/bench_latency_aa.py [--model googlenet ...] [--threads 1 ...] [--load quiet ...]
        [--batch 1] [--runs 20]

Each measurement must hold 1.00 in its 95 % interval and be narrower than 3 % to each side, in 19 of 20 runs. Loads:
`quiet` starts nothing; `niced` is a process of lower priority (nice 10) that computes without end; `pinned` is one of
normal priority bound to the last CPU, which on two threads takes half of a core that the model needs, too.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from onnxcompress.evaluation.latency import LatencySettings, measure_latency

DATA = Path(__file__).parents[3] / "shared" / "data"
MODELS = {
    "googlenet": DATA / "googlenet-bvlc.onnx",
    "squeezenet": DATA / "squeezenet-1.0.onnx",
    "digits": Path(__file__).parents[2] / "models" / "googlenet-digits.onnx",
}
SPIN = "while True: pass"


@contextlib.contextmanager
def load(name: str) -> Iterator[None]:
    """Keep a core busy meanwhile."""
    if name == "quiet":
        yield
        return
    last = max(os.sched_getaffinity(0))
    first = (
        f"import os; os.nice(10)\n{SPIN}"
        if name == "niced"
        else f"import os; os.sched_setaffinity(0, [{last}])\n{SPIN}"
    )
    process = subprocess.Popen([sys.executable, "-c", first])
    try:
        time.sleep(0.3)
        yield
    finally:
        process.kill()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, action="append")
    parser.add_argument("--threads", type=int, action="append")
    parser.add_argument("--load", choices=["quiet", "niced", "pinned"], action="append")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--runs", type=int, default=20)
    asked = parser.parse_args()
    print("| model | batch | threads | load | hold 1.00 | within 3 % | both | widest | interrupted | p50 ms | s each |")
    print("|---|---|---|---|---|---|---|---|---|---|---|", flush=True)
    for model in asked.model or [name for name, path in MODELS.items() if path.exists()]:
        for threads in asked.threads or [1, 2]:
            for name in asked.load or ["quiet", "niced"]:
                with load(name):
                    print(row(model, asked.batch, threads, name, asked.runs), flush=True)


def row(model: str, batch: int, threads: int, name: str, runs: int) -> str:
    """Return a row of the table."""
    holds, narrow, both, widths, seconds, interrupted, p50 = 0, 0, 0, [], [], [], []
    for seed in range(runs):
        started = time.perf_counter()
        settings = LatencySettings(batch=batch, threads=threads, seed=seed)
        seen = measure_latency(MODELS[model], MODELS[model], settings=settings)
        seconds.append(time.perf_counter() - started)
        interrupted.append(seen.original_interrupted)
        p50.append(seen.original_ms.p50)
        low, high = seen.interval or (0.0, float("inf"))
        is_held, is_narrow = low <= 1.0 <= high, low > 0.97 and high < 1.03
        holds, narrow, both = holds + is_held, narrow + is_narrow, both + (is_held and is_narrow)
        widths.append(max(seen.speedup / low if low else float("inf"), high / seen.speedup) - 1)
    cells = [
        model,
        str(batch),
        str(threads),
        name,
        *(f"{count} of {runs}" for count in (holds, narrow, both)),
        f"{max(widths):.1%}",
        f"{statistics.mean(interrupted):.0%}",
        f"{statistics.median(p50):.2f}",
        f"{statistics.mean(seconds):.1f}",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
