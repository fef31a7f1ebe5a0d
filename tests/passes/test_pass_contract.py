"""What the base class holds every pass to."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest

from onnxcompress.errors import PassError
from onnxcompress.graph import Model
from onnxcompress.passes.base import Pass, PassContext, Plan, Provenance
from tests.small_models import build, node


class Narrowing(Pass):
    """A faulty pass: it takes a column of a weight and tells nobody behind it."""

    name: ClassVar[str] = "narrow"

    def plan(self, model: Model, context: PassContext) -> Plan:
        return Plan(self.name, ({"node": "first"},))

    def rewrite(self, model: Model, plan: Plan, context: PassContext) -> Provenance:
        first = model.nodes[0]
        model.set_input(first, 1, first.inputs[1].values[:, :-1])
        return {}


def small(layers: int) -> Model:
    weights = {f"w{i}": np.ones((6, 6), np.float32) for i in range(layers)}
    names = ["x", *(f"t{i}" for i in range(layers))]
    nodes = [node("MatMul", [names[i], f"w{i}"], names[i + 1]) for i in range(layers)]
    return build(nodes, weights, shape=("n", 6))


def test_a_rewrite_that_contradicts_itself_is_the_passs_fault() -> None:
    one, model = Narrowing(), small(2)
    with pytest.raises(PassError, match="pass 'narrow' produced an invalid model"):
        one.apply(model, one.plan(model, PassContext()), PassContext())


def test_outputs_keep_their_shape() -> None:
    one, model = Narrowing(), small(1)
    with pytest.raises(PassError, match=r"changed the graph's inputs or outputs: .* became "):
        one.apply(model, one.plan(model, PassContext()), PassContext())


def test_a_plan_of_another_pass_is_refused() -> None:
    with pytest.raises(PassError, match="a plan of pass 'prune' was given to pass 'narrow'"):
        Narrowing().apply(small(1), Plan("prune"), PassContext())
