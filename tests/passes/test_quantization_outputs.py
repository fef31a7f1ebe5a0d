"""Quantised models declare inputs and outputs as they were given."""

from __future__ import annotations

import pytest

from onnxcompress.graph import Model
from onnxcompress.passes.base import PassContext
from onnxcompress.passes.quantization import Float16Conversion, Int8Quantization
from tests.tiny_models import conv_net, samples


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize("each", [Int8Quantization(), Float16Conversion()])
def test_lengths_that_a_model_leaves_open_stay_open(each: Int8Quantization | Float16Conversion, opset: int) -> None:
    proto = conv_net()
    proto.opset_import[0].version = opset
    for length, name in zip(proto.graph.output[0].type.tensor_type.shape.dim, ("unk__1", ""), strict=True):
        length.Clear()
        length.dim_param = name
    proto.graph.output[0].doc_string = "scores"
    model = Model.from_proto(proto)
    context = PassContext(calibration=lambda: iter([{"x": samples()}]))
    result = each.apply(model, each.plan(model, context), context).model.to_proto()
    assert list(result.graph.output) == list(proto.graph.output)
    assert list(result.graph.input) == list(proto.graph.input)
