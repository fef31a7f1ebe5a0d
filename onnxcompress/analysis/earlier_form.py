"""Models that come as something was made of them that cannot be compressed: what to give in their place."""

from __future__ import annotations

from collections.abc import Iterable

from onnxcompress.analysis.quantised import is_quantised_operator

_OF_BLOCKED_LAYOUT = frozenset({"ReorderInput", "ReorderOutput"})
"""onnxruntime's, around what computes in blocks of channels; it saves their weights in such blocks, too."""


def earlier_form_hint(ops: Iterable[str]) -> str:
    """Return what to add to a message that nothing could be compressed; nothing where no operator tells why."""
    found = set(ops)
    quantised, blocked = sorted(filter(is_quantised_operator, found)), sorted(found & _OF_BLOCKED_LAYOUT)
    if quantised:
        return f"; {', '.join(quantised)} tell of a model that is quantised already: give the float one"
    if blocked:
        return (
            f"; {', '.join(blocked)} tell of a model that onnxruntime saved in its own blocked layout: give it as it "
            "was before"
        )
    return ""
