"""Proof on the user's model: each split node computes what one node with the reconstructed weight computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxcompress.errors import PassError
from onnxcompress.graph import Model
from onnxcompress.linalg.spectrum import Matrix
from onnxcompress.passes.base import PassResult
from onnxcompress.passes.verification import Verification, verify

Array = npt.NDArray[Any]

_ROUNDING = {2: 2e-2, 4: 1e-5, 8: 1e-7}
"""Relative error that rounding the factors to an element type of so many bytes may add."""


def verify_splits(model: Model, result: PassResult, feeds: Mapping[str, Array]) -> Verification:
    """Run the split model against the original whose split weights are the products of their stored factors.

    Args:
        model: what the Tucker or SVD pass was given.
        result: what it returned.
        feeds: one batch of inputs.

    Raises:
        PassError: the stored factors are not as close to the original weight as the plan says.
    """
    return verify(result.plan.pass_name, reconstructed_reference(model, result), result.model, feeds)


def reconstructed_reference(model: Model, result: PassResult) -> Model:
    """Return the original with the weight of every split node replaced by the product of its factors.

    Raises:
        PassError: the product is further from the weight than the plan says.
    """
    reference = model.copy()
    nodes = {node.name: node for node in reference.nodes}
    producers = {tensor.name: node for node in result.model.nodes for tensor in node.outputs}
    for decision in result.plan.decisions:
        node = nodes[decision["node"]]
        chain = _chain(result.model, producers[node.outputs[0].name], len(decision.get("factors", "12")))
        weight = model.values(node.inputs[1])
        product = _pointwise_product(chain, node) if decision["kind"] == "svd" else _kernel(chain, decision)
        _check_error(decision, weight, product)
        reference.set_input(node, 1, product.astype(weight.dtype))
    return reference


def _chain(model: Model, last: gs.Node, length: int) -> list[tuple[gs.Node, Matrix]]:
    """Return the nodes of a split and their weights, in order."""
    chain = [last]
    while len(chain) < length:
        chain.append(chain[-1].inputs[0].inputs[0])
    return [(node, np.asarray(model.values(node.inputs[1]), np.float64)) for node in reversed(chain)]


def _pointwise_product(chain: list[tuple[gs.Node, Matrix]], node: gs.Node) -> Matrix:
    first, second = (weight.reshape(weight.shape[:2]) for _, weight in chain)
    filters_first = node.op == "Conv" or bool(node.attrs.get("transB", 0))
    product = second @ first if filters_first else first @ second
    return product.reshape(*product.shape, *chain[0][1].shape[2:])


def _kernel(chain: list[tuple[gs.Node, Matrix]], decision: Mapping[str, Any]) -> Matrix:
    """Multiply the factors back into the core, group by group, in the layout of the original weight."""
    weights = dict(zip(decision["factors"], chain, strict=True))
    groups = int(decision["groups"])
    core_node, core = weights["core"]
    is_transpose = core_node.op == "ConvTranspose"
    # Of each group (R_out, R_in, positions of the kernel).
    blocks = core.reshape(groups, core.shape[0] // groups, core.shape[1], -1)
    blocks = np.swapaxes(blocks, 1, 2) if is_transpose else blocks
    shape = list(core.shape[2:])
    if "in" in weights:
        first = weights["in"][1]
        spread = first.reshape(groups, blocks.shape[2], first.shape[1], -1)
        # The input factor's positions come first: it spans leading axes of the kernel, or none.
        blocks = np.einsum("gorp,griq->goiqp", blocks, spread)
        blocks = blocks.reshape(*blocks.shape[:3], -1)
        shape = [a * b for a, b in zip(first.shape[2:], shape, strict=True)]
    if "out" in weights:
        last = weights["out"][1]
        blocks = np.einsum("gcip,goc->goip", blocks, last.reshape(groups, -1, last.shape[1]))
    blocks = np.swapaxes(blocks, 1, 2) if is_transpose else blocks
    kernel: Matrix = blocks.reshape(-1, blocks.shape[2], *shape)
    return kernel


def _check_error(decision: Mapping[str, Any], weight: Array, product: Matrix) -> None:
    double = np.asarray(weight, np.float64)
    size = float(np.linalg.norm(double))
    seen = float(np.linalg.norm(double - product)) / size if size > 0.0 else 0.0
    planned = float(decision["error"])
    if abs(seen - planned) > _ROUNDING[weight.dtype.itemsize]:
        raise PassError(
            f"self-check of node '{decision['node']}': its factors are {seen:.3g} (relative) away from its weight, "
            f"the plan says {planned:.3g}"
        )
