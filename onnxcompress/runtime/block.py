"""The number of channels a provider's kernels take at once: widths and ranks that miss it waste a part of a block."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from onnxcompress.runtime.providers import CPU, provider_name

_SMALL_BLOCK = 8
_AVX512_BLOCK = 16
_CPU_MULTIPLE = 4
_INT8_BLOCK = 32


def preferred_block(provider: str, *, int8: bool = False) -> int:
    """Return the block of channels for a provider (short name, or onnxruntime's own) on this machine.

    Of 8-bit values a Tensor Core takes 32 channels at once. It is the block of every provider with `int8`, so that a
    model can move; on AVX-512 VNNI alone 16 would do (a 3x3 of 128 to 112 channels takes 122 us, to 128 it takes 138).

    onnxruntime's CPU kernels keep activations in blocks of one vector register (NCHWc): 16 channels of float32 on
    AVX-512, 8 on AVX2. Tensor Cores, and the kernels of the other providers, take multiples of 8.

    Raises:
        RecipeError: no provider has this name.
    """
    is_cpu = provider_name(provider) == CPU
    if int8:
        return _INT8_BLOCK
    return _AVX512_BLOCK if is_cpu and cpu_features().get("AVX512F", False) else _SMALL_BLOCK


def fast_multiple(provider: str) -> int:
    """Return what the number of channels must be a multiple of for a provider's fast kernels to take it at all.

    onnxruntime's CPU kernels fill up a last block, so that 20 channels take as long as 32, but keep activations in
    blocks only where the channels are a multiple of 4: a depthwise convolution of 18 takes twice as long as one of 20.

    Raises:
        RecipeError: no provider has this name.
    """
    return _CPU_MULTIPLE if provider_name(provider) == CPU else _SMALL_BLOCK


def saturates_signed_weights(provider: str) -> bool:
    """Whether a provider's products of unsigned activations and signed weights overflow on this machine.

    On x86 without VNNI two such products are summed in 16 bits, which hold 128 x 255 and no more: large weights side by
    side saturate. A GoogLeNet in 8 bits answered 67.0 % of 200 photographs right there, 78.0 % with unsigned weights,
    whose kernels widen first (and take 1.2 times as long), 77.5 % with signed ones on VNNI.

    Raises:
        RecipeError: no provider has this name.
    """
    features = cpu_features()
    has_vnni = any(features.get(name, False) for name in ("AVX512VNNI", "AVX512_CLX", "AVX512_ICL"))
    return provider_name(provider) == CPU and features.get("AVX2", features.get("X86_V3", False)) and not has_vnni


def cpu_features() -> Mapping[str, bool]:
    """Return which vector instruction sets this processor has, as numpy found them; empty where it does not say."""
    for module in ("numpy._core._multiarray_umath", "numpy.core._multiarray_umath"):  # numpy 2, numpy 1.26
        try:
            features: Mapping[str, bool] = importlib.import_module(module).__cpu_features__
        except (ImportError, AttributeError):
            continue
        return features
    return {}
