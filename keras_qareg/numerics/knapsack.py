"""Choices under a budget: one option of each item, of the least harm together.

See also: https://keras-qareg.github.io/keras-qareg/method.html#levels-by-budget
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_BUCKETS = 4096


def choose(
    costs: Sequence[np.ndarray],
    harms: Sequence[np.ndarray],
    budget: float,
    *,
    buckets: int = _BUCKETS,
) -> list[int] | None:
    """An option of each item, so that all together cost no more than a budget and harm least.

    The multiple-choice knapsack problem, by a dynamic program over what is spent, in steps of one
    size. It is exact where costs are whole numbers and the budget is no more than `buckets` above
    the least cost. Else each cost counts as up to a step more, and what that leaves of the budget is
    spent by exchanges of one option for a better one.

    Source: Dudzinski, Walukiewicz, "Exact methods for the knapsack problem and its generalizations"
    (European Journal of Operational Research, 1987).

    Args:
        costs: For each item an array `(options,)`, finite.
        harms: For each item an array `(options,)`, 0 or more.
        budget: What all may cost together.
        buckets: Positive integer: how many steps. Defaults to 4,096.

    Returns:
        The place of an option for each item, or `None` where the cheapest ones cost more.

    Example:

    >>> costs = [np.array([1, 4, 9]), np.array([2, 3, 6])]
    >>> harms = [np.array([5.0, 2.0, 0.0]), np.array([9.0, 1.0, 0.5])]
    >>> choose(costs, harms, budget=8)
    [1, 1]
    """
    least = [float(np.min(cost)) for cost in costs]
    left = budget - sum(least)
    if left < 0:
        return None
    most = sum(float(np.max(cost)) - low for cost, low in zip(costs, least, strict=True))
    left = min(left, most)
    width = 1.0 if left <= buckets else left / buckets
    size = int(left // width) + 1
    table = np.zeros(size)
    chosen = []
    for cost, harm, low in zip(costs, harms, least, strict=True):
        # Rounding is up, so that the budget holds; what it wastes is spent below.
        steps = np.ceil((np.asarray(cost, "float64") - low) / width - 1e-9).astype("int64")
        best, option = np.full(size, np.inf), np.zeros(size, "int32")
        for place in np.argsort(steps, kind="stable"):
            step = int(steps[place])
            if step >= size:
                break
            found = table[: size - step] + harm[place]
            better = found < best[step:]
            best[step:][better] = found[better]
            option[step:][better] = place
        table = best
        chosen.append((steps, option))
    spent, choice = size - 1, []
    for steps, option in reversed(chosen):
        place = int(option[spent])
        choice.append(place)
        spent -= int(steps[place])
    return _filled(costs, harms, budget, choice[::-1])


def _filled(
    costs: Sequence[np.ndarray], harms: Sequence[np.ndarray], budget: float, choice: list[int]
) -> list[int]:
    """Exchanges single options for better ones, those first that mend most, while the budget lasts."""
    left = budget - sum(float(cost[place]) for cost, place in zip(costs, choice, strict=True))
    while True:
        best, change = 0.0, None
        for item, (cost, harm) in enumerate(zip(costs, harms, strict=True)):
            gains = np.where(cost - cost[choice[item]] <= left, harm[choice[item]] - harm, -np.inf)
            place = int(np.argmax(gains))
            if gains[place] > best:
                best, change = float(gains[place]), (item, place)
        if change is None:
            return choice
        item, place = change
        left -= float(costs[item][place] - costs[item][choice[item]])
        choice[item] = place
