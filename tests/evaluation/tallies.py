"""What an output of two models differs by, taken in batch by batch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnxcompress.evaluation.relative_error import ErrorTally, RelativeError

Maps = npt.NDArray[np.generic]


def error_of(expected: Maps, seen: Maps, batch: int = 7) -> RelativeError:
    tally = ErrorTally()
    for at in range(0, len(expected), batch):
        one, two = expected[at : at + batch], seen[at : at + batch]
        tally.add(len(one), {"y": one}, {"y": two})
    found = tally.result()
    assert found is not None
    return found
