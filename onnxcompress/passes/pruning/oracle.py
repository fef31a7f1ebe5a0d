"""The oracle of filter pruning: the original network with the removed channels neutralised where they are consumed.

A removed channel is not a zeroed filter (a bias or a shift would bring it back behind a nonlinearity): it is a channel
whose value at every consumer is the consumer's neutral element, 0 for a sum, minus infinity for a maximum. A mean or a
normalisation over channels runs over the remaining ones. The pruned network has to compute exactly this.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxcompress.analysis.channels import FIXED, ChannelGroups, Consumer
from onnxcompress.analysis.channels.labels import Mask
from onnxcompress.analysis.channels.surgery import FIRST_OPSET_WITH_WHERE
from onnxcompress.errors import PassError
from onnxcompress.graph import Model, Shape
from onnxcompress.links import has_input

Array = npt.NDArray[Any]


def masked_reference(model: Model, groups: ChannelGroups, keep: Mask, lengths: Mapping[str, Shape]) -> Model:
    """Return the original with the atoms that `keep` drops neutralised at every consumer.

    Args:
        model: the model that was analysed.
        groups: its groups.
        keep: which atoms stay, shape (atoms,).
        lengths: {tensor name: shape} as it runs, for tensors with an axis of unknown length.
    """
    reference = model.copy()
    writer = _Writer(reference, np.append(keep, True), lengths)
    nodes = {node.name: node for node in reference.nodes}
    for consumer in groups.analysis.findings.consumers:
        if not writer.keep[consumer.labels.ids].all():
            writer.neutralise(nodes[consumer.node], consumer)
    reference.refresh_shapes()
    return reference


class _Writer:
    def __init__(self, model: Model, keep: Mask, lengths: Mapping[str, Shape]) -> None:
        self.model = model
        self.keep = keep
        self.lengths = lengths

    def neutralise(self, node: gs.Node, consumer: Consumer) -> None:
        tensor = node.inputs[consumer.position]
        mask = self._mask(tensor, consumer)
        dtype = self.model.dtype_of(tensor)
        if consumer.norm == "group":
            self._group_norm(node, consumer, dtype)
            return
        if consumer.norm:
            self._norm(node, mask, consumer.norm, dtype)
            return
        masked = self._where(node, tensor, mask, np.array(consumer.fill, dtype))
        if consumer.mean:
            masked = self._op(node, "Mul", [masked, self._constant(node, np.array(mask.size / mask.sum(), dtype))])
        node.inputs[consumer.position] = masked

    def _mask(self, tensor: gs.Tensor, consumer: Consumer) -> Mask:
        """Return the kept positions in the tensor's rank, one along every axis without labels."""
        shape = self.lengths.get(tensor.name) or self.model.shape_of(tensor) or ()
        labels = consumer.labels
        mask: Mask = self.keep[np.where(labels.ids == FIXED, -1, labels.ids)]
        view = [1] * len(shape)
        for dimension, (axis, inner) in enumerate(zip(labels.axes, labels.inner, strict=True)):
            length = shape[axis]
            if inner is None and not isinstance(length, int):
                raise PassError(f"the length of axis {axis} of '{tensor.name}' is not known, so it cannot be verified")
            count = inner if inner is not None else int(length or 0) // labels.ids.shape[dimension]
            mask = np.repeat(mask, count, axis=dimension)
            view[axis] = mask.shape[dimension]
        return mask.reshape(view)

    def _op(self, before: gs.Node, op: str, inputs: list[gs.Tensor], **attributes: Any) -> gs.Tensor:
        output = self.model.new_variable(f"{before.name}_oracle")
        name = self.model.unique_name(f"{before.name}_{op}")
        self.model.insert_before(before, [gs.Node(op, name, attributes, inputs, [output])])
        return output

    def _constant(self, node: gs.Node, values: Array) -> gs.Constant:
        return self.model.new_constant(f"{node.name}_oracle", values)

    def _where(self, node: gs.Node, tensor: gs.Tensor, mask: Mask, fill: Array) -> gs.Tensor:
        if self.model.opset < FIRST_OPSET_WITH_WHERE:
            kept = self._op(node, "Mul", [tensor, self._constant(node, mask.astype(fill.dtype))])
            return self._op(node, "Add", [kept, self._constant(node, np.where(mask, np.zeros((), fill.dtype), fill))])
        return self._op(node, "Where", [self._constant(node, mask), tensor, self._constant(node, fill)])

    def _mean(self, node: gs.Node, tensor: gs.Tensor, axes: list[int], share: float, dtype: np.dtype[Any]) -> gs.Tensor:
        """Return the mean over `axes` of a masked tensor, over the remaining positions."""
        if self.model.opset >= 18:
            mean = self._op(node, "ReduceMean", [tensor, self._constant(node, np.array(axes, np.int64))])
        else:
            mean = self._op(node, "ReduceMean", [tensor], axes=axes)
        return self._op(node, "Mul", [mean, self._constant(node, np.array(share, dtype))])

    def _norm(self, node: gs.Node, mask: Mask, kind: str, dtype: np.dtype[Any]) -> None:
        """Replace a normalisation node by its definition over the kept positions."""
        rank = mask.ndim
        first = 2 if kind == "instance" else int(node.attrs.get("axis", -1)) % rank
        scale, shift = node.inputs[1], node.inputs[2] if has_input(node, 2) else None
        if kind == "instance":
            scale = self._constant(node, scale.values.reshape(1, -1, *[1] * (rank - 2)))
            shift = self._constant(node, shift.values.reshape(1, -1, *[1] * (rank - 2))) if shift is not None else None
        normal = self._normalised(node, node.inputs[0], mask, list(range(first, rank)), kind != "rms", dtype)
        self._affine(node, normal, scale, shift)

    def _normalised(
        self,
        node: gs.Node,
        tensor: gs.Tensor,
        mask: Mask,
        axes: list[int],
        centred: bool,
        dtype: np.dtype[Any],
    ) -> gs.Tensor:
        kept = mask.sum(axis=tuple(axes))  # equal but where a row left as a whole, of which nothing is read
        share = math.prod(mask.shape[axis] for axis in axes) / kept.max()
        zero = np.array(0.0, dtype)
        values = self._where(node, tensor, mask, zero)
        if centred:
            mean = self._mean(node, values, axes, share, dtype)
            values = self._where(node, self._op(node, "Sub", [values, mean]), mask, zero)
        variance = self._mean(node, self._op(node, "Mul", [values, values]), axes, share, dtype)
        epsilon = self._constant(node, np.array(node.attrs.get("epsilon", 1e-5), dtype))
        deviation = self._op(node, "Sqrt", [self._op(node, "Add", [variance, epsilon])])
        return self._op(node, "Div", [values, deviation])

    def _affine(self, node: gs.Node, normal: gs.Tensor, scale: gs.Tensor, shift: gs.Tensor | None) -> None:
        output = node.outputs[0]
        result = self._op(node, "Mul", [normal, scale])
        if shift is not None:
            result = self._op(node, "Add", [result, shift])
        node.outputs.clear()
        name = self.model.unique_name(f"{node.name}_oracle")
        self.model.replace_node(node, [gs.Node("Identity", name, {}, [result], [output])])

    def _group_norm(self, node: gs.Node, consumer: Consumer, dtype: np.dtype[Any]) -> None:
        """GroupNormalization: (N, C, ...) seen as (N, G, C / G, positions), normalised over the last two axes."""
        groups = int(node.attrs["num_groups"])
        tensor = node.inputs[0]
        rank = len(self.model.shape_of(tensor) or ())
        channels = consumer.labels.ids.size
        view = np.array([0, groups, channels // groups, -1], np.int64)
        split = self._op(node, "Reshape", [tensor, self._constant(node, view)])
        mask: Mask = self.keep[consumer.labels.ids].reshape(1, groups, -1, 1)
        normal = self._normalised(node, split, mask, [2, 3], True, dtype)
        merged = self._op(node, "Reshape", [normal, self._op(node, "Shape", [tensor])])
        parameters = []
        for parameter in node.inputs[1:3]:
            values = parameter.values
            full = values if values.size == channels else np.repeat(values, channels // groups)
            parameters.append(self._constant(node, full.reshape(1, -1, *[1] * (rank - 2))))
        self._affine(node, merged, parameters[0], parameters[1])
