"""Which split of a layer is the fastest, and whether it is faster than the layer whole: from measured times."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from onnxcompress.analysis.split import WHOLE, Split

_GAIN = 0.03
"""A split must take at least this share less time than the whole layer: less is noise, at a cost in accuracy."""


def fastest_split(times: Mapping[Split, float] | None, splits: Iterable[Split]) -> tuple[Split | None, str]:
    """Return the fastest of `splits`, or None and the reason.

    Args:
        times: milliseconds of the layer's splits and of `WHOLE`; None where they are not known.
    """
    known = {ranks: times[ranks] for ranks in splits if times and ranks in times}
    if not times or WHOLE not in times or not known:
        return None, "how long it takes, whole or split, is not known (the time table does not hold it)"
    best = min(known, key=lambda ranks: known[ranks])
    whole = times[WHOLE]
    if known[best] < (1.0 - _GAIN) * whole:
        return best, ""
    return None, (
        f"measured, no split is faster: {whole:.4f} ms whole, {known[best]:.4f} ms split at {_described(best)}"
    )


def _described(ranks: Split) -> str:
    rank_in, rank_out, _ = ranks
    if rank_in is None:
        return f"rank {rank_out}"
    return f"input rank {rank_in}" if rank_out is None else f"ranks [{rank_in}, {rank_out}]"
