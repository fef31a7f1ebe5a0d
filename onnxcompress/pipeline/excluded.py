"""What `--exclude` does not match: a misspelt expression spares nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence

from onnxcompress.graph import Model
from onnxcompress.recipe import Recipe
from onnxcompress.report.figures import StageFigures


def unmatched_lines(recipe: Recipe, models: Sequence[Model], stages: Sequence[StageFigures]) -> tuple[str, ...]:
    """Return a sentence on each expression that matches no node.

    Args:
        models: the given one and the result.
        stages: what the passes between them changed and left alone.
    """
    names = {node.name for model in models for node in model.nodes}
    names |= {str(decision.get("node", "")) for stage in stages for decision in stage.decisions}
    names |= {skipped.node for stage in stages for skipped in stage.skipped}
    return tuple(
        f"--exclude {expression} matches no node, and spares nothing: onnxcompress inspect IN shows their names"
        for expression in recipe.exclude
        if not any(re.search(expression, name) for name in names)
    )
