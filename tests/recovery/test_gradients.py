"""Gradient times weight, the importance of Molchanov et al. (2019)."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcompress.errors import DataError
from onnxcompress.graph import Model
from onnxcompress.passes.recovery.gradients import gradient_products
from tests.recovery.small_classifier import original, samples
from tests.zoo import export, sample_inputs


def test_the_product_predicts_what_scaling_a_filter_does() -> None:
    """d loss / d log(scale) of a filter and its bias, against the loss of a scaled copy."""
    model = original()
    batches = list(samples(64, 7, labels=True, batch=64)())
    (products,) = gradient_products(model, batches)
    conv = [node for node in model.nodes if node.op == "Conv"][2]
    weight, bias = conv.inputs[1].name, conv.inputs[2].name

    def loss(scale: float, number: int) -> float:
        changed = model.copy()
        target = next(node for node in changed.nodes if node.name == conv.name)
        for position in (1, 2):
            values = model.values(conv.inputs[position]).copy()
            values[number] *= scale
            changed.set_input(target, position, values)
        import onnxruntime

        session = onnxruntime.InferenceSession(changed.to_bytes(), providers=["CPUExecutionProvider"])
        (scores,) = session.run(None, {"input": batches[0]["input"]})
        return float(-np.log(scores[np.arange(64), batches[0][""]]).mean())

    predicted = products[weight].reshape(16, -1).sum(1) + products[bias]
    number = int(np.argmax(np.abs(predicted)))
    measured = (loss(1.01, number) - loss(0.99, number)) / 0.02
    assert measured == pytest.approx(predicted[number], rel=0.05)


def test_without_labels_it_ranks_much_the_same() -> None:
    model = original()

    def scores(labels: bool) -> np.ndarray:
        total = 0.0
        for products in gradient_products(model, samples(512, 7, labels=labels, batch=8)()):
            weight = next(node for node in model.nodes if node.op == "Conv").inputs[1].name
            total = total + products[weight].reshape(16, -1).sum(1) ** 2
        return np.asarray(total)

    first, second = scores(True), scores(False)
    ranks = [np.argsort(np.argsort(each)) for each in (first, second)]
    assert np.corrcoef(*ranks)[0, 1] > 0.6


def test_outputs_that_classify_nothing_have_gradients_too() -> None:
    model = Model.from_proto(export("unet"))
    (products,) = gradient_products(model, [sample_inputs("unet")])
    assert all(np.isfinite(each).all() for each in products.values())
    assert sum(float(np.abs(each).sum()) for each in products.values()) > 0


def test_there_must_be_samples() -> None:
    with pytest.raises(DataError, match="no calibration samples"):
        list(gradient_products(original(), []))
