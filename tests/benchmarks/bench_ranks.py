"""What a convolution's input ranks keep of its response: of all ranks from one factorization, beside each rank alone.

Run: python tests/benchmarks/bench_ranks.py
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np

from onnxcompress.linalg.moments import accumulate
from onnxcompress.linalg.parallel import parallel_map
from onnxcompress.linalg.regression import energies_by_rank, project_inputs, response_spectrum, solve_ridge

POSITIONS = 9
LAYERS = ((96, 128), (128, 192), (160, 320), (192, 384))
SHARES = (0.125, 0.1875, 0.25, 0.375, 0.5, 0.625, 0.75)


def timed(work: Callable[[], list[np.ndarray]]) -> tuple[float, list[np.ndarray]]:
    """The best time of three runs, with one BLAS thread as in the allocation, and what the work gives."""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        found = parallel_map(lambda run: run(), [work])[0]
        times.append(time.perf_counter() - started)
    return min(times), found


def main() -> int:
    """Print a line for each layer."""
    generator = np.random.default_rng(0)
    for inputs, outputs in LAYERS:
        size = POSITIONS * inputs
        mixing = generator.standard_normal((size, size)) / np.arange(1, size + 1) ** 0.5
        x = (generator.standard_normal((2 * size, size)) @ mixing.T).astype(np.float32)
        slope = generator.standard_normal((size, outputs))
        own = accumulate(x, (x @ slope).astype(np.float32)).centred()
        ranks = [round(share * inputs) for share in SHARES]
        basis = np.linalg.qr(generator.standard_normal((inputs, ranks[-1])))[0]

        def together(own=own, basis=basis, ranks=ranks) -> list[np.ndarray]:
            return list(energies_by_rank(own.xx, own.xy, basis, POSITIONS, ranks))

        def alone(own=own, basis=basis, ranks=ranks) -> list[np.ndarray]:
            found = []
            for rank in ranks:
                xx, xy = project_inputs(own.xx, own.xy, basis[:, :rank], POSITIONS)
                fitted = solve_ridge(xx, xy, np.zeros_like(xy), 0.0)
                found.append(response_spectrum(xx, fitted).energies)
            return found

        after, one = timed(together)
        before, other = timed(alone)
        differ = max(float(np.abs(a - b).max() / b.max()) for a, b in zip(one, other, strict=True))
        sys.stdout.write(
            f"{inputs:4d} -> {outputs:4d}: {before * 1e3:7.1f} ms each alone, {after * 1e3:6.1f} ms together, "
            f"ratio {before / after:4.1f}; energies differ by {differ:.0e}\n"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
