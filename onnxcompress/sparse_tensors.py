"""Weights of which a file keeps only the values that are not zero: runtimes make them whole, and so is done here."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx

from onnxcompress.errors import ModelError
from onnxcompress.serialization import PROTOBUF_LIMIT_BYTES, Array, load_array


def load_sparse(tensor: onnx.SparseTensorProto, model: Path | None) -> Array:
    """Return all values of a sparse tensor; see `load_array`.

    Raises:
        ModelError: values, places and shape do not fit together, or it would be too large.
    """
    name, dims = tensor.values.name or "(unnamed)", tuple(tensor.dims)
    values, places = load_array(tensor.values, model), load_array(tensor.indices, model)
    if any(dim < 0 for dim in dims) or places.dtype.kind not in "iu" or places.shape[:1] != values.shape:
        raise ModelError(f"sparse tensor '{name}': its values, places and shape do not fit together")
    if math.prod(dims) * values.dtype.itemsize > PROTOBUF_LIMIT_BYTES:
        raise ModelError(
            f"sparse tensor '{name}': would take {math.prod(dims) * values.dtype.itemsize} bytes as a whole"
        )
    whole = np.zeros(dims, values.dtype)
    try:
        whole[np.unravel_index(places, dims) if places.ndim == 1 else tuple(places.T)] = values
    except (IndexError, ValueError) as error:
        raise ModelError(f"sparse tensor '{name}': has a place outside its shape {list(dims)}") from error
    return whole
