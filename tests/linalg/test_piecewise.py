"""Piecewise polynomials against the functions that they stand for, place by place."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcompress.linalg.piecewise import Piecewise, X

constant = Piecewise.constant
PLACES = np.linspace(-9.0, 9.0, 361)


def test_a_hard_swish_has_three_pieces() -> None:
    swish = ((X + constant(3.0)).larger(constant(0.0)).smaller(constant(6.0)) * X).scaled(1.0 / 6.0)
    assert swish.breaks == (-3.0, 3.0)
    assert swish.pieces == ((0.0,), (0.0, 0.5, pytest.approx(1.0 / 6.0)), (0.0, pytest.approx(1.0)))
    assert swish.degree == 2


def test_breaks_that_divide_nothing_go() -> None:
    assert X.larger(constant(0.0)) + X.smaller(constant(0.0)) == X
    assert X.larger(constant(-2.0)).larger(constant(5.0)) == X.larger(constant(5.0))
    assert (X + X.scaled(-1.0)).pieces == ((0.0,),)


def test_bounds_cross_a_parabola_twice() -> None:
    bounded = (X * X).smaller(constant(4.0))
    assert bounded.breaks == pytest.approx((-2.0, 2.0))
    assert bounded.pieces == ((4.0,), (0.0, 0.0, 1.0), (4.0,))


def test_what_only_rounding_tells_apart_is_one_function() -> None:
    sixth = float(np.float32(1.0 / 6.0))
    one, other = (X.larger(constant(0.0)).scaled(factor) for factor in (sixth, 1.0 / 6.0))
    assert one.is_close(other)
    assert not one.is_close(X.larger(constant(0.0)).scaled(0.1667))
    assert not one.is_close(X.larger(constant(0.001)).scaled(sixth))
    assert not X.is_close(X * X)
    assert not X.is_close(X.larger(constant(0.0)))


Reference = tuple[Piecewise, Callable[[float], float]]


def _steps(drawn: list[tuple[str, float]]) -> Reference:
    function, reference = X, np.asarray(PLACES)
    for kind, number in drawn:
        if kind == "add":
            function, reference = function + constant(number), reference + number
        elif kind == "scale":
            function, reference = function.scaled(number), reference * number
        elif kind == "larger":
            function, reference = function.larger(constant(number)), np.maximum(reference, number)
        elif kind == "smaller":
            function, reference = function.smaller(constant(number)), np.minimum(reference, number)
        elif kind == "times x":
            function, reference = function * X, reference * PLACES
        else:
            function, reference = function.larger(X.scaled(number)), np.maximum(reference, PLACES * number)
    values = dict(zip(PLACES, reference, strict=True))
    return function, lambda x: float(values[x])


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "scale", "larger", "smaller", "times x", "larger than a multiple"]),
            st.integers(-16, 16).map(lambda number: number / 4),
        ),
        max_size=6,
    )
)
def test_random_chains_give_what_numpy_gives(drawn: list[tuple[str, float]]) -> None:
    if sum(kind == "times x" for kind, _ in drawn) > 2:
        drawn = [each for each in drawn if each[0] != "times x"]
    function, reference = _steps(drawn)
    for x in PLACES:
        assert function(x) == pytest.approx(reference(x), rel=1e-7, abs=1e-6)
