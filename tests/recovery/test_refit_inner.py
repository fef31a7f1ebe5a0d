"""Layers around sub-graphs: what an If reads of the tensors around it is there when it runs, and no cut's secret."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxcompress.graph import Model
from onnxcompress.passes.base import PassContext
from onnxcompress.passes.recovery.blocks import LEAST_LAYERS, find_blocks
from onnxcompress.passes.recovery.refit import Refit, RefitConfig
from onnxcompress.passes.tucker import SvdConfig, SvdDecomposition, parse_svd_spec
from tests.small_models import branch, build, choice, node, run_all

LAYERS = 2 * LEAST_LAYERS
BATCHES = [{"x": np.random.default_rng(1).standard_normal((32, 6, 6, 6)).astype(np.float32)}]


def around_an_if() -> Model:
    """Convolutions in a row; an If before the last reads those in the middle, of which its inputs tell nothing."""
    random = np.random.default_rng(0)
    constants: dict[str, Any] = {"yes": np.array(True)}
    nodes = []
    for number in range(LAYERS):
        constants[f"w{number}"] = (0.4 * random.standard_normal((6, 6, 1, 1))).astype(np.float32)
        nodes.append(node("Conv", [f"r{number - 1}" if number else "x", f"w{number}"], f"c{number}", name=f"c{number}"))
        nodes.append(node("Tanh", [f"c{number}"], f"r{number}", name=f"r{number}"))
    middle = f"r{LEAST_LAYERS - 1}"
    then, other = branch(node("Neg", [middle], "b")), branch(node("Abs", [middle], "other"))
    last = [node("Add", ["c", f"r{LAYERS - 1}"], "sum"), node("Conv", ["sum", "v"], "y", name="last")]
    constants["v"] = random.standard_normal((4, 6, 1, 1)).astype(np.float32)
    return build([*nodes, choice(then, other), *last], constants, shape=("n", 6, 6, 6))


def test_layers_around_an_if_are_refitted() -> None:
    model = around_an_if()
    context = PassContext(calibration=lambda: iter(BATCHES), original=model)
    svd = SvdDecomposition(SvdConfig(parse_svd_spec("ratio=0.5")))
    split = svd.apply(model, svd.plan(model, context), context).model
    refit = Refit(RefitConfig())
    fitted = refit.apply(split, refit.plan(split, context), context).model
    wanted, before, after = (run_all(each, BATCHES[0])["y"] for each in (model, split, fitted))
    assert np.square(after - wanted).mean() < 0.5 * np.square(before - wanted).mean()


def test_what_an_if_reads_later_is_a_part_of_the_cut() -> None:
    model = around_an_if()
    middle = f"r{LEAST_LAYERS - 1}"
    assert [block.outputs for block in find_blocks(model, model, {})] == [(middle,), ("sum",)]
