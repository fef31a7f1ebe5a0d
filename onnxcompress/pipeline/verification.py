"""The self-check of a run: every rewrite is proved on the user's own model before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy.typing as npt

from onnxcompress.graph import Model
from onnxcompress.passes.base import PassContext, PassResult, Samples
from onnxcompress.passes.cleanup import Cleanup, LinearMerging, Lowering
from onnxcompress.passes.pruning import FilterPruning, verify_pruning
from onnxcompress.passes.quantization import (
    Float16Conversion,
    Int8Quantization,
    calibration_batch,
    few_samples,
    verify_quantization,
)
from onnxcompress.passes.recovery.allocation import Allocation
from onnxcompress.passes.tucker import SvdDecomposition, TuckerDecomposition, verify_splits
from onnxcompress.passes.verification import Verification, sample_feeds, verify

Feeds = Mapping[str, npt.NDArray[Any]]
"""One batch of inputs, {graph input name: array (B, ...)}."""

Verifier = Callable[[Model, PassResult, Feeds], Verification]


def _verify_equal(before: Model, result: PassResult, feeds: Feeds) -> Verification:
    """A clean-up changes nothing that the model computes."""
    return verify(result.plan.pass_name, before, result.model, feeds)


_VERIFIERS: Mapping[str, Verifier] = MappingProxyType(
    {
        Cleanup.name: _verify_equal,
        LinearMerging.name: _verify_equal,
        Lowering.name: _verify_equal,
        FilterPruning.name: verify_pruning,
        Allocation.name: verify_splits,
        TuckerDecomposition.name: verify_splits,
        SvdDecomposition.name: verify_splits,
    }
)

_QUANTIZATIONS = frozenset({Int8Quantization.name, Float16Conversion.name})


def verify_stage(
    before: Model,
    result: PassResult,
    feeds: Callable[[], Feeds],
    context: PassContext,
    evaluation: Samples | None = None,
) -> Verification | None:
    """Compare what a pass made with what its plan says it should be; None for a pass that has no such proof.

    A quantised model only answers on values as in its calibration data: it is compared on those, and a plan of int8
    that is replayed without them is not compared again. Half precision needs none; without them it is compared on what
    the model will be evaluated on, and on random input only where there is nothing else.

    Args:
        before: the model that the pass was given.
        result: what it returned.
        feeds: gives one random batch of inputs.
        context: what the pass was given.
        evaluation: samples that the result will be evaluated on; None where there are none.

    Raises:
        PassError: they differ: a bug, and nothing may be written.
        ModelError: a quantised model answers nothing of what it should.
    """
    name = result.plan.pass_name
    if not result.modified:
        return None
    if name in _QUANTIZATIONS:
        own = calibration_batch(before, context)
        if own is None and name == Int8Quantization.name:
            return None
        own = own or few_samples(before, evaluation)
        return verify_quantization(before, result, own or feeds(), random=own is None)
    verifier = _VERIFIERS.get(name)
    if verifier is None:
        return None
    verification = verifier(before, result, feeds())
    verification.require()
    return verification


__all__ = ["Feeds", "sample_feeds", "verify_stage"]
