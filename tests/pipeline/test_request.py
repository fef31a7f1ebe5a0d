"""What a request comes to before anything runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxcompress.errors import RecipeError
from onnxcompress.pipeline.request import Request, make_request


def request(**options: Any) -> Request:
    data = [{"x": np.zeros((1, 3, 8, 8), np.float32)}]
    return make_request(None, options, model=b"", output=None, data=data, calib=None)


@pytest.mark.parametrize(
    ("options", "block", "align_to"),
    [
        ({"quantize": "int8", "round_to": "auto"}, 32, 4),
        ({"quantize": "int8", "round_to": 16}, 16, 1),
        ({"quantize": "fp16", "round_to": "auto", "provider": ("cuda",)}, 8, 8),
        ({"quantize": "int8", "latency": False}, 1, 1),
    ],
)
def test_the_block_and_what_channels_stay_a_multiple_of(options: dict[str, Any], block: int, align_to: int) -> None:
    asked = request(prune=0.3, **options)
    assert (asked.recipe.round_to, asked.align_to) == (block, align_to)


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_target_of_latency_that_nothing_tells_is_refused(dry_run: bool) -> None:
    with pytest.raises(RecipeError, match="--target latency needs latency to be measured: leave --no-latency out"):
        request(target={"latency": 0.5}, latency=False, dry_run=dry_run)
    assert request(target={"latency": 0.5}, dry_run=dry_run).recipe.target == {"latency": 0.5}
