"""Time of the transformations of the real GoogLeNet, beside the same done by hand with torch and tensorly.

    python tests/benchmarks/bench_transforms.py [MODEL] [--repeat N]

By hand is what a user writes from the papers: ranks by EVBMF on the SVD of the unfoldings, `partial_tucker` on each
weight, three convolutions for one. Both give the ranks of FACTS; what differs is the algebra. Not part of the suite.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
DEFAULT_MODEL = ROOT.parent / "shared" / "data" / "googlenet-bvlc.onnx"
STEM = "^conv1/7x7_s2$"


def seconds_of(work: Callable[[], object], repeat: int) -> float:
    """The best of `repeat` runs: what the work costs when nothing else runs."""
    times = []
    for _ in range(repeat):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def tucker_by_hand(weights: dict[str, np.ndarray]) -> dict[str, list[object]]:
    """Split every weight with torch and tensorly alone; return the layers."""
    import tensorly
    import torch
    from tensorly.decomposition import partial_tucker

    from onnxcompress.linalg import evbmf

    layers: dict[str, list[object]] = {}
    with tensorly.backend_context("pytorch"), torch.inference_mode():
        for name, array in weights.items():
            kernel = torch.from_numpy(array.copy())
            ranks = []
            for mode in (0, 1):
                unfolded = tensorly.unfold(kernel, mode).numpy()
                singular = np.linalg.svd(unfolded)[1]  # as the reference implementation of EVBMF takes it
                ranks.append(max(evbmf(singular, unfolded.shape).rank, min(8, unfolded.shape[0])))
            (core, (last, first)), _ = partial_tucker(kernel, rank=ranks, modes=[0, 1], init="svd")
            shape = kernel.shape
            convs = [
                torch.nn.Conv2d(shape[1], ranks[1], 1, bias=False),
                torch.nn.Conv2d(ranks[1], ranks[0], tuple(shape[2:]), bias=False),
                torch.nn.Conv2d(ranks[0], shape[0], 1),
            ]
            convs[0].weight = torch.nn.Parameter(first.T[:, :, None, None].contiguous())
            convs[1].weight = torch.nn.Parameter(core)
            convs[2].weight = torch.nn.Parameter(last[:, :, None, None].contiguous())
            layers[name] = list(convs)
    return layers


def main() -> int:
    from onnxcompress.graph import Model
    from onnxcompress.passes.base import PassContext
    from onnxcompress.passes.tucker import TuckerConfig, TuckerDecomposition

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path, default=DEFAULT_MODEL)
    parser.add_argument("--repeat", type=int, default=3, help="runs, of which the best counts (default 3)")
    arguments = parser.parse_args()
    if not arguments.model.is_file():
        sys.stderr.write(f"{arguments.model} is absent: give the path of an ONNX model\n")
        return 1

    model = Model.load(arguments.model)
    context = PassContext(exclude=(STEM,))
    started = time.perf_counter()
    decomposition = TuckerDecomposition(TuckerConfig.from_spec("evbmf"))
    loading = time.perf_counter() - started

    def ours() -> object:
        return decomposition.apply(model, decomposition.plan(model, context), context)

    split = {decision["node"] for decision in decomposition.plan(model, context).decisions}
    weights = {node.name: model.values(node.inputs[1]) for node in model.nodes if node.name in split}
    own = seconds_of(ours, arguments.repeat)
    out = sys.stdout.write
    out(f"{arguments.model.name}: Tucker at EVBMF ranks, {len(split)} convolutions\n")
    out(f"  loading tensorly                 {loading:8.3f} s   once, before\n")
    out(f"  onnxcompress, plan and rewrite   {own:8.3f} s   best of {arguments.repeat}\n")
    hand = seconds_of(lambda: tucker_by_hand(weights), 1)
    out(f"  by hand, torch and tensorly      {hand:8.3f} s   one run; the weights only, no graph is rewritten\n")
    out(f"  ratio                            {hand / own:8.1f} x\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
