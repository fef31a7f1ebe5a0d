"""A layer's split by its ranks alone: what its cost and its time follow from."""

from __future__ import annotations

from typing import NamedTuple


class Split(NamedTuple):
    """How a layer is split.

    Attributes:
        rank_in, rank_out: None where there is no such factor; a matrix split in two has a `rank_out` only.
        spans: axes of the kernel that the input factor spans, as in `linalg.spanning`.
    """

    rank_in: int | None
    rank_out: int | None
    spans: int = 0

    @property
    def kind(self) -> tuple[bool, bool, int]:
        """Which factors there are."""
        return self.rank_in is not None, self.rank_out is not None, self.spans

    def __str__(self) -> str:
        if self == WHOLE:
            return "whole"
        ranks = "x".join("-" if rank is None else str(rank) for rank in self[:2])
        return f"{ranks}+{self.spans}" if self.spans else ranks

    @classmethod
    def parsed(cls, text: str) -> Split:
        """Return the split that `str` gave the text of.

        Raises:
            ValueError: it gave no such text.
        """
        if text == "whole":
            return WHOLE
        ranks, _, spans = text.partition("+")
        first, second = (None if part == "-" else int(part) for part in ranks.split("x"))
        if any(rank is not None and rank < 1 for rank in (first, second)):
            raise ValueError(f"'{text}' is no split")
        return cls(first, second, int(spans or 0))


WHOLE = Split(None, None)
"""A layer that is not split."""
