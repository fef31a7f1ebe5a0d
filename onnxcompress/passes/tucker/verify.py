"""Proof on the user's model: each split node computes what one node with the reconstructed weight computes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxcompress.errors import PassError
from onnxcompress.graph import Model
from onnxcompress.linalg.spanning import joined_kernel
from onnxcompress.linalg.spectrum import Matrix, energy, energy_of_difference, working_type
from onnxcompress.passes.base import Decision, PassResult
from onnxcompress.passes.execution import WeightMakers
from onnxcompress.passes.verification import Verification, verify
from onnxcompress.tensor_bytes import release_mapped

Array = npt.NDArray[Any]

_ROUNDING = {2: 2e-2, 4: 1e-5, 8: 1e-7}
"""Relative error that rounding the factors to an element type of so many bytes may add."""

_SMALLEST = {2: 2.0**-24, 4: 2.0**-149, 8: 2.0**-1074}
"""The step between the smallest numbers of such a type: a weight near it has fewer digits than others."""


def verify_splits(model: Model, result: PassResult, feeds: Mapping[str, Array]) -> Verification:
    """Run the split model against the original whose split weights are the products of their stored factors.

    Args:
        model: what the Tucker or SVD pass was given.
        result: what it returned.
        feeds: one batch of inputs.

    Raises:
        PassError: the stored factors are not as close to the original weight as the plan says.
    """
    reference, made = reconstructed_reference(model, result)
    return verify(result.plan.pass_name, reference, result.model, feeds, made)


def reconstructed_reference(model: Model, result: PassResult) -> tuple[Model, WeightMakers]:
    """Return the original whose split nodes have weights of their own, and what makes these: the products of factors.

    A maker raises PassError where its product is further from the weight than the plan says.
    """
    reference = model.copy()
    nodes = {node.name: node for node in reference.nodes}
    producers = {tensor.name: node for node in result.model.nodes for tensor in node.outputs}
    made: dict[str, Callable[[], Array]] = {}
    for decision in result.plan.decisions:
        node = nodes[decision["node"]]
        chain = _chain(producers[node.outputs[0].name], len(decision.get("factors", "12")))
        weight = model.values(node.inputs[1])
        own = reference.new_constant(f"{node.inputs[1].name}_{node.name}", weight)
        node.inputs[1] = own
        made[own.name] = partial(_product, decision, node, chain, weight)
    return reference, made


def _product(decision: Decision, node: gs.Node, chain: Sequence[gs.Node], weight: Array) -> Array:
    """Return the product of a split's factors in the weight's type.

    Raises:
        PassError: it is further from the weight than the plan says.
    """
    dtype = working_type(weight)
    factors = [(each, np.asarray(Model.values(each.inputs[1]), dtype)) for each in chain]
    product = _pointwise_product(factors, node) if decision["kind"] == "svd" else _kernel(factors, decision)
    _check_error(decision, weight, product)
    release_mapped(weight)
    return product.astype(weight.dtype)


def _chain(last: gs.Node, length: int) -> list[gs.Node]:
    """Return the nodes of a split, in order."""
    chain = [last]
    while len(chain) < length:
        chain.append(chain[-1].inputs[0].inputs[0])
    return chain[::-1]


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
        # (G, R_out P, R_in) by (G, R_in, I Q), and the positions behind the channels again.
        _, outputs, inputs, positions = blocks.shape
        rows = np.swapaxes(blocks, 2, 3).reshape(groups, -1, inputs) @ spread.reshape(groups, inputs, -1)
        rows = rows.reshape(groups, outputs, positions, *spread.shape[2:])
        blocks = joined_kernel(np.moveaxis(rows, 2, -1), 3, first.shape[2:], shape)
        shape = [a * b for a, b in zip(first.shape[2:], shape, strict=True)]
    if "out" in weights:
        last = weights["out"][1]
        rows = last.reshape(groups, -1, last.shape[1]) @ blocks.reshape(*blocks.shape[:2], -1)
        blocks = rows.reshape(groups, -1, *blocks.shape[2:])
    blocks = np.swapaxes(blocks, 1, 2) if is_transpose else blocks
    kernel: Matrix = blocks.reshape(-1, blocks.shape[2], *shape)
    return kernel


def _check_error(decision: Mapping[str, Any], weight: Array, product: Matrix) -> None:
    size, missing = energy(weight), energy_of_difference(weight, product)
    seen = math.sqrt(missing / size) if size > 0.0 else 0.0
    planned = float(decision["error"])
    steps = _SMALLEST[weight.dtype.itemsize] * math.sqrt(weight.size / size) if size > 0.0 else 0.0
    if abs(seen - planned) > _ROUNDING[weight.dtype.itemsize] + steps:
        raise PassError(
            f"self-check of node '{decision['node']}': its factors are {seen:.3g} (relative) away from its weight, "
            f"the plan says {planned:.3g}"
        )
