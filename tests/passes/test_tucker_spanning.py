"""Input factors that span axes of the kernel: kH x 1, 1 x kW, 1x1 compute what one kernel computes, as 1 x kW first."""

from __future__ import annotations

import json

import numpy as np
import pytest

from onnxcompress.analysis.cost import model_cost
from onnxcompress.errors import PassError, RecipeError
from onnxcompress.graph import Model
from onnxcompress.passes.base import PassContext, PassResult, Plan
from onnxcompress.passes.tucker import TuckerConfig, TuckerDecomposition, verify_splits
from onnxcompress.passes.tucker.decomposition import split_cost
from onnxcompress.passes.tucker.factors import SplitShape, decompose, split_weights
from onnxcompress.passes.tucker.sites import find_conv_sites
from tests.passes.test_tucker_exactness import CASES, TOLERANCE
from tests.passes.tucker_models import conv_model, difference, input_of, run, weight_of

SPANNED = [
    (name, spans)
    for name, (op, weight, _, _) in CASES.items()
    if op == "Conv"
    for at in range(1, len(weight) - 2)
    if np.prod(weight[2 : 2 + at]) > 1 and np.prod(weight[2 + at :]) > 1
    for spans in (at, at + 2 - len(weight))
]


def split(model: Model, ranks: tuple[int, int], spans: int, factors: tuple[str, ...] = ("in", "core", "out")):
    (site,) = find_conv_sites(model, PassContext())[0]
    shape = SplitShape(*ranks, with_out="out" in factors, spans=spans)
    cost = split_cost(site, shape)
    decision = {
        "node": "conv",
        "kind": "tucker",
        "ranks": list(ranks),
        "channels": [site.in_channels // site.groups, site.out_channels // site.groups],
        "groups": site.groups,
        "factors": list(factors),
        "spans": spans,
        "error": split_weights(site, shape, decompose(site, shape)).relative_error,
        "macs": list(cost.macs) if cost.macs else None,
        "params": list(cost.params),
    }
    plan = Plan.from_json(json.loads(json.dumps(Plan("tucker", (decision,)).to_json())))
    return TuckerDecomposition(TuckerConfig()).apply(model, plan, PassContext())


def full_ranks(model: Model, spans: int) -> tuple[int, int]:
    (site,) = find_conv_sites(model, PassContext())[0]
    spanned = int(np.prod(site.kernel_shape[:spans] if spans > 0 else site.kernel_shape[spans:]))
    return site.in_channels // site.groups * spanned, site.out_channels // site.groups


@pytest.mark.parametrize(("name", "spans"), SPANNED)
def test_full_rank_reproduces_the_convolution(name: str, spans: int) -> None:
    _, weight, shape, attributes = CASES[name]
    model, x = conv_model(weight_of(*weight), shape, **attributes), input_of(*shape)
    result = split(model, full_ranks(model, spans), spans)
    first, core, last = (node.inputs[1].shape[2:] for node in result.model.nodes)
    kernel, at = weight[2:], spans % len(shape[2:])
    begin, end = [*kernel[:at], *(1 for _ in kernel[at:])], [*(1 for _ in kernel[:at]), *kernel[at:]]
    assert [list(first), list(core)] == ([begin, end] if spans > 0 else [end, begin])
    assert set(last) == {1}
    assert difference(run(model, x), run(result.model, x)) < TOLERANCE


@pytest.mark.parametrize(("name", "spans"), SPANNED)
def test_a_truncated_split_is_proved_and_costs_what_it_says(name: str, spans: int) -> None:
    _, weight, shape, attributes = CASES[name]
    model, x = conv_model(weight_of(*weight), shape, **attributes), input_of(*shape)
    most_in, most_out = full_ranks(model, spans)
    result = split(model, (max(1, most_in // 9), max(1, most_out // 2)), spans)
    assert verify_splits(model, result, {"x": x}).difference < TOLERANCE
    assert difference(run(model, x), run(result.model, x)) > 1e-3
    (decision,) = result.plan.decisions
    before, after = model_cost(model), model_cost(result.model)
    assert [before.macs, after.macs] == list(decision["macs"])
    assert [before.params, after.params] == list(decision["params"])


def test_the_self_check_sees_one_changed_weight_of_a_spanning_factor() -> None:
    model = conv_model(weight_of(8, 6, 3, 3), (1, 6, 9, 9))
    result: PassResult = split(model, (9, 8), 1, ("in", "core"))
    first = result.model.nodes[0]
    changed = first.inputs[1].values.copy()
    changed.flat[0] += np.linalg.norm(changed)
    first.inputs[1].values = changed
    with pytest.raises(PassError, match="its factors are"):
        verify_splits(model, result, {"x": input_of(1, 6, 9, 9)})


@pytest.mark.parametrize(
    ("weight", "ranks", "spans"),
    [
        ((8, 6, 3, 3), (19, 8), 1),
        ((8, 6, 3, 3), (19, 8), -1),
        ((8, 6, 3, 3), (6, 8), 2),
        ((8, 6, 3, 3), (6, 8), -2),
        ((8, 6, 1, 5), (6, 8), 1),
        ((8, 6, 1, 5), (6, 8), -1),
        ((8, 6, 5), (6, 8), 1),
    ],
)
def test_a_plan_that_spans_what_it_cannot_is_refused(weight, ranks, spans) -> None:
    model = conv_model(weight_of(*weight), (1, 6, *(9 for _ in weight[2:])))
    decision = {"node": "conv", "kind": "tucker", "ranks": list(ranks), "spans": spans}
    with pytest.raises(RecipeError, match="node 'conv'"):
        TuckerDecomposition(TuckerConfig()).rewrite(model.copy(), Plan("tucker", (decision,)), PassContext())
