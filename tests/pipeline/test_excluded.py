"""Expressions of --exclude that spare nothing."""

from __future__ import annotations

import pytest

import onnxcompress
from tests.tiny_models import conv_net


@pytest.mark.parametrize(("quantize", "cleanup"), [("off", "auto"), ("fp16", "off")])
def test_an_expression_that_matches_no_node_is_told(quantize: str, cleanup: str) -> None:
    exclude = ("^first$", "frist", "second_tucker_core")
    options = {"quantize": quantize, "cleanup": cleanup, "exclude": exclude, "latency": False}
    result = onnxcompress.compress(conv_net(), tucker="ratio=0.5", svd="ratio=0.5", **options)
    told = [line for line in result.report.warnings if "--exclude" in line and "matches no node" in line]
    assert told == ["--exclude frist matches no node, and spares nothing: onnxcompress inspect IN shows their names"]
