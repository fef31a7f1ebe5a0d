"""Sampled im2col: the input patches of a convolution at random output positions, and the outputs there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from onnxcompress.runtime.tensors import Array

Places = npt.NDArray[np.int64]
"""Output positions, (B, P, spatial dimensions)."""

_KEPT_DRAWS = 8192
"""Draws that are kept, 1 kB each at 128 positions: of 500 images at sixteen output sizes all."""


@dataclass(frozen=True)
class Window:
    """A convolution's geometry: one entry for each spatial dimension, `pads` begins then ends as in ONNX.

    `auto_pad` has to be resolved into `pads` before, as `of` does.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]

    @classmethod
    def of(cls, kernel: tuple[int, ...], attributes: Mapping[str, object], size: Sequence[int]) -> Window:
        """Read a node's strides, pads, dilations and `auto_pad` for a spatial input shape."""
        strides, pads, dilations = _geometry(kernel, attributes)
        auto_pad = str(attributes.get("auto_pad", "NOTSET"))
        if auto_pad.startswith("SAME"):
            pads = same_pads(size, kernel, strides, dilations, upper=auto_pad == "SAME_UPPER")
        return cls(kernel, strides, pads, dilations)

    @property
    def reach(self) -> tuple[int, ...]:
        """The length that the kernel spans, dilated."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    @property
    def spatial(self) -> int:
        """The number of spatial dimensions."""
        return len(self.kernel)

    def output_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """Return the spatial output shape for a spatial input shape."""
        padded = [s + self.pads[d] + self.pads[d + self.spatial] for d, s in enumerate(size)]
        return tuple((p - r) // s + 1 for p, r, s in zip(padded, self.reach, self.strides, strict=True))

    def padding(self) -> list[tuple[int, int]]:
        """Return how many zeros each axis needs before and behind it."""
        return list(zip(self.pads[: self.spatial], self.pads[self.spatial :], strict=True))

    def sources(self, places: Places, dimension: int, size: int) -> Places:
        """Return the place of each tap's input along a padded axis of an input of `size`, (B, P, k)."""
        taps = np.arange(self.kernel[dimension]) * self.dilations[dimension]
        return places[:, :, dimension, None] * self.strides[dimension] + taps


@dataclass(frozen=True)
class TransposedWindow(Window):
    """A transposed convolution's geometry.

    What tap k of the kernel adds to output position p comes from the input at (p + pad - dilation k) / stride, if that
    is a whole number and within the input; else nothing does.
    """

    extra: tuple[int, ...]
    """Positions that `output_padding` adds behind the last one."""

    @classmethod
    def of(cls, kernel: tuple[int, ...], attributes: Mapping[str, object], size: Sequence[int]) -> TransposedWindow:
        """Read a node's strides, pads, dilations, `output_padding` and `auto_pad`, which no input size changes."""
        strides, pads, dilations = _geometry(kernel, attributes)
        extra = _whole(attributes.get("output_padding"), (0,) * len(kernel))
        window = cls(kernel, strides, pads, dilations, extra)
        auto_pad = str(attributes.get("auto_pad", "NOTSET"))
        if not auto_pad.startswith("SAME"):
            return window
        totals = [max(r - s + e, 0) for r, s, e in zip(window.reach, strides, extra, strict=True)]
        return replace(window, pads=_parted(totals, upper=auto_pad == "SAME_UPPER"))

    def output_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """Return the spatial output shape for a spatial input shape."""
        return tuple(
            self.strides[d] * (s - 1) + self.reach[d] + self.extra[d] - self.pads[d] - self.pads[d + self.spatial]
            for d, s in enumerate(size)
        )

    def padding(self) -> list[tuple[int, int]]:
        """Return how many zeros each axis needs before and behind it: one, for taps to which nothing comes."""
        return [(0, 1)] * self.spatial

    def sources(self, places: Places, dimension: int, size: int) -> Places:
        """Return the place of each tap's input along a padded axis of an input of `size`, (B, P, k)."""
        taps = np.arange(self.kernel[dimension]) * self.dilations[dimension]
        reached = places[:, :, dimension, None] + self.pads[dimension] - taps
        found, rest = np.divmod(reached, self.strides[dimension])
        return np.where((rest == 0) & (found >= 0) & (found < size), found, size)


class PositionSampler:
    """Draws output positions for each image.

    An image's positions depend on the seed and its number in the stream only, not on the batch size, so that inputs of
    one network and outputs of another are taken at the same places when each has a sampler of the same seed.
    """

    def __init__(self, positions: int, seed: int = 0) -> None:
        self._positions = positions
        self._seed = seed
        self._image = 0

    def draw(self, images: int, output_size: Sequence[int]) -> Places:
        """Return distinct positions for the next `images`, (B, P, spatial); P is at most the number there is."""
        total = int(np.prod(output_size))
        count = min(self._positions, total)
        flat = np.empty((images, count), np.int64)
        for row in range(images):
            flat[row] = _drawn(self._seed, self._image, total, count)
            self._image += 1
        return np.stack(np.unravel_index(flat, tuple(output_size)), axis=-1)


@lru_cache(_KEPT_DRAWS)
def _drawn(seed: int, image: int, total: int, count: int) -> npt.NDArray[np.int64]:
    """Return `count` of `total` positions, ascending; layers of one output size all ask for the same ones."""
    if count == total:
        return np.arange(total)
    return np.sort(np.random.default_rng((seed, image)).choice(total, count, replace=False))


def input_patches(activations: Array, window: Window, places: Places) -> Array:
    """Return the patches (B, P, K, C) that a convolution sees at `places` of inputs (B, C, ...); K as in its kernel.

    Channels come last, so that each position of a patch is one run of memory.
    """
    padding = window.padding()
    last = np.moveaxis(activations, 1, -1)
    padded = np.pad(last, [(0, 0), *padding, (0, 0)]) if np.any(padding) else np.ascontiguousarray(last)
    sizes = padded.shape[1:-1]
    flat = padded.reshape(-1, padded.shape[-1])
    number = np.arange(len(places))[:, None, None]
    for dimension in range(window.spatial):
        sources = window.sources(places, dimension, last.shape[1 + dimension])
        number = number[..., None] * sizes[dimension] + sources[:, :, None]
        number = number.reshape(len(places), places.shape[1], -1)
    return np.take(flat, number, axis=0)  # copies runs of memory; an index array, value by value


def output_rows(activations: Array, places: Places) -> Array:
    """Return the outputs (B * P, C) of `activations` (B, C, ...) at `places`."""
    batch = len(places)
    at = [places[:, :, dimension] for dimension in range(places.shape[2])]
    index: tuple[Array | slice, ...] = (np.arange(batch)[:, None], slice(None), *at)
    return activations[index].reshape(-1, activations.shape[1])


def _geometry(
    kernel: tuple[int, ...], attributes: Mapping[str, object]
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Return a node's strides, pads and dilations; pads that `auto_pad` leaves to the sizes are 0."""
    ones, none = (1,) * len(kernel), (0,) * (2 * len(kernel))
    pads = _whole(attributes.get("pads"), none) if attributes.get("auto_pad", "NOTSET") in ("NOTSET", "") else none
    return _whole(attributes.get("strides"), ones), pads, _whole(attributes.get("dilations"), ones)


def _whole(value: object, default: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(each) for each in value) if isinstance(value, (list, tuple)) and value else default


def same_pads(
    spatial: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    *,
    upper: bool,
) -> tuple[int, ...]:
    """Return the pads, begins and then ends, of `auto_pad` SAME_UPPER or SAME_LOWER for a spatial input shape."""
    totals = []
    for size, k, stride, dilation in zip(spatial, kernel, strides, dilations, strict=True):
        outputs = -(-size // stride)
        totals.append(max((outputs - 1) * stride + dilation * (k - 1) + 1 - size, 0))
    return _parted(totals, upper=upper)


def _parted(totals: Sequence[int], *, upper: bool) -> tuple[int, ...]:
    """Return pads, begins and then ends, that come to `totals`; of an odd one the larger part ends or begins."""
    small, large = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return (*small, *large) if upper else (*large, *small)
