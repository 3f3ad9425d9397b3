"""The retry budget."""

from __future__ import annotations

from smartipc.ipc.resilience.budget import RetryBudget


def test_a_quiet_process_may_retry_a_few_times_and_no_more() -> None:
    budget = RetryBudget()
    assert [budget.spend() for _ in range(12)] == [True] * 10 + [False] * 2
    assert budget.refused == 2


def test_ten_calls_earn_one_retry() -> None:
    budget = RetryBudget()
    while budget.spend():
        pass
    for _ in range(11):  # a hair more than ten: tenths do not add up exactly
        budget.earn()
    assert budget.spend()
    assert not budget.spend()


def test_old_calls_cannot_be_saved_up() -> None:
    budget = RetryBudget()
    for _ in range(100_000):
        budget.earn()
    assert sum(budget.spend() for _ in range(100)) == 10
    assert repr(budget) == "<RetryBudget 0.0 saved, 90 refused>"
