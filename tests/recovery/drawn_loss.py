"""The loss of `backward_loss`, written from its definition in torch, and its gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch.nn import functional

from onnxcompress.graph import Model
from onnxcompress.passes.recovery.graph_module import GraphModule

Arrays = dict[str, np.ndarray]
SEED = 7


def drawn(answer: torch.Tensor, generator: np.random.Generator, weights: np.ndarray | None = None) -> torch.Tensor:
    """The loss of an output, from its definition, with the targets that the generator draws; weights None: 1."""
    if answer.dim() > 1 and answer.shape[1] > 1 and all(size == 1 for size in answer.shape[2:]):
        scores = answer.reshape(answer.shape[:2])
        probable = bool((scores >= 0).all()) and bool(((scores.sum(1) - 1).abs() < 1e-2).all())
        logarithms = scores.log() if probable else functional.log_softmax(scores, 1)
        noise = torch.from_numpy(generator.gumbel(size=tuple(scores.shape)).astype(np.float32))
        return functional.nll_loss(logarithms, (logarithms.detach() + noise).argmax(1), reduction="sum")
    noise = torch.from_numpy(generator.standard_normal(tuple(answer.shape)).astype(np.float32))
    own = torch.ones(1) if weights is None else torch.from_numpy(weights).float()
    target = answer.detach() - noise / (2 * own).sqrt()
    return (own * (answer - target).square()).sum()


def gradients_by_torch(
    model: Model,
    batch: Arrays,
    names: Sequence[str],
    compared: Sequence[str],
    weights: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Gradients at `names` of the losses at `compared`."""
    module = GraphModule(model).eval()
    feeds = {name: torch.from_numpy(array).requires_grad_() for name, array in batch.items()}
    values = module.run(feeds, [*compared, *names])
    generator = np.random.default_rng(SEED)
    loss = torch.stack([drawn(values[name], generator, (weights or {}).get(name)) for name in compared]).sum()
    gradients = torch.autograd.grad(loss, [values[name] for name in names])
    return {name: gradient.numpy() for name, gradient in zip(names, gradients, strict=True)}


def assert_close(found: np.ndarray, expected: np.ndarray, tolerance: float = 1e-4) -> None:
    assert found.shape == expected.shape
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())
