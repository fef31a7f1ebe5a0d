"""Sparse weights, as initializers and as constants, are read as the weights that they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxcompress.errors import ModelError
from onnxcompress.graph import Model
from tests.small_models import session
from tests.tiny_models import conv_net, samples


def sparse_net(*, as_node: bool, flat: bool) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Return `conv_net` with many zeros in its second weight, and the same with that weight sparse."""
    dense = conv_net()
    stored = dense.graph.initializer[2]
    weight = numpy_helper.to_array(stored)
    weight = np.where(np.abs(weight) > 0.1, weight, 0).astype(np.float32)
    stored.CopyFrom(numpy_helper.from_array(weight, "w2"))
    places: Any = np.flatnonzero(weight) if flat else np.argwhere(weight)
    values = numpy_helper.from_array(weight[weight != 0], "w2")
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(places.astype(np.int64), "at"), weight.shape)
    proto = onnx.ModelProto()
    proto.CopyFrom(dense)
    del proto.graph.initializer[2]
    if as_node:
        proto.graph.node.insert(0, helper.make_node("Constant", [], ["w2"], sparse_value=sparse))
    else:
        proto.graph.sparse_initializer.append(sparse)
    return dense, proto


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("as_node", [True, False])
def test_a_sparse_weight_is_one_like_any_other(as_node: bool, flat: bool) -> None:
    dense, proto = sparse_net(as_node=as_node, flat=flat)
    expected, model = Model.from_proto(dense), Model.from_proto(proto)
    np.testing.assert_array_equal(model.constants()["w2"].values, expected.constants()["w2"].values)
    assert model.shapes == expected.shapes
    back = model.to_proto()
    onnx.checker.check_model(back, full_check=True)
    given, made = (session(each.SerializeToString()).run(None, {"x": samples()}) for each in (proto, back))
    np.testing.assert_array_equal(made[0], given[0])


@pytest.mark.parametrize(
    ("dims", "places", "expected"),
    [
        ([2, 2], [1, 7], "outside its shape"),
        ([2, 2], [1], "do not fit together"),
        ([-2, 2], [0, 1], "do not fit together"),
        ([2**20, 2**20], [0, 1], "bytes as a whole"),
    ],
)
def test_a_damaged_one_is_refused(dims: list[int], places: list[int], expected: str) -> None:
    proto = sparse_net(as_node=False, flat=True)[1]
    sparse = proto.graph.sparse_initializer[0]
    sparse.dims[:] = dims
    sparse.values.CopyFrom(numpy_helper.from_array(np.ones(2, np.float32), "w2"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array(places, np.int64), "at"))
    with pytest.raises(ModelError, match=f"sparse tensor 'w2': .*{expected}"):
        Model.from_proto(proto)
