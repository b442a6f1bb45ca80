"""Give rows to columns at the smallest total cost, for some hundred of each.

Shortest augmenting paths with dual prices, O(n^3) (Jonker and Volgenant 1987, in the rectangular form
of Crouse 2016, doi:10.1109/TAES.2016.140952, which is scipy's `linear_sum_assignment` too).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def assign(cost: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Return min(R, C) pairs (row, column) by row, each row and column at most once.

    cost: (R, C) finite. The sum over the pairs is the smallest there is; which pairs it are is
    open where several sums are equal. Raises ValueError for a cost that is not finite."""
    if not np.isfinite(cost).all():
        raise ValueError("costs must be finite")
    if cost.shape[0] > cost.shape[1]:
        return sorted((row, column) for column, row in assign(cost.T))
    if not cost.size:
        return []
    row_of = np.full(cost.shape[1], -1)
    column_of = np.full(cost.shape[0], -1)
    # cost - row_price - column_price is never below 0, and 0 for each pair: so no sum is smaller.
    row_price, column_price = cost.min(axis=1), np.zeros(cost.shape[1])
    for row, column in enumerate(cost.argmin(axis=1)):
        if row_of[column] < 0:
            row_of[column], column_of[row] = row, column
    for start in np.flatnonzero(column_of < 0):
        _augment(cost, int(start), row_price, column_price, row_of, column_of)
    return [(row, int(column)) for row, column in enumerate(column_of)]


def _augment(
    cost: NDArray[np.float64],
    start: int,
    row_price: NDArray[np.float64],
    column_price: NDArray[np.float64],
    row_of: NDArray[np.intp],
    column_of: NDArray[np.intp],
) -> None:
    """Pair row `start` by Dijkstra's shortest path to a free column; changes prices and pairs."""
    shortest = np.full(cost.shape[1], np.inf)  # length of the path to each column
    before = np.full(cost.shape[1], start)  # the row from which that path comes
    reached = np.zeros(cost.shape[1], dtype=bool)
    row, length = start, 0.0
    while True:
        through = length + cost[row] - row_price[row] - column_price
        better = ~reached & (through < shortest)
        shortest[better], before[better] = through[better], row
        column = int(np.where(reached, np.inf, shortest).argmin())
        length = float(shortest[column])
        if row_of[column] < 0:
            break
        reached[column] = True
        row = row_of[column]
    spared = length - shortest[reached]
    row_price[start] += length
    row_price[row_of[reached]] += spared
    column_price[reached] -= spared
    row = -1
    while row != start:
        row = before[column]
        row_of[column] = row
        column_of[row], column = column, column_of[row]
