"""Every example of the ONNX standard survives a removal in front of it: what it computes stays, or the channel does."""

from __future__ import annotations

import pytest

import onnxcompress
from onnxcompress.errors import ModelError
from tests.fuzz import standard

# Where its If has a constant condition, onnxruntime takes the branch in, whose D has one axis too many for Range.
NOT_FOLDED = "test_affine_grid_"
# What the other input of their Concat holds in the idle channel is not zero.
NOT_IDLE = {
    "test_causal_conv_with_state_with_past_state_expanded",
    "test_causal_conv_with_state_with_bias_and_past_state_expanded",
    "test_causal_conv_with_state_silu_with_past_state_expanded",
}


def removed_and_compared(example: standard.Example, *, constants: bool) -> bool | None:
    """Return whether the idle channel left; None where the example says nothing."""
    network = standard.between_convolutions(example, constants=constants)
    if network is None or (example.name in NOT_IDLE if constants else example.name.startswith(NOT_FOLDED)):
        return None
    share = 1.0 / example.inputs[example.position].shape[1] + 1e-3
    try:
        result = onnxcompress.compress(
            network.model, prune=share, round_to=1, importance="l1", tucker="off", latency=False, verify=constants
        )
    except ModelError as error:
        # Shapes that are inputs get other values from the self-check; Scan's list of inputs has a gap.
        if not any(reason in str(error) for reason in ("does not run", "leaves out", "opset")):
            raise
        return None
    pruned = result.model.to_proto()
    # The first of all nodes: clean-up may have merged another into it.
    filters = next(
        tensor.dims[0] for tensor in pruned.graph.initializer if tensor.name == pruned.graph.node[0].input[1]
    )
    assert not set(network.differing(standard.run(pruned, network.feeds))) - network.lossy, example.name
    return bool(filters < example.inputs[example.position].shape[1])


@pytest.mark.parametrize("example", standard.one_of_each_operator(), ids=lambda each: each.name)
def test_an_example_of_each_operator(example: standard.Example) -> None:
    removed_and_compared(example, constants=True)


@pytest.mark.slow
@pytest.mark.parametrize(("constants", "least"), [(True, 300), (False, 150)])
def test_all_examples(constants: bool, least: int) -> None:
    found = [removed_and_compared(example, constants=constants) for example in standard.examples()]
    assert found.count(True) > least
