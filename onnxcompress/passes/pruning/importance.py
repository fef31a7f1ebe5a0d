"""How much a filter matters: one score for each class of channels that leave together.

l1          sum of absolute weights: Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017
l2          Euclidean norm of the weights: He et al., Soft Filter Pruning, IJCAI 2018
fpgm        distance to the geometric median: He et al., Filter Pruning via Geometric Median, CVPR 2019
activation  mean absolute activation at the consumers: Molchanov et al., Pruning Convolutional Neural Networks for
            Resource Efficient Inference, ICLR 2017
taylor      squared first-order change of the loss when the channel is taken away, averaged over samples: Molchanov et
            al., Importance Estimation for Neural Network Pruning, CVPR 2019
response    damage at the output once the channel's readers are fitted anew without it, for each share of the model's
            MACs that it saves: see `recovery.removal`
random      Mittal et al., Studying the Plasticity in Deep Convolutional Neural Networks, 2018 (the baseline)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxcompress.analysis.channels import FIXED, ChannelGroups
from onnxcompress.analysis.channels.labels import Labels
from onnxcompress.analysis.cost import model_cost
from onnxcompress.errors import DataError
from onnxcompress.graph import Model
from onnxcompress.passes.base import PassContext, Samples
from onnxcompress.tensor_bytes import release_mapped

Scores = npt.NDArray[np.float64]

_BLOCK_WEIGHTS = 1 << 22

IMPORTANCES = ("l1", "l2", "fpgm", "activation", "taylor", "response", "random")


def class_scores(model: Model, groups: ChannelGroups, importance: str, context: PassContext) -> Scores:
    """Return a score for every class, shape (classes,); 1.0 is the mean of a class's own producer.

    A class with filters in several producers (a residual chain) gets the mean of their scores. Those of `taylor` are
    changes of one loss and those of `response` damages at one output: they compare across layers, and 1.0 is the mean
    of all.

    Raises:
        DataError: `activation`, `taylor` or `response` without calibration data.
        UnsupportedOpError: `taylor`, and a node cannot be computed in torch.
    """
    count = int(groups.class_of.max(initial=-1)) + 1
    if importance == "random":
        return np.random.default_rng(context.seed).random(count) + 0.5
    if importance == "activation":
        return _activation_scores(model, groups, count, context)
    if importance == "taylor":
        return _taylor_scores(model, groups, count, context)
    by_weights = "l1" if importance == "response" else importance
    total, number = np.zeros(count), np.zeros(count)
    nodes = {node.name: node for node in model.nodes}
    for producer in groups.analysis.findings.producers:
        weight = np.asarray(nodes[producer.node].inputs[producer.weight].values)
        scores = filter_scores(_by_filter(weight, producer.labels.axes[0], len(producer.ids)), by_weights)
        _accumulate(total, number, groups.class_of[producer.ids], scores)
        release_mapped(weight)
    mean = np.divide(total, number, out=np.zeros(count), where=number > 0)
    return _response_scores(model, groups, mean, context) if importance == "response" else mean


def _by_filter(weight: npt.NDArray[Any], axis: int, filters: int) -> npt.NDArray[Any]:
    """Return weights as (filters, weights of one); a grouped ConvTranspose (I, O/g, k...) holds I / g rows for each."""
    moved = np.moveaxis(weight, axis, 0)
    groups = filters // moved.shape[0]
    if groups > 1:
        rows = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
        moved = np.moveaxis(rows, 2, 1).reshape(filters, -1)
    return moved.reshape(filters, -1)


def filter_scores(filters: npt.NDArray[Any], importance: str) -> Scores:
    """Score the filters of one layer; `filters` (O, weights of one), result (O,), computed in double."""
    if importance == "fpgm":
        return _distance_sums(filters)
    norm = 1 if importance == "l1" else 2
    return np.concatenate([np.linalg.norm(rows, norm, axis=1) for rows in _in_double(filters, axis=0)])


def _in_double(filters: npt.NDArray[Any], axis: int) -> Iterator[npt.NDArray[np.float64]]:
    """Yield blocks of `filters` along `axis` in double: a large layer is never doubled as a whole."""
    length = filters.shape[axis]
    step = max(1, _BLOCK_WEIGHTS * length // max(filters.size, 1))
    for start in range(0, length, step):
        part = filters[start : start + step] if axis == 0 else filters[:, start : start + step]
        yield part.astype(np.float64)


def _distance_sums(filters: npt.NDArray[Any]) -> Scores:
    """Return the sum of each filter's distances to all others."""
    gram = np.zeros((len(filters), len(filters)))
    for columns in _in_double(filters, axis=1):
        gram += columns @ columns.T
    squares = np.diag(gram)
    distances = np.sqrt(np.maximum(squares[:, None] + squares[None, :] - 2 * gram, 0.0))
    return np.asarray(distances.sum(axis=1))


def _accumulate(total: Scores, number: Scores, classes: npt.NDArray[np.int64], scores: Scores) -> None:
    """Add a layer's scores, relative to their mean, to the classes they belong to."""
    mean = float(scores.mean()) if scores.size else 0.0
    np.add.at(total, classes, scores / mean if mean > 0 else np.ones_like(scores))
    np.add.at(number, classes, 1.0)


def _activation_scores(model: Model, groups: ChannelGroups, count: int, context: PassContext) -> Scores:
    if context.calibration is None:
        raise DataError("importance 'activation' needs calibration data; give --calib or --data")
    from onnxcompress.runtime.capture import capture_activations

    nodes = {node.name: node for node in model.nodes}
    read = {}
    for consumer in groups.analysis.findings.consumers:
        if None not in consumer.labels.inner:
            read[nodes[consumer.node].inputs[consumer.position].name] = consumer.labels
    names = [name for name in read if not any(name == info.name for info in model.graph.inputs)]
    sums: dict[str, Scores] = {}
    for batch in capture_activations(model, names, context.calibration()):
        for name, values in batch.items():
            sums[name] = sums.get(name, 0.0) + _per_channel(np.abs(values), read[name]).sum(axis=0)
    total, number = np.zeros(count), np.zeros(count)
    for name, sum_of_channel in sums.items():
        ids = read[name].ids.reshape(-1)
        free = ids != FIXED
        _accumulate(total, number, groups.class_of[ids[free]], sum_of_channel[free])
    return np.divide(total, number, out=np.zeros(count), where=number > 0)


def _taylor_scores(model: Model, groups: ChannelGroups, count: int, context: PassContext) -> Scores:
    """What a class adds at all its consumers together, squared for each sample: removed, it is zero there."""
    samples = context.labelled or context.calibration
    if samples is None:
        raise DataError("importance 'taylor' needs data; give --train, --calib or --data")
    from onnxcompress.passes.recovery.gradients import operand_contributions
    from onnxcompress.passes.recovery.output_weights import output_weights
    from onnxcompress.passes.recovery.outputs import compared_tensors

    consumers = {
        (consumer.node, consumer.position): consumer.labels
        for consumer in groups.analysis.findings.consumers
        if (consumer.labels.ids != FIXED).any()
    }
    weights = output_weights(model, compared_tensors(model, model), samples, context.numbers)
    batches = (_whole_batch(batch, model) for batch in samples())
    squares, seen = np.zeros(count), 0
    for products in operand_contributions(model, frozenset(consumers), batches, context.seed, weights):
        changes: npt.NDArray[np.float64] = np.zeros((1, count))
        for edge, product in products.items():
            per_channel = _per_channel(product, consumers[edge])
            ids = consumers[edge].ids.reshape(-1)
            free = ids != FIXED
            change = np.zeros((len(per_channel), count))
            np.add.at(change.T, groups.class_of[ids[free]], per_channel[:, free].T)
            changes = changes + change
        squares += np.square(changes).sum(axis=0)
        seen += len(changes)
    mean = float(squares.mean()) if count else 0.0
    return squares / mean if mean > 0 else np.ones(count)


def _response_scores(model: Model, groups: ChannelGroups, by_weights: Scores, context: PassContext) -> Scores:
    """Damages by MACs saved; a class that only unknown nodes read counts as the mean does, times its weights' score."""
    if context.calibration is None:
        raise DataError("importance 'response' needs calibration data; give --calib or --data")
    memory = {} if context.memory is None else context.memory
    if "response" not in memory:
        memory["response"] = _judged(model, groups, len(by_weights), context.calibration, context)
    scores: Scores = memory["response"]
    known = np.isfinite(scores)
    mean = float(scores[known].mean()) if known.any() else 0.0
    return np.where(known, scores / mean, by_weights) if mean > 0.0 else by_weights


def _judged(model: Model, groups: ChannelGroups, count: int, calibration: Samples, context: PassContext) -> Scores:
    """Return the damage of every class for the share of MACs that it saves, NaN where no linear layer reads it."""
    from onnxcompress.passes.recovery.removal import removal_scores

    nodes = {node.name: node for node in model.nodes}
    read = {}
    for consumer in groups.analysis.findings.consumers:
        channels = _input_channels(nodes[consumer.node])
        if consumer.position == 0 and len(consumer.labels.axes) == 1 and channels:
            ids = consumer.labels.ids.reshape(-1)
            read[consumer.node] = groups.classes_of(np.repeat(ids, channels // len(ids)))
    return removal_scores(model, read, saved_shares(model, groups, count), calibration, context)


def _input_channels(node: gs.Node) -> int:
    """Return how many inputs of a linear node's weight are summed over, 0 for other nodes."""
    if node.op not in ("Conv", "Gemm", "MatMul") or not isinstance(node.inputs[1], gs.Constant):
        return 0
    shape = node.inputs[1].shape
    return int(shape[1] if node.op == "Conv" or node.attrs.get("transB", 0) else shape[-2]) if len(shape) > 1 else 0


def saved_shares(model: Model, groups: ChannelGroups, count: int) -> Scores:
    """Return the share of the model's MACs (parameters where those are not known) that goes with each class, (count,).

    What its producers' filters and its readers' inputs cost, each counted in full: a little too much where both leave.
    """
    cost = model_cost(model)
    figures = {layer.node: float((layer.params if cost.macs is None else layer.macs) or 0) for layer in cost.layers}
    saved = np.zeros(count)
    findings = groups.analysis.findings
    for node, ids in (
        *((producer.node, producer.ids) for producer in findings.producers),
        *((consumer.node, consumer.labels.ids) for consumer in findings.consumers),
    ):
        classes = groups.classes_of(ids.reshape(-1))
        np.add.at(saved, classes[classes >= 0], figures.get(node, 0.0) / max(len(classes), 1))
    return np.maximum(saved, 1.0) / max(sum(figures.values()), 1.0)


def _per_channel(product: npt.NDArray[Any], labels: Labels) -> npt.NDArray[np.float64]:
    """Sum (B, ...) over everything but the samples and the labelled positions: (B, positions)."""
    is_batched = bool(labels.axes[0] > 0)
    others = tuple(axis for axis in range(int(is_batched), product.ndim) if axis not in labels.axes)
    summed = product.sum(axis=others, dtype=np.float64)
    split = [len(product) if is_batched else 1]
    for axis, positions in zip(labels.axes, labels.ids.shape, strict=True):
        split += [positions, product.shape[axis] // positions]
    rows = summed.reshape(split).sum(axis=tuple(range(2, len(split), 2)))
    return np.asarray(rows.reshape(split[0], -1))


def _whole_batch(batch: Mapping[str, npt.NDArray[Any]], model: Model) -> Mapping[str, npt.NDArray[Any]]:
    """Return a batch of the size that the model fixes, some samples twice where there are too few."""
    shape = model.shape_of(model.graph.inputs[0])
    size = shape[0] if shape else None
    if not isinstance(size, int):
        return batch
    return {name: array[np.resize(np.arange(len(array)), size)] for name, array in batch.items()}
