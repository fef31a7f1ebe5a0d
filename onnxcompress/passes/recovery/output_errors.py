"""How far a network's outputs are from the original's: what training lowers, and by what weights are judged."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from onnxcompress.linalg.distributions import LEAST_APART, SUM_TOLERANCE
from onnxcompress.passes.recovery.graph_module import Tensors
from onnxcompress.passes.recovery.outputs import Output as Output
from onnxcompress.passes.recovery.outputs import compared_outputs as compared_outputs
from onnxcompress.runtime.tensors import classifies

# Of a tensor that is zero throughout: errors of float32 stay finite over it.
_NO_ENERGY = 1e-12


def class_scores(output: Tensor) -> Tensor | None:
    """Return an output (N, C) or (N, C, 1, ...) with C > 1 as (N, C), None where it classifies nothing."""
    return output.reshape(output.shape[:2]) if classifies(output.shape) else None


def divergence(computed: Tensor, expected: Tensor, *, apart: bool = False) -> Tensor:
    """Return KL(expected || computed) of each sample in nats, (N,); both are class scores (N, C) of one kind.

    With `apart` they are probabilities of each class by itself, whose divergences are summed.
    """
    if apart:
        wanted = expected.float()
        return _binary_losses(computed, wanted) - _binary_losses(wanted, wanted)
    first, second = log_probabilities(computed), log_probabilities(expected)
    return functional.kl_div(first, second, reduction="none", log_target=True).sum(1)


def label_losses(scores: Tensor, labels: Tensor, *, apart: bool = False, smoothing: float = 0.0) -> Tensor:
    """Return the cross-entropy of each sample with its label, (N,).

    Args:
        scores: of classes, (N, C).
        labels: (N,).
        apart: whether they are probabilities of each class by itself: of the label's 1 is wanted, of all others 0.
        smoothing: share of a label that is spread over all classes, where one excludes the others.
    """
    if apart:
        return _binary_losses(scores, functional.one_hot(labels, scores.shape[1]).float())
    # The cross-entropy of torch normalises again, which changes nothing.
    return functional.cross_entropy(log_probabilities(scores), labels, reduction="none", label_smoothing=smoothing)


def _binary_losses(probabilities: Tensor, wanted: Tensor) -> Tensor:
    # By their logits: a logarithm has no gradient where float32 has no numbers.
    logits = torch.logit(probabilities.float(), eps=LEAST_APART)
    return functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none").sum(1)


def log_probabilities(scores: Tensor) -> Tensor:
    """Return log probabilities of scores (N, C): their logarithm where they are probabilities already."""
    scores = scores.float()
    with torch.no_grad():
        normalised = bool(scores.min() >= 0) and bool((scores.sum(1) - 1).abs().max() < SUM_TOLERANCE)
    if normalised:
        return scores.clamp_min(1e-12).log()
    return functional.log_softmax(scores, 1)


def relative_error(computed: Tensor, expected: Tensor) -> Tensor:
    """Return ||computed - expected||^2 / ||expected||^2 over all samples."""
    energy = expected.float().square().sum()
    return (computed.float() - expected.float()).square().sum() / energy.clamp_min(_NO_ENERGY)


def sample_errors(
    outputs: tuple[Output, ...], computed: Tensors, expected: Tensors, weights: Tensors | None = None
) -> Tensor:
    """Return the error of each sample, summed over outputs: divergence where they classify, relative error elsewhere.

    Args:
        outputs: what is compared.
        computed, expected: {tensor: (B, ...)}.
        weights: {tensor: weights of its squared errors, broadcast over it}. Where there are none, an error is relative
            to the mean energy of these samples: their mean is `relative_error`.

    Returns:
        (B,), or (1,) where the outputs do not tell samples apart.
    """
    errors = []
    for output in outputs:
        first, second = computed[output.compared], expected[output.compared]
        scores, wanted = class_scores(first), class_scores(second)
        own = None if weights is None else weights.get(output.compared)
        is_class = own is None and scores is not None and wanted is not None
        if is_class:
            assert scores is not None
            assert wanted is not None
            errors.append(divergence(scores, wanted, apart=output.apart))
        else:
            errors.append(_relative_errors(first, second, own))
    if len({len(each) for each in errors}) > 1:
        errors = [each.mean()[None] for each in errors]
    return torch.stack(errors).sum(0)


def _relative_errors(computed: Tensor, expected: Tensor, weights: Tensor | None) -> Tensor:
    """Return the weighted ||computed - expected||^2 of each sample, (B,); (1,) of scalars."""
    missed = (computed.float() - expected.float()).square()
    samples = len(missed) if missed.dim() else 1
    if weights is None:
        weights = samples / expected.float().square().sum().clamp_min(_NO_ENERGY)
    return (weights * missed).reshape(samples, -1).sum(1)
