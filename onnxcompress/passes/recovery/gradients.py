"""What each value that a node reads contributes to the loss, to first order: gradient times value.

Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019: taking a value v to zero changes the loss
by about -(d loss / d v) v. It is taken at the operands of nodes rather than at weights, which is the paper's gate
behind a filter: there it holds whatever lies between the filter's convolution and its readers, batch normalisation
among it (before which the gradient times the weight of a filter sums to zero, as its scale has no effect).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from onnxcompress.errors import DataError
from onnxcompress.graph import Model
from onnxcompress.linalg.spectrum import Matrix
from onnxcompress.passes.base import LABELS
from onnxcompress.passes.recovery.block_errors import to_feeds
from onnxcompress.passes.recovery.graph_module import Edge, GraphModule, Tensors
from onnxcompress.passes.recovery.output_errors import (
    Output,
    class_scores,
    compared_outputs,
    divergence,
    label_losses,
    log_probabilities,
)

Array = npt.NDArray[Any]


def operand_contributions(
    model: Model,
    edges: Collection[Edge],
    batches: Iterable[Mapping[str, Array]],
    seed: int = 0,
    weights: Mapping[str, Matrix] | None = None,
) -> Iterator[dict[Edge, Array]]:
    """Stream {edge: gradient times value, in the operand's shape (B, ...)} for each batch.

    The loss of a sample is the cross-entropy with its label (`LABELS`), which is of the first output that classifies,
    as in fine-tuning. Without labels, and of other outputs, they are drawn from what the network itself answers, of a
    last Sigmoid's classes each by itself: the squares then estimate its Fisher information. Outputs that classify
    nothing are drawn from a normal distribution around the network's answer, so wide that the loss is the weighted
    squared error, as in `backward_loss`. Edges that nothing trainable lies before are left out.

    Args:
        model: is not changed.
        edges: operands of nodes.
        batches: inputs.
        seed: of what is drawn.
        weights: of outputs' squared errors, as `output_weights` gives them: of those that do not classify.

    Raises:
        UnsupportedOpError: a node cannot be computed in torch.
        DataError: there are no batches, a label is no class, or a gradient is not finite.
    """
    outputs = compared_outputs(model, model)
    compared = [output.compared for output in outputs]
    module = GraphModule(model, compared).eval()
    generator = torch.Generator().manual_seed(seed)
    own = {name: torch.from_numpy(each).float() for name, each in (weights or {}).items()}
    count = 0
    for batch in batches:
        arrays = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in batch.items()}
        labels = arrays.pop(LABELS, None)
        taps: dict[Edge, Tensor] = {}
        feeds = to_feeds(arrays, module.device)
        answers = module.run(feeds, compared, tapped=edges, taps=taps)
        losses = []
        for output in outputs:
            is_class = output.compared not in own and class_scores(answers[output.compared]) is not None
            losses.append(_loss(output, answers, labels if is_class else None, generator, own.get(output.compared)))
            labels = None if is_class else labels
        loss = torch.stack(losses).sum()
        gradients = torch.autograd.grad(loss, list(taps.values()), allow_unused=True)
        products: dict[Edge, Array] = {}
        for (edge, value), gradient in zip(taps.items(), gradients, strict=True):
            if gradient is None:
                continue
            product = gradient * value.detach()
            if not bool(product.isfinite().all()):
                raise DataError(f"the gradient at node '{edge[0]}' is NaN or infinite, at calibration batch {count}")
            products[edge] = product.numpy()
        yield products
        count += 1
    if count == 0:
        raise DataError("no calibration samples")


def _loss(
    output: Output, answers: Tensors, labels: Tensor | None, generator: torch.Generator, weights: Tensor | None
) -> Tensor:
    """Return the sum over the samples, whose gradients thus do not depend on how many there are."""
    answer = answers[output.compared]
    scores = class_scores(answer)
    if scores is None or weights is not None:
        weights = torch.ones(1) if weights is None else weights
        drawn = (2.0 * weights).sqrt() * torch.randn(answer.shape, generator=generator)
        # Its gradient is that of the weighted squared error to a target so drawn.
        return (drawn * answer).sum()
    if labels is None and output.apart:
        wanted = torch.bernoulli(scores.detach().clamp(0.0, 1.0), generator=generator)
        return divergence(scores, wanted, apart=True).sum()
    if labels is None:
        likely = log_probabilities(scores.detach()).exp()
        labels = torch.multinomial(likely, 1, generator=generator)[:, 0]
    elif int(labels.max()) >= scores.shape[1]:
        raise DataError(
            f"training data: label {int(labels.max())} is not a class; the model has classes 0 to {scores.shape[1] - 1}"
        )
    return label_losses(scores, labels, apart=output.apart).sum()
