"""Channel labels: which channel stands where along the axes of a tensor.

A channel is an integer (an atom). A tensor's labels say, for the axes that carry channels, which atom stands at each
position. Data movement (Concat, Split, Reshape, …) moves labels exactly as it moves data; element-wise operators tie
the atoms of their operands. What is tied is removed together.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

FIXED = -1
"""The atom of a position that holds no removable channel; it always stays."""

MOST_POSITIONS = 2**25
"""Along one axis; a tensor that claims more is absurd, and nothing is allocated for it."""


@dataclass(frozen=True, eq=False)
class Labels:
    """Atoms along the axes of a tensor.

    Attributes:
        axes: the labelled axes, ascending.
        ids: atoms, one dimension for each labelled axis.
        inner: for each labelled axis, how many neighbouring positions share an atom (a flattened `H * W`), None where
            that is not known before the model runs. The axis is `ids.shape[i] * inner[i]` long.
    """

    axes: tuple[int, ...]
    ids: Ids
    inner: tuple[int | None, ...]

    @classmethod
    def along(cls, axis: int, ids: Ids, inner: int | None = 1) -> Labels:
        """Return labels of one axis."""
        return cls((axis,), ids, (inner,))

    def moved(self, axes: Iterable[int]) -> Labels:
        """Return the same labels on other axes (given in the present axes' order)."""
        order = list(axes)
        positions = sorted(range(len(order)), key=order.__getitem__)
        return Labels(
            tuple(order[p] for p in positions),
            self.ids.transpose(positions),
            tuple(self.inner[p] for p in positions),
        )

    def shifted(self, by: int) -> Labels:
        """Return the same labels `by` axes further right."""
        return Labels(tuple(axis + by for axis in self.axes), self.ids, self.inner)

    def expanded(self) -> Labels | None:
        """Return the labels with one atom for each position, None where a multiplicity is not known, or absurd."""
        ids = self.ids
        for dimension, count in enumerate(self.inner):
            if count is None or ids.size * count > MOST_POSITIONS:
                return None
            if count != 1:
                ids = np.repeat(ids, count, axis=dimension)
        return Labels(self.axes, ids, (1,) * len(self.axes))


def same_layout(first: Labels, second: Labels) -> bool:
    """Whether two labels cover the same axes at the same granularity, so that their atoms stand side by side."""
    return first.axes == second.axes and first.inner == second.inner and first.ids.shape == second.ids.shape


def regular_shape(mask: Mask) -> tuple[int, ...] | None:
    """Return the shape of the block that `mask` keeps, None if rows keep different numbers (no tensor holds that)."""
    if mask.ndim == 1:
        return (int(mask.sum()),)
    rows = mask[mask.reshape(mask.shape[0], -1).any(axis=1)]
    if not len(rows):
        return (0,) * mask.ndim
    if mask.ndim == 2:
        counts = rows.sum(axis=1)
        return (len(rows), int(counts[0])) if (counts == counts[0]).all() else None
    shapes = {regular_shape(row) for row in rows}
    only = shapes.pop()
    return None if shapes or only is None else (len(rows), *only)
