"""Weights that are stored twice are stored once: equal ones, and a matrix beside its transpose.

A network whose last layer is its embedding, turned, stores it once and turns it as it is loaded. Folding makes two of
it, which other passes treat as two layers; where they still are what they were in the end, one is enough again.
Runtimes compute a Transpose of a constant once, as they load a model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxcompress.errors import RecipeError
from onnxcompress.graph import Model
from onnxcompress.passes.base import Decision, PassContext, Plan, Provenance, Skipped
from onnxcompress.passes.cleanup.rule import Rule, excluded, pinned_names
from onnxcompress.tensor_bytes import Array, is_packed

_LEAST_BYTES, _LEAST_TURNED_BYTES = 4096, 65536


class WeightSharing(Rule):
    """Stores equal weights once, and of a matrix and its transpose one."""

    name: ClassVar[str] = "share"
    does: ClassVar[str] = "stores weights once that are equal, or turned around"
    comes_last: ClassVar[bool] = True

    def found(self, model: Model, context: PassContext) -> Iterator[Decision | Skipped]:
        """Yield the weights that another one stands for."""
        pinned = pinned_names(model)
        alike: dict[tuple[Any, ...], list[gs.Constant]] = defaultdict(list)
        for name, tensor in model.constants().items():
            values = model.values(tensor)
            if values.nbytes < _LEAST_BYTES or is_packed(values):
                continue
            # However a matrix is turned, its first and its last number stay where they are.
            ends = values.reshape(-1)[:: values.size - 1].tobytes()
            kept = alike[values.dtype.str, tuple(sorted(values.shape)), ends]
            other = next((each for each in kept if _turned(each.values, values) is not None), None)
            if other is None or name in pinned:
                kept.append(tensor)
            elif (reason := excluded(tensor.outputs, context)) is not None:
                yield Skipped(tensor.outputs[0].name, reason)
            else:
                turned = _turned(other.values, values)
                yield {"node": tensor.outputs[0].name, "weight": name, "of": other.name, "turned": turned}

    def rewrite(self, model: Model, plan: Plan, context: PassContext) -> Provenance:
        """Let the planned weights' readers read those that stand for them.

        Raises:
            RecipeError: the plan names weights that the model does not have, or that differ in it.
        """
        constants = model.constants()
        places = {id(node): place for place, node in enumerate(model.nodes)}
        for decision in plan.decisions:
            one, other = (constants.get(str(decision[key])) for key in ("weight", "of"))
            if one is None or other is None or _turned(other.values, one.values) != decision["turned"]:
                raise RecipeError(f"plan: clean-up stores '{decision['weight']}' once, which this model does not twice")
            source = other
            readers = sorted({id(node): node for node in one.outputs}.values(), key=lambda node: places[id(node)])
            if decision["turned"]:
                source = model.new_variable(f"{one.name}_turned")
                name = model.unique_name(f"{readers[0].name}_turned")
                turn = gs.Node("Transpose", name, {"perm": [1, 0]}, [other], [source])
                model.insert_before(readers[0], [turn])
            for reader in readers:
                for position in [at for at, read in enumerate(reader.inputs) if read is one]:
                    reader.inputs[position] = source
        return {}


def _turned(first: Array, second: Array) -> bool | None:
    """Return whether the second is the transpose of the first, False if it is the same, None if neither."""
    if first.shape == second.shape and _same(first, second):
        return False
    turns = first.ndim == 2 and first.shape[::-1] == second.shape and second.nbytes >= _LEAST_TURNED_BYTES
    return True if turns and _same(first.T, second) else None


def _same(first: Array, second: Array) -> bool:
    return (
        first.dtype == second.dtype and np.ascontiguousarray(first).tobytes() == np.ascontiguousarray(second).tobytes()
    )
