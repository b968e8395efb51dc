"""Choices under a budget, against all combinations."""

import itertools

import numpy as np
import pytest

from keras_qareg.numerics.knapsack import choose


def best_of_all(costs, harms, budget):
    """The least harm of any combination, or `None`."""
    found = [
        sum(harm[place] for harm, place in zip(harms, places, strict=True))
        for places in itertools.product(*(range(len(cost)) for cost in costs))
        if sum(cost[place] for cost, place in zip(costs, places, strict=True)) <= budget
    ]
    return min(found, default=None)


@pytest.mark.one_backend
@pytest.mark.parametrize("seed", range(8))
def test_no_combination_is_better(seed):
    random = np.random.default_rng(seed)
    costs = [random.integers(1, 60, random.integers(2, 6)) for _ in range(5)]
    harms = [random.random(cost.size) for cost in costs]
    for budget in (sum(cost.min() for cost in costs) - 1, 40, 90, 150, 300):
        wanted, choice = best_of_all(costs, harms, budget), choose(costs, harms, budget)
        assert (choice is None) == (wanted is None)
        if choice is not None:
            assert sum(cost[i] for cost, i in zip(costs, choice, strict=True)) <= budget
            got = sum(harm[i] for harm, i in zip(harms, choice, strict=True))
            assert got == pytest.approx(wanted, abs=1e-12)


@pytest.mark.one_backend
def test_few_steps_come_near_and_keep_the_budget():
    random = np.random.default_rng(0)
    costs = [np.sort(random.integers(1, 100_000, 12)) for _ in range(20)]
    harms = [np.sort(random.random(12))[::-1] for _ in range(20)]
    budget = 600_000
    coarse, fine = (choose(costs, harms, budget, buckets=n) for n in (200, 200_000))
    spent = sum(cost[i] for cost, i in zip(costs, coarse, strict=True))
    harm, least = (
        sum(h[i] for h, i in zip(harms, choice, strict=True)) for choice in (coarse, fine)
    )
    assert spent <= budget
    assert harm <= 1.15 * least
