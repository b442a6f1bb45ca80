"""Our own assignment costs what scipy's does, on every shape."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from edge.base.assignment import assign

FORBIDDEN = 1e6


def total(cost: NDArray[np.float64], pairs: list[tuple[int, int]]) -> float:
    rows, columns = [row for row, _ in pairs], [column for _, column in pairs]
    assert len(pairs) == min(cost.shape)
    assert len(set(columns)) == len(pairs)
    assert rows == sorted(set(rows))
    return float(cost[rows, columns].sum())


# Few different costs make ties; a forbidden pair costs more than all the others together.
costs = st.one_of(
    st.sampled_from([0.0, 1.0, 2.0, FORBIDDEN]), st.floats(-10.0, 10.0, allow_subnormal=False)
)


@given(arrays.arrays(np.float64, st.tuples(st.integers(0, 9), st.integers(0, 9)), elements=costs))
def test_the_cost_is_scipys(cost: NDArray[np.float64]) -> None:
    least = cost[linear_sum_assignment(cost)].sum()
    assert np.isclose(total(cost, assign(cost)), least, rtol=1e-12, atol=1e-6)


def test_forbidden_pairs_are_taken_only_where_nothing_else_is_left() -> None:
    cost = np.full((3, 3), FORBIDDEN)
    cost[0, 2] = cost[1, 2] = 1.0
    cost[1, 0] = 5.0
    pairs = assign(cost)
    assert [pair for pair in pairs if cost[pair] < FORBIDDEN] == [(0, 2), (1, 0)]


def test_three_hundred_faces_that_moved_a_little_keep_the_smallest_sum() -> None:
    rng = np.random.default_rng(0)
    where = rng.uniform(0, 1, (300, 2))
    moved = where + rng.normal(0, 0.02, where.shape)
    cost = np.linalg.norm(where[:, None] - moved[None], axis=2)
    pairs = assign(cost)
    assert np.isclose(total(cost, pairs), cost[linear_sum_assignment(cost)].sum())


def test_a_cost_that_is_not_finite_is_refused() -> None:
    for wrong in (np.inf, np.nan):
        with pytest.raises(ValueError, match="finite"):
            assign(np.full((2, 3), wrong))
