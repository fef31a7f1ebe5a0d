"""Time of the transformations of the real GoogLeNet, beside the same done by hand with torch and tensorly.

    python tests/benchmarks/bench_transforms.py [MODEL] [--repeat N]

By hand is what a user writes from the papers: ranks by EVBMF on the SVD of the unfoldings, `partial_tucker` on each
weight, three convolutions for one; and for pruning, the l1 norms of every layer's filters and the slices of its weight
in both directions. What differs is the algebra, and that by hand no graph is rewritten. Not part of the suite.
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


def prune_by_hand(weights: dict[str, np.ndarray], ratio: float) -> dict[str, object]:
    """Slice every weight by the l1 norms of its filters, and as many of its inputs, with torch alone."""
    import torch

    sliced: dict[str, object] = {}
    with torch.inference_mode():
        for name, array in weights.items():
            weight = torch.from_numpy(array.copy())
            kept = [max(1, round((1 - ratio) * size)) for size in weight.shape[:2]]
            for axis in (0, 1):
                norms = weight.abs().sum(dim=[d for d in range(weight.dim()) if d != axis])
                weight = weight.index_select(axis, norms.topk(kept[axis]).indices.sort().values)
            sliced[name] = weight
    return sliced


def main() -> int:
    from onnxcompress.graph import Model
    from onnxcompress.passes.base import PassContext
    from onnxcompress.passes.pruning import FilterPruning, PruningConfig
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
    pruning = FilterPruning(PruningConfig(0.4))

    def both() -> object:
        pruned = pruning.apply(model, pruning.plan(model, PassContext()), PassContext()).model
        return decomposition.apply(pruned, decomposition.plan(pruned, context), context)

    layers = {node.name: model.values(node.inputs[1]) for node in model.nodes if node.op == "Conv"}
    both_own = seconds_of(both, arguments.repeat)
    pruned_by_hand = seconds_of(lambda: prune_by_hand(layers, 0.4), arguments.repeat)
    small = {name: np.asarray(weight) for name, weight in prune_by_hand(weights, 0.4).items()}
    both_by_hand = pruned_by_hand + seconds_of(lambda: tucker_by_hand(small), 1)
    out(f"40 % of the filters, then Tucker: {both_own:.3f} s; by hand {both_by_hand:.3f} s ")
    out(f"(pruning {pruned_by_hand:.3f} s); ratio {both_by_hand / both_own:.1f} x\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
