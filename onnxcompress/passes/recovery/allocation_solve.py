"""One choice for every layer under limits on the sum: a small integer program (HiGHS through scipy)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from onnxcompress.errors import BudgetInfeasibleError
from onnxcompress.linalg.spectrum import Matrix
from onnxcompress.runtime.quiet import without_lines

_GAP = 5e-4


def allocate(
    damages: Sequence[Matrix], costs: Mapping[str, Sequence[Matrix]], limits: Mapping[str, float]
) -> list[int]:
    """Return the number of the chosen alternative of every layer: least damage within all limits.

    Args:
        damages: of each layer's alternatives, (alternatives,).
        costs: {kind: likewise}.
        limits: {kind: the sum may be at most this}.

    Raises:
        BudgetInfeasibleError: no choice keeps all limits.
    """
    for kind, limit in limits.items():
        if sum(float(cost.min()) for cost in costs[kind]) > limit:
            raise BudgetInfeasibleError(f"the least {kind} of every layer are above the limit")
    if not damages:
        return []
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_matrix, vstack

    starts = np.concatenate([[0], np.cumsum([len(each) for each in damages])])
    total = int(starts[-1])
    rows = np.repeat(np.arange(len(damages)), np.diff(starts))
    one_each = csr_matrix((np.ones(total), (rows, np.arange(total))), shape=(len(damages), total))
    joined = {kind: np.concatenate(costs[kind]) for kind in limits}
    # A limit of 0 leaves what costs nothing: there is no dividing by it.
    scales = {kind: limit if limit > 0.0 else float(joined[kind].max()) or 1.0 for kind, limit in limits.items()}
    scaled = [joined[kind] / scales[kind] for kind in limits]
    matrix = vstack([one_each, *(csr_matrix(row) for row in scaled)])
    ones = np.ones(len(damages))
    low = np.concatenate([ones, np.full(len(limits), -np.inf)])
    high = np.concatenate([ones, [limit / scales[kind] for kind, limit in limits.items()]])
    damage = np.concatenate(list(damages))
    # Of equal damage the cheaper: a vanishing price on what is limited.
    price = damage / max(float(damage.max()), 1e-300) + 1e-9 * sum(scaled, np.zeros(total))
    # HiGHS prints from within its presolve, and where rounding a solution breaks a limit (seen with scipy 1.17).
    with without_lines("Highs"):
        solution = milp(
            price,
            integrality=np.ones(total),
            bounds=Bounds(0, 1),
            constraints=LinearConstraint(matrix.tocsr(), low, high),
            options={"mip_rel_gap": _GAP, "time_limit": 20.0, "presolve": False},
        )
    if solution.x is None:
        raise BudgetInfeasibleError(f"no choice of splits was found that keeps the target of {' and '.join(limits)}")
    return [int(np.argmax(solution.x[a:b])) for a, b in pairwise(starts)]
