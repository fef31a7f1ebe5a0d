"""What to do about a result that is slower than the original, by what the recipe did. Only things that exist."""

from __future__ import annotations

from collections.abc import Collection

from onnxcompress.recipe import Recipe

_CPU = "CPUExecutionProvider"
_BLOCKS = (8, 16)


def how_to_be_faster(recipe: Recipe, slower: Collection[str]) -> str:
    """Return what may make the result faster; nothing where the recipe compressed nothing.

    Args:
        recipe: what was asked for.
        slower: onnxruntime's names of the providers on which it is slower.
    """
    sentences = []
    if recipe.quantize == "int8":
        where = "this processor" if _CPU in slower else "this provider"
        sentences.append(
            f"Eight bits do not pay on {where} for every layer: --exclude REGEX those that got slower (--profile shows "
            "the time of each operator), or leave --quantize int8 out"
        )
    elif recipe.quantize == "fp16" and _CPU in slower:
        sentences.append(
            "This processor does not compute in half precision, but converts it: --quantize fp16 saves size, and on "
            "other providers time; leave it out where time on a CPU counts"
        )
    elif recipe.quantize == "fp16":
        sentences.append("Half precision does not pay on this provider: leave --quantize fp16 out")
    ways = _ways(recipe)
    if ways:
        sentences.append(f"Fewer MACs are not always less time: try {', or '.join(ways)}")
    return ". ".join(sentences)


def _ways(recipe: Recipe) -> list[str]:
    """Name what of the structure that is left can be made to fit better."""
    ways = []
    splits = [f"--{name}" for name in ("tucker", "svd") if getattr(recipe, name) != "off" and not recipe.target]
    if not (recipe.prune_share > 0 or splits or recipe.target):
        return []
    blocks = [str(block) for block in _BLOCKS if recipe.round_to in (None, "auto") or block > int(recipe.round_to)]
    if blocks:
        ways.append(f"--round-to {' or '.join(blocks)}")
    if splits:
        ways.append(f"a gentler {' and '.join(splits)}")
    if recipe.target and "latency" not in recipe.target:
        ways.append("--target latency=F, which times what it chooses")
    if recipe.prune_share > 0 and not ways:
        ways.append("a lower --prune")
    return ways
