"""Where networks are cut into blocks."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcompress.graph import Model
from onnxcompress.passes.recovery.blocks import LEAST_LAYERS, WIDEST_CUT, comparable, find_blocks
from tests.recovery.small_classifier import original, pruned
from tests.small_models import build, node
from tests.zoo import ZOO, export


def test_inception_modules_are_blocks() -> None:
    model = Model.load("models/googlenet-digits.onnx")
    blocks = find_blocks(model, model, {})
    assert [block.outputs for block in blocks] == [
        (f"/inception{name}/Concat_output_0",) for name in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")
    ]
    assert [len(block.layers) for block in blocks] == [9, *[6] * 8]  # the stem of three and the first module


def test_residual_sums_are_cuts() -> None:
    model = Model.from_proto(export("resnet-basic"))
    kinds = {tensor.name: node.op for node in model.nodes for tensor in node.outputs}
    sources = {node.outputs[0].name: node.inputs[0].name for node in model.nodes if node.op == "Relu"}
    for block in find_blocks(model, model, {}):
        (output,) = block.outputs
        assert kinds[sources[output]] == "Add"


@pytest.mark.parametrize("name", ZOO)
def test_blocks_divide_every_network(name: str) -> None:
    model = Model.from_proto(export(name))
    blocks = find_blocks(model, model, {})
    layers = [layer for block in blocks for layer in block.layers]
    assert len(layers) == len(set(layers))
    assert all(len(block.layers) >= LEAST_LAYERS for block in blocks)
    assert all(1 <= len(block.outputs) <= WIDEST_CUT for block in blocks)
    assert blocks or len([n for n in model.nodes if n.op in ("Conv", "Gemm")]) < 2 * LEAST_LAYERS


def test_only_what_remains_of_the_original_is_compared() -> None:
    model, provenance = pruned()
    output = find_blocks(model, original(), provenance)[0].outputs[0]
    assert comparable(output, model, original(), provenance)
    assert not comparable(output, model, original(), {})  # narrower, and nobody says which channels are left
    assert not comparable(output, model, original(), {output: np.arange(3)})
    assert not comparable("elsewhere", model, original(), provenance)
    assert output not in {name for block in find_blocks(model, original(), {}) for name in block.outputs}


def test_a_cut_behind_an_activation_is_preferred() -> None:
    names = ["x"]
    nodes, constants = [], {}
    for number in range(LEAST_LAYERS):
        constants[f"w{number}"] = np.ones((6, 6, 1, 1), np.float32)
        nodes.append(node("Conv", [names[-1], f"w{number}"], f"c{number}"))
        nodes.append(node("Relu", [f"c{number}"], f"r{number}"))
        names.append(f"r{number}")
    nodes.append(node("GlobalAveragePool", [names[-1]], "pooled"))
    model = build(nodes, constants)
    assert [block.outputs for block in find_blocks(model, model, {})] == [(names[-1],)]


def test_nodes_that_only_make_an_early_output_are_no_block_of_their_own() -> None:
    nodes, constants, given = [], {}, "x"
    for number in range(3 * LEAST_LAYERS):
        if number == 2 * LEAST_LAYERS:  # a head of its own, then on from where it began
            given = f"c{LEAST_LAYERS - 1}"
        constants[f"w{number}"] = np.ones((6, 6, 1, 1), np.float32)
        nodes.append(node("Conv", [given, f"w{number}"], f"c{number}"))
        given = f"c{number}"
    early, late = f"c{2 * LEAST_LAYERS - 1}", f"c{3 * LEAST_LAYERS - 1}"
    nodes.append(node("GlobalAveragePool", [late], "pooled"))
    model = build(nodes, constants, outputs=[early, "pooled"])
    blocks = find_blocks(model, model, {})
    assert [block.outputs for block in blocks] == [(f"c{LEAST_LAYERS - 1}",), (late,)]
    assert len(blocks[1].layers) == 2 * LEAST_LAYERS
