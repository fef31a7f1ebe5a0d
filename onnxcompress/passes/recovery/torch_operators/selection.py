"""Operators that pick values by position: Slice, Gather, Pad and friends."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from onnxcompress.passes.recovery.torch_operators.layout import integers
from onnxcompress.passes.recovery.torch_operators.registry import Call, operator


def take(x: Tensor, axis: int, positions: Sequence[int]) -> Tensor:
    """Return the entries of one axis at `positions`, in that order."""
    return x.index_select(axis, torch.tensor(list(positions), dtype=torch.int64, device=x.device))


@operator("Slice")
def slice_(
    call: Call,
    x: Tensor,
    starts: Tensor | None = None,
    ends: Tensor | None = None,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    first = call.wholes("starts") if starts is None else integers(starts)
    last = call.wholes("ends") if ends is None else integers(ends)
    assert first is not None
    assert last is not None
    along = call.wholes("axes", range(len(first))) if axes is None else integers(axes)
    by = [1] * len(first) if steps is None else integers(steps)
    for begin, end, axis, step in zip(first, last, along or [], by, strict=True):
        places = range(*slice(begin, end, step).indices(x.shape[axis]))
        x = x.narrow(axis, places.start, len(places)) if step == 1 else take(x, axis, places)
    return x


@operator("Gather")
def gather(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    axis = call.whole("axis", 0) % x.dim()
    chosen = indices.to(x.device, torch.int64)
    chosen = torch.where(chosen < 0, chosen + x.shape[axis], chosen)
    taken = x.index_select(axis, chosen.reshape(-1))
    return taken.reshape([*x.shape[:axis], *chosen.shape, *x.shape[axis + 1 :]])


@operator("GatherElements")
def gather_elements(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    axis = call.whole("axis", 0)
    chosen = indices.to(x.device, torch.int64)
    return torch.gather(x, axis, torch.where(chosen < 0, chosen + x.shape[axis], chosen))


@operator("Pad")
def pad(
    call: Call, x: Tensor, pads: Tensor | None = None, value: Tensor | None = None, axes: Tensor | None = None
) -> Tensor:
    # Attributes before opset 11, inputs since.
    given = call.wholes("pads") or [] if pads is None else integers(pads)
    fill = call.number("value", 0.0) if value is None else value.item()
    along = [a % x.dim() for a in integers(axes)] if axes is not None else list(range(x.dim()))
    begins = dict(zip(along, given[: len(along)], strict=True))
    ends = dict(zip(along, given[len(along) :], strict=True))
    mode = call.text("mode", "constant")
    if mode == "constant":
        flat = [each for axis in reversed(range(x.dim())) for each in (begins.get(axis, 0), ends.get(axis, 0))]
        return functional.pad(x, flat, value=fill)
    for axis in along:
        if begins[axis] or ends[axis]:
            x = take(x, axis, _source_positions(call, mode, x.shape[axis], begins[axis], ends[axis]))
    return x


def _source_positions(call: Call, mode: str, size: int, begin: int, end: int) -> list[int]:
    """Return for each place of a padded axis where its value comes from."""
    places = range(-begin, size + end)
    if mode == "edge":
        return [min(max(place, 0), size - 1) for place in places]
    if mode == "wrap":
        return [place % size for place in places]
    if mode == "reflect":
        period = max(2 * (size - 1), 1)
        return [min(place % period, period - place % period) if size > 1 else 0 for place in places]
    raise call.unsupported(f"mode '{mode}'")
