"""The block of channels that widths are rounded to."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxcompress.errors import RecipeError
from onnxcompress.runtime import block
from onnxcompress.runtime.block import cpu_features, fast_multiple, preferred_block


@pytest.mark.parametrize(("avx512", "expected"), [(True, 16), (False, 8)])
def test_the_block_of_a_processor_is_one_vector_of_float32(
    avx512: bool, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block, "cpu_features", lambda: {"AVX512F": avx512, "AVX2": True})
    assert preferred_block("cpu") == expected
    assert preferred_block("CPUExecutionProvider") == expected


def test_the_block_of_a_gpu_does_not_depend_on_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block, "cpu_features", lambda: {"AVX512F": True})
    assert [preferred_block(p) for p in ("cuda", "tensorrt", "openvino")] == [8, 8, 8]


def test_eight_bits_take_a_block_of_32_everywhere() -> None:
    assert [preferred_block(p, int8=True) for p in ("cpu", "cuda", "tensorrt")] == [32, 32, 32]
    with pytest.raises(RecipeError, match="abacus"):
        preferred_block("abacus", int8=True)


def test_what_is_no_block_is_still_a_multiple_that_the_kernels_take() -> None:
    assert [fast_multiple(p) for p in ("cpu", "cuda", "tensorrt")] == [4, 8, 8]


def test_a_processor_that_says_nothing_gets_the_small_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block, "cpu_features", dict)
    assert preferred_block("cpu") == 8


def test_numpy_sees_what_the_system_says() -> None:
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        pytest.skip("no /proc/cpuinfo on this system")
    if "flags" not in flags:
        pytest.skip("no x86 processor")
    assert cpu_features()["AVX512F"] == ("avx512f" in flags)


def test_an_unknown_provider_is_refused() -> None:
    with pytest.raises(RecipeError, match="abacus"):
        preferred_block("abacus")
