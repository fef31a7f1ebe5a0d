"""Computing factors: the weights of the convolutions that take a convolution's place.

With x the input, K a group's kernel (O, I, k...) and K ~= core x_1 U_out x_2 U_in (`linalg.tucker`):

    conv(x, K) = conv1x1( conv( conv1x1(x, U_in^T), core ), U_out ) + bias

The first 1x1 maps I channels to R_in, the core keeps kernel, strides, pads and dilations, the last 1x1 maps R_out to O
and adds the bias. A grouped convolution gives three grouped ones, group by group.

The input factor may span leading or trailing axes of the kernel as well as the input channels: a kernel (O, I, kH, kW)
is then looked at as (O, I kH, kW), and the split is kH x 1, 1 x kW, 1x1, or the other way round (M. Jaderberg et al.,
Speeding up Convolutional Neural Networks with Low Rank Expansions, BMVC 2014; X. Zhang et al., TPAMI 2016). The first
convolution then has strides, pads and dilations of the spanned axes, the core those of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxcompress.linalg import KernelSpectra, Tucker2, kernel_spectra, tucker2
from onnxcompress.linalg.spanning import parted_kernel, spanned_axes
from onnxcompress.linalg.spectrum import Matrix, energy
from onnxcompress.linalg.tucker import INPUT_MODE, OUTPUT_MODE, mode_products
from onnxcompress.passes.tucker.sites import Array, ConvSite, as_stored


@dataclass(frozen=True)
class SplitShape:
    """Into what a convolution is split.

    Attributes:
        rank_in, rank_out: per group.
        with_in, with_out: whether that factor becomes a convolution of its own; a factor at full rank can be multiplied
            back into the core.
        spans: axes of the kernel that the input factor spans (`linalg.spanning`); R_in is at most I times their size.
    """

    rank_in: int
    rank_out: int
    with_in: bool = True
    with_out: bool = True
    spans: int = 0

    @property
    def factors(self) -> list[str]:
        """Names of the convolutions, in their order: some of `in`, `core`, `out`."""
        return [*(["in"] if self.with_in else []), "core", *(["out"] if self.with_out else [])]


@dataclass(frozen=True)
class SplitWeights:
    """Weights in ONNX layout and in the element type of the original.

    Attributes:
        first: (G R_in, I / G, 1...) or None, with the sizes of the spanned axes.
        core: like the original's weight, with R_in for I / G and R_out for O / G, and 1 for spanned axes.
        last: (O, R_out, 1...) or None.
        relative_error: of the reconstructed kernel, Frobenius norm, before rounding to the element type.
    """

    first: Array | None
    core: Array
    last: Array | None
    relative_error: float


def decompose(site: ConvSite, split: SplitShape, spectra: Sequence[KernelSpectra] | None = None) -> tuple[Tucker2, ...]:
    """Return the Tucker-2 decomposition of each group's kernel, from the weights alone."""
    kernels = spanning(site.kernels(), split.spans)
    known = spectra or [kernel_spectra(kernel) for kernel in kernels]
    return tuple(
        tucker2(kernel, rank_out=split.rank_out, rank_in=split.rank_in, spectra=each)
        for kernel, each in zip(kernels, known, strict=True)
    )


def split_weights(site: ConvSite, split: SplitShape, groups: Sequence[Tucker2]) -> SplitWeights:
    """Lay out the decompositions of a convolution's groups as ONNX weights."""
    ones = (1,) * len(site.kernel_shape)
    of_first, of_core = parted_kernel(site.kernel_shape, split.spans)
    cores = [_core(group, split) for group in groups]
    cores = [core.reshape(*core.shape[:2], *of_core) for core in cores]
    if site.op == "ConvTranspose":
        core = np.concatenate([np.swapaxes(c, 0, 1) for c in cores])
    else:
        core = np.concatenate(cores)
    first = np.concatenate([group.input_factor.T for group in groups])
    last = np.concatenate([group.output_factor for group in groups])

    def stored(weight: Matrix) -> Array:
        return as_stored(weight, site.weight.dtype)

    return SplitWeights(
        first=stored(first.reshape(len(first), -1, *of_first)) if split.with_in else None,
        core=stored(core),
        last=stored(last.reshape(*last.shape, *ones)) if split.with_out else None,
        relative_error=_pooled_error(site, groups),
    )


def spanning(kernels: Matrix, spans: int) -> Matrix:
    """Return kernels (G, O, I, k...) as (G, O, I and the spanned axes, the other axes)."""
    axes = range(3, kernels.ndim)
    spanned = [axes[axis] for axis in spanned_axes(spans, len(axes))]
    rest = [axis for axis in axes if axis not in spanned]
    ordered = kernels.transpose(0, 1, 2, *spanned, *rest)
    spread: Matrix = ordered.reshape(*kernels.shape[:2], -1, *(kernels.shape[axis] for axis in rest))
    return spread


def _core(group: Tucker2, split: SplitShape) -> Matrix:
    absorbed = {}
    if not split.with_in:
        absorbed[INPUT_MODE] = group.input_factor
    if not split.with_out:
        absorbed[OUTPUT_MODE] = group.output_factor
    return mode_products(group.core, absorbed) if absorbed else group.core


def _pooled_error(site: ConvSite, groups: Sequence[Tucker2]) -> float:
    if len(groups) == 1:
        return groups[0].relative_error
    energies = np.array([energy(kernel) for kernel in site.kernels()])
    errors = np.array([group.relative_error for group in groups])
    whole = float(energies.sum())
    return float(np.sqrt(np.sum(errors**2 * energies) / whole)) if whole > 0.0 else 0.0
