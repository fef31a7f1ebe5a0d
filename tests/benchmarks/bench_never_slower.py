"""Whether compressed models are at least as fast as the originals, on every setting.

    PYTHONPATH=models python -m tests.benchmarks.bench_never_slower [NAME ...] [--batch N ...] [--threads N ...]

For each network, batch size and number of threads: `--tucker auto` and `--prune 0.3 --round-to auto`, decided under
that setting, then measured against the original in alternating rounds. `slower` marks a ratio whose whole 95 % interval
lies below 1.0. `clean` is what clean-up alone gives, so that a speed-up is not credited to compression. Not part of the
suite. The exit status is the number of slower cells.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from onnxcompress import compress
from onnxcompress.evaluation.latency import LatencySettings, measure_together
from onnxcompress.runtime.providers import CPU_PROVIDER

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
REAL = {"googlenet": SHARED / "googlenet-bvlc.onnx", "squeezenet": SHARED / "squeezenet-1.0.onnx"}
ZOO = (
    "vgg-bn",
    "resnet-basic",
    "resnet-bottleneck",
    "mobilenet-v2",
    "efficientnet",
    "shufflenet-v2",
    "densenet",
    "inception-v3",
    "unet",
    "yolov8",
)
RECIPES: dict[str, dict[str, object]] = {
    "clean": {},
    "tucker auto": {"tucker": "auto"},
    "prune 0.3": {"prune": 0.3, "round_to": "auto"},
}


def content_of(name: str) -> bytes:
    """The model `real-googlenet`, `real-squeezenet`, or one of the zoo."""
    if name.startswith("real-"):
        return REAL[name.removeprefix("real-")].read_bytes()
    from tests.zoo.exported import export

    return export(name).SerializeToString()


def main() -> int:
    """Print the table, a line as soon as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=[*(f"real-{name}" for name in REAL), *ZOO])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeat", type=int, default=60, help="runs of each model")
    arguments = parser.parse_args()
    write = sys.stdout.write
    write(f"{'network':<20} {'batch':>5} {'threads':>7}   original ms" + "".join(f"   {r:>26}" for r in RECIPES) + "\n")
    slower = 0
    for name in arguments.names:
        content = content_of(name)
        for batch in arguments.batch:
            for threads in arguments.threads:
                setting = {"batch": batch, "threads": threads, "repeat": arguments.repeat}
                made = [compress(content, **options, **setting).model.to_bytes() for options in RECIPES.values()]
                settings = LatencySettings(batch=batch, threads=threads)
                timed = measure_together([content, *made], CPU_PROVIDER, settings)
                cells = []
                for number in range(1, len(made) + 1):
                    each = timed.between(0, number)
                    low, high = each.interval or (0.0, 0.0)
                    is_slower = high < 1.0
                    slower += is_slower
                    mark = " slower" if is_slower else " noisy" if each.noisy else ""
                    cells.append(f"{each.speedup:.2f} ({low:.2f}-{high:.2f}){mark}")
                first = timed.between(0, 1).original_ms.p50
                write(f"{name:<20} {batch:>5} {threads:>7}   {first:>11.3f}" + "".join(f"   {c:>26}" for c in cells))
                write("\n")
                sys.stdout.flush()
    write(f"{slower} slower\n")
    return min(slower, 100)


if __name__ == "__main__":
    sys.exit(main())
