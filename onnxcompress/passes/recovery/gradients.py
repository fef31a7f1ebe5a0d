"""What each weight contributes to the loss, to first order: gradient times weight.

Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019: removing a filter changes the loss by
about the sum of g w over its weights; its importance is the mean of that sum squared over batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from onnxcompress.errors import DataError
from onnxcompress.graph import Model
from onnxcompress.passes.base import LABELS
from onnxcompress.passes.recovery.block_errors import to_feeds
from onnxcompress.passes.recovery.graph_module import GraphModule, Tensors
from onnxcompress.passes.recovery.output_errors import Output, class_scores, compared_outputs, log_probabilities

Array = npt.NDArray[Any]


def gradient_products(
    model: Model, batches: Iterable[Mapping[str, Array]], seed: int = 0
) -> Iterator[dict[str, npt.NDArray[np.float64]]]:
    """Stream {weight name: gradient times weight, in the weight's shape} for each batch.

    The loss is the cross-entropy with the labels (`LABELS`). Without labels they are drawn from what the network itself
    answers: the squares then estimate its Fisher information. Outputs that classify nothing are drawn from a normal
    distribution around the network's answer, as wide as its values.

    Raises:
        UnsupportedOpError: a node cannot be trained through.
        DataError: there are no batches, or a gradient is not finite.
    """
    module = GraphModule(model).eval()
    outputs = compared_outputs(model, model)
    generator = torch.Generator().manual_seed(seed)
    count = 0
    for batch in batches:
        arrays = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in batch.items()}
        labels = arrays.pop(LABELS, None)
        answers = module.run(to_feeds(arrays, module.device), [output.compared for output in outputs])
        loss = torch.stack([_loss(output, answers, labels, generator) for output in outputs]).sum()
        gradients = torch.autograd.grad(loss, list(module.weights.values()), allow_unused=True)
        products: dict[str, npt.NDArray[np.float64]] = {}
        for (name, weight), gradient in zip(module.weights.items(), gradients, strict=True):
            if gradient is not None:
                if not bool(gradient.isfinite().all()):
                    raise DataError(f"the gradient of weight '{name}' is NaN or infinite at batch {count}")
                products[name] = (gradient * weight.detach()).double().numpy()
        yield products
        count += 1
    if count == 0:
        raise DataError("no calibration samples")


def _loss(output: Output, answers: Tensors, labels: Tensor | None, generator: torch.Generator) -> Tensor:
    answer = answers[output.compared]
    scores = class_scores(answer)
    if scores is None:
        spread = answer.detach().std().clamp_min(1e-12)
        noise = torch.randn(answer.shape, generator=generator) * spread
        return functional.mse_loss(answer, answer.detach() + noise) / spread.square()
    logarithms = log_probabilities(scores)
    if labels is None:
        labels = torch.multinomial(logarithms.detach().exp(), 1, generator=generator)[:, 0]
    return functional.nll_loss(logarithms, labels)
