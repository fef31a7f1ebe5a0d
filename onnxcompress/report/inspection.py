"""What a model is made of: cost layer by layer, groups of channels, what can be compressed and what not, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from onnxcompress.evaluation.profile import ProfileComparison
from onnxcompress.report.figures import SCHEMA, ModelFigures
from onnxcompress.report.json_file import plain_json


@dataclass(frozen=True)
class LayerFigures:
    """A node with weights.

    Attributes:
        weight: shape of its weight, such as (O, I, kH, kW).
        macs: for batch 1, None where a size is not known.
        group: the channel group of its filters, None where they form none.
        split: how `--tucker auto` (or `--svd auto` for 1x1 Convs and Gemm) would split it, None where it would not.
        not_split: why not.
    """

    node: str
    op: str
    weight: tuple[int, ...]
    params: int
    macs: int | None
    group: str | None
    split: str | None
    not_split: str | None


@dataclass(frozen=True)
class GroupFigures:
    """Channels that are decided together.

    Attributes:
        channels: how many there are; `prunable`: how many of them may be removed.
        producers: nodes whose filters make them; `consumers`: nodes that read them.
        kept: {reason: how many channels stay because of it}.
    """

    name: str
    channels: int
    prunable: int
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    kept: dict[str, int]


@dataclass(frozen=True)
class Inspection:
    """Everything `inspect` has to tell; `profile` where it was asked for, with one side."""

    input: ModelFigures
    layers: tuple[LayerFigures, ...]
    groups: tuple[GroupFigures, ...]
    profile: ProfileComparison | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"schema": SCHEMA, **plain_json(self)}
