"""Pruning and splitting of random graphs: valid, exact by the oracle, repeatable, and not shy."""

from __future__ import annotations

import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxcompress.graph import Model
from onnxcompress.passes.base import PassContext, PassResult
from onnxcompress.passes.pruning import SCOPES, PruningConfig
from onnxcompress.passes.pruning.filters import analyse
from tests.fuzz.checks import assert_valid, check_pruning, check_tucker, run
from tests.fuzz.choices import Choices
from tests.fuzz.graphs import KNOWN, Example, cnn_examples, make_example

FEW = settings(max_examples=60, suppress_health_check=list(HealthCheck))
IMPORTANCES = ("l1", "l2", "fpgm", "random")
SPECS = ("ratio=1.0", "ratio=0.5", "evbmf", "energy=0.9", "auto")

# Of the operators that the analysis knows these are the only grounds to keep a channel: outputs, what the network's
# own inputs fix, masks of one channel, and statistics over channels.
GROUNDS = re.compile(
    "graph output|does not come from a Conv|channel that stays|broadcast over channels|normalises over"
)


def drawn_request(c: Choices) -> tuple[PruningConfig, PassContext]:
    config = PruningConfig(c.pick([0.5, 0.25, 0.8, 0.99]), c.pick(SCOPES), c.pick(IMPORTANCES))
    return config, PassContext(seed=c.integer(0, 3), round_to=c.pick([1, 1, 4]))


@st.composite
def requests(draw: st.DrawFn) -> tuple[PruningConfig, PassContext]:
    return drawn_request(Choices.drawn(draw))


@FEW
@given(cnn_examples())
def test_strategy_draws_valid_graphs_that_run(example: Example) -> None:
    content = example.proto.SerializeToString()
    assert_valid(content)
    assert len(run(content, example.feeds)) == len(example.proto.graph.output)


@FEW
@given(cnn_examples(), requests())
def test_pruned_network_is_the_original_without_the_channels(
    example: Example, request: tuple[PruningConfig, PassContext]
) -> None:
    check_pruning(example, *request)


@FEW
@given(cnn_examples(KNOWN, heads_only=True, careful=True))
def test_known_operators_freeze_nothing_without_ground(example: Example) -> None:
    check_not_shy(example)


@FEW
@given(cnn_examples(), st.sampled_from(SPECS), st.booleans())
def test_split_network_computes_its_factors(example: Example, spec: str, prune_first: bool) -> None:
    check_split(example, spec, PassContext(), prune_first)


def check_split(example: Example, spec: str, context: PassContext, prune_first: bool) -> PassResult:
    model = Model.from_bytes(example.proto.SerializeToString())
    if prune_first:
        model = check_pruning(example, PruningConfig(0.5), context).model
    return check_tucker(example, model, spec, context)


def check_not_shy(example: Example) -> None:
    """Assert that channels stay for good reasons only, and that every free group really loses filters."""
    model = Model.from_bytes(example.proto.SerializeToString())
    _, groups = analyse(model, PassContext())
    reasons = {reason for group in groups.groups for reason in group.frozen.values()}
    assert [reason for reason in reasons if not GROUNDS.search(reason)] == []
    result = check_pruning(example, PruningConfig(0.5), PassContext())
    lost = {node for decision in result.plan.decisions for node in decision["removed"]}
    tied = {int(c) for _, rows in groups.balanced for c in rows.reshape(-1)}
    for group in groups.groups:
        if group.size >= 4 and not group.frozen and not tied & set(group.classes.tolist()):
            assert lost & set(group.producers), f"{group.producers} lost nothing"


def check_compressed(seed: int, kind: str) -> None:
    """Prune, split, or prune and split the graph of a seed, by a request of the same seed."""
    c = Choices.seeded(seed)
    example = make_example(c)
    if kind == "prune":
        check_pruning(example, *drawn_request(c))
    else:
        check_split(example, c.pick(SPECS), PassContext(round_to=c.pick([1, 4])), kind == "both")


@pytest.mark.parametrize("seed", [2568, 2699, 3890])
@pytest.mark.parametrize("kind", ["prune", "both"])
def test_seeds_that_failed_once(seed: int, kind: str) -> None:
    """Heads that did not fit their value (the generator's fault); a shuffle that an If reads (the analysis')."""
    check_compressed(seed, kind)


# Thousands of them: `pytest -m fuzz tests/fuzz`. A failure names the seed; `make_example(Choices.seeded(seed))` is it.

CHUNK = 50


@pytest.mark.fuzz
@pytest.mark.parametrize("kind", ["prune", "split", "both"])
@pytest.mark.parametrize("first", range(0, 5000, CHUNK))
def test_thousands_of_compressed_networks(first: int, kind: str) -> None:
    failures = []
    for seed in range(first, first + CHUNK):
        try:
            check_compressed(seed, kind)
        except Exception as error:
            failures.append((seed, repr(error)))
    assert failures == []


@pytest.mark.fuzz
@pytest.mark.parametrize("first", range(0, 2000, CHUNK))
def test_thousands_of_networks_freeze_nothing_without_ground(first: int) -> None:
    failures = []
    for seed in range(first, first + CHUNK):
        example = make_example(Choices.seeded(seed), KNOWN, heads_only=True, careful=True)
        try:
            check_not_shy(example)
        except Exception as error:
            failures.append((seed, repr(error)))
    assert failures == []


def test_every_block_is_drawn() -> None:
    """Hundreds of examples hold every operator of the analysis that the blocks were written for."""
    seen = {node.op_type for seed in range(300) for node in make_example(Choices.seeded(seed)).proto.graph.node}
    missing = {"Conv", "ConvTranspose", "GroupNormalization", "LayerNormalization", "LRN", "PRelu", "Split", "Slice"}
    missing |= {"Gather", "Pad", "Resize", "Upsample", "DepthToSpace", "SpaceToDepth", "Expand", "Tile", "Where", "If"}
    assert missing - seen == set()
