"""What a model is fed with once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxcompress.runtime.tensors import Array

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Samples side by side.

    Attributes:
        inputs: {graph input name: array (B, ...)}, as the model takes them.
        labels: (size,), or None.
        size: the number of real samples. Where the model fixes its batch, the last one is filled up with copies of
            its last sample: outputs beyond `size` are to be dropped.
    """

    inputs: dict[str, Array]
    labels: Labels | None
    size: int
