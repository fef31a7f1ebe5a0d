"""How much a layer's error matters: the damage at the model's output when that layer alone is truncated.

The damage is the sum over the outputs: the divergence KL(original || truncated) of those that classify, the relative
squared error (`output_weights`) of the others. Both grow with the square of a small disturbance, that is, in proportion
to the share of a layer's response energy that is missed; their ratio is the layer's sensitivity. Each layer is
disturbed by a truncation of its own weights, and only what comes behind it runs again.

Of classes the damage is the square of the mean root of the samples' divergences, not their mean, which a few samples
decide: among 240 images of a GoogLeNet the mean root over 48 told the layers' damages on the others as well as the mean
over 96 (rms of the logarithm 0.23 and 0.22; the mean over 48: 0.27).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcompress.graph import Model
from onnxcompress.linalg.distributions import kind_of, kl_divergence, probabilities
from onnxcompress.linalg.spectrum import Matrix
from onnxcompress.passes.recovery.output_weights import weights_of
from onnxcompress.passes.recovery.outputs import judged_tensors
from onnxcompress.passes.recovery.refit_layers import (
    RefitLayer,
    bias_of,
    bias_place,
    bias_tensor,
    weight_of,
    write_bias,
)
from onnxcompress.passes.recovery.refit_waves import Part, Waves

Array = npt.NDArray[Any]

_LEAST_PROBABILITY = 1e-9

TYPICAL_ERROR = 0.06
"""The share of a response that is taken away to measure a sensitivity: about what compression takes."""


@dataclass(frozen=True)
class Disturbance:
    """A layer truncated: its slope (K I, O) then, how its bias shifts (O,), and the share of its response missed."""

    slope: Matrix
    shift: Matrix
    error: float


def measure_sensitivities(
    model: Model,
    layers: Sequence[RefitLayer],
    disturbances: Mapping[str, Disturbance],
    batches: Iterable[Mapping[str, Array]],
    sharers: Mapping[str, Sequence[str]] | None = None,
    numbers: Collection[str] = (),
) -> dict[str, float]:
    """Return {layer: damage at the output for each unit of its relative response error}; see `measure_damages`.

    Args:
        model, layers, batches: as `measure_damages` takes them.
        disturbances: {layer: how it is disturbed}.
        sharers: {layer: it and those that share its weight}, which are disturbed with it; None: every layer is alone.
        numbers: as `measure_damages` takes them.
    """
    together = sharers or {node: (node,) for node in disturbances}
    disturbed = {node: dict.fromkeys(together[node], own) for node, own in disturbances.items()}
    damages = measure_damages(model, layers, disturbed, batches, numbers)
    return {node: damage / disturbances[node].error for node, damage in damages.items()}


def measure_damages(
    model: Model,
    layers: Sequence[RefitLayer],
    disturbances: Mapping[str, Mapping[str, Disturbance]],
    batches: Iterable[Mapping[str, Array]],
    numbers: Collection[str] = (),
) -> dict[str, float]:
    """Return {name: damage at the output of layers disturbed together}.

    Args:
        model: the original.
        layers: of the original against itself: chains of one node.
        disturbances: {name: {layer: how it is disturbed}}.
        batches: a few dozen samples, which stay in memory.
        numbers: tensors that do not classify, whatever their shape.
    """
    by_name = {layer.node: layer for layer in layers}
    model = _with_plain_biases(model, [by_name[node] for together in disturbances.values() for node in together])
    waves = Waves(model, {layer.node: layer.chain for layer in layers})
    outputs = judged_tensors(model)
    nodes = {node.name: node for node in model.nodes}
    current = [dict(batch) for batch in batches]
    sizes = [len(next(iter(batch.values()))) for batch in current]
    given = [tensor.name for tensor in model.graph.inputs]
    first = {name: min(waves.depth[node] for node in together) for name, together in disturbances.items()}
    reference: list[dict[str, Array]] = []
    error_weights: dict[str, Matrix] = {}
    found: dict[str, float] = {}
    for depth in range(max(first.values(), default=-1) + 1):
        live = waves.live(depth, outputs)
        part = Part(model, waves.nodes_before(depth), given, live)
        current, given = [part.run(batch) for batch in current], live
        own = [name for name, start in first.items() if start == depth]
        if not own:
            continue
        disturbed = sorted({node for name in own for node in disturbances[name]})
        weights = {
            tensor.name: model.values(tensor)
            for node in disturbed
            for tensor in (nodes[node].inputs[1], bias_tensor(by_name[node], nodes))
            if tensor is not None
        }
        later = set().union(*(waves.nodes_before(each) for each in range(depth + 1, waves.count + 1)))
        behind = Part(model, later, [*live, *weights], outputs)
        if not reference:
            reference = [behind.run({**batch, **weights}) for batch in current]
            error_weights = weights_of(sizes, reference, numbers)
        for name in own:
            changed = {**weights}
            for node, disturbance in disturbances[name].items():
                changed.update(_changed(model, by_name[node], disturbance))
            seen = [behind.run({**batch, **changed}) for batch in current]
            found[name] = sum(
                _damage(
                    [one[output] for one in reference],
                    [one[output] for one in seen],
                    error_weights.get(output),
                    sum(sizes),
                )
                for output in outputs
            )
    return found


def _changed(model: Model, layer: RefitLayer, disturbance: Disturbance) -> dict[str, Array]:
    nodes = {node.name: node for node in model.nodes}
    node = nodes[layer.node]
    weight = model.values(node.inputs[1])
    slope = disturbance.slope.reshape(layer.original.shape)
    changed: dict[str, Array] = {node.inputs[1].name: weight_of(slope, node, weight)}
    tensor = bias_tensor(layer, nodes)
    if tensor is not None:
        bias = model.values(tensor)
        changed[tensor.name] = (bias + disturbance.shift).astype(bias.dtype)
    return changed


def _with_plain_biases(model: Model, layers: Collection[RefitLayer]) -> Model:
    """Return the model with a number for each output in the bias of every layer that has one, a Gemm's beta in it.

    What is added behind a MatMul is its own then: exporters give all layers one constant of zeros.
    """
    plain = model.copy()
    nodes = {node.name: node for node in plain.nodes}
    for layer in layers:
        node, place = nodes[layer.node], bias_place(layer, nodes)
        if place is not None and node.op == "Gemm":
            write_bias(plain, [node], bias_of(plain, node, layer.outputs))
        elif place is not None and layer.adder is not None:
            plain.set_input(*place, plain.values(place[0].inputs[place[1]]))
    return plain


def _damage(reference: Sequence[Array], seen: Sequence[Array], weights: Matrix | None, samples: int) -> float:
    """Return the damage of one output, batch by batch; `weights` of its squared errors where it does not classify."""
    if weights is None:
        first, second = (np.concatenate(each) for each in (reference, seen))
        return _divergence(first.reshape(len(first), -1), second.reshape(len(second), -1))
    missed = (np.square(other.astype(np.float64) - one) for one, other in zip(reference, seen, strict=True))
    return sum(float((weights * each).sum()) for each in missed) / samples


def _divergence(first: Array, second: Array) -> float:
    kind = kind_of(first)
    p, q = (probabilities(scores, kind, _LEAST_PROBABILITY) for scores in (first, second))
    return float(np.sqrt(kl_divergence(p, q)).mean() ** 2)
