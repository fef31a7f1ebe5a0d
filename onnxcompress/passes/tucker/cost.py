"""What a convolution costs whole and split, in MACs and parameters."""

from __future__ import annotations

from collections.abc import Collection, Hashable
from dataclasses import dataclass

from onnxcompress.linalg.spanning import spanned_positions
from onnxcompress.passes.tucker.sites import ConvSite


@dataclass(frozen=True)
class SplitCost:
    """Cost before and after a split.

    Attributes:
        macs: (before, after) for one sample, None where the spatial size is not known.
        params: (before, after), bias included.
        bias: how many of the parameters are the bias.
        relative_macs: (before, after) in MACs for one position of the smaller of input and output: always known.
    """

    macs: tuple[int, int] | None
    params: tuple[int, int]
    bias: int
    relative_macs: tuple[int, int]

    @property
    def pays(self) -> bool:
        """Whether both MACs and parameters become fewer."""
        before, after = self.macs or self.relative_macs
        return after < before and self.params[1] < self.params[0]

    @property
    def macs_after(self) -> int:
        """MACs of the split form, in units that compare between splits of the same convolution."""
        return (self.macs or self.relative_macs)[1]

    @property
    def saved_macs(self) -> int:
        """MACs that the split saves; they compare between convolutions whose sizes are known."""
        before, after = self.macs or self.relative_macs
        return before - after


class ParamsLedger:
    """Counts parameters over the decisions of a plan, a weight that several nodes read only once."""

    def __init__(self, split: Collection[str]) -> None:
        self._split = frozenset(split)
        self._gone: set[str] = set()
        self._made: set[Hashable] = set()

    def enter(self, cost: SplitCost, *, weight: str, sharers: Collection[str], factors: Hashable) -> list[int]:
        """Return [before, after] of the next decision, so that the differences sum to the model's.

        Args:
            cost: of this node alone.
            weight: name of its weight tensor, which stays in the model where one of the `sharers` is not split.
            factors: equal for decisions that share the new weights.
        """
        counts_before = weight not in self._gone and self._split.issuperset(sharers)
        counts_after = factors not in self._made
        self._gone.add(weight)
        self._made.add(factors)
        whole, split = (params - cost.bias for params in cost.params)
        return [cost.bias + whole * counts_before, cost.bias + split * counts_after]


def tucker_cost(
    site: ConvSite, rank_in: int, rank_out: int, *, with_in: bool = True, with_out: bool = True, spans: int = 0
) -> SplitCost:
    """Return the cost of splitting a convolution at ranks per group.

    Args:
        site: the convolution.
        rank_in, rank_out: per group.
        with_in, with_out: whether the factor is a convolution of its own; without it the core has the full channels.
        spans: axes of the kernel that the input factor spans, as in `linalg.spanning`.
    """
    groups = site.groups
    inner_in = groups * rank_in if with_in else site.in_channels
    inner_out = groups * rank_out if with_out else site.out_channels
    whole = site.in_channels * site.out_channels // groups * site.kernel_size
    spanned = spanned_positions(site.kernel_shape, spans)
    core = inner_in * inner_out // groups * (site.kernel_size // spanned)
    first = site.in_channels * spanned * rank_in if with_in else 0
    last = site.out_channels * rank_out if with_out else 0

    def at(positions_in: int, positions_out: int, positions_behind: int | None = None) -> tuple[int, int]:
        of_core = positions_in if site.op == "ConvTranspose" else positions_out
        of_first = positions_in if positions_behind is None else positions_behind
        return whole * of_core, first * of_first + core * of_core + last * positions_out

    behind = site.positions_behind(spans)
    known = None not in (site.in_positions, site.out_positions, behind)
    bias = site.out_channels if site.has_bias else 0
    return SplitCost(
        macs=at(site.in_positions or 0, site.out_positions or 0, behind) if known else None,
        params=(whole + bias, first + core + last + bias),
        bias=bias,
        relative_macs=at(1, site.stride) if site.op == "ConvTranspose" else at(site.stride, 1),
    )
