"""The retry budget."""

from __future__ import annotations

from smartipc.ipc.resilience.budget import RESERVE, RetryBudget


def test_a_quiet_process_may_retry_a_few_times_and_no_more() -> None:
    budget = RetryBudget()
    assert [budget.spend(0.0, 5) for _ in range(RESERVE + 2)] == [True] * RESERVE + [False] * 2
    assert budget.refused == 2
    assert repr(budget) == f"<RetryBudget {RESERVE} spent, 2 refused>"


def test_a_busy_one_may_retry_a_tenth_of_its_recent_calls() -> None:
    budget = RetryBudget()
    assert sum(budget.spend(1.0, 5000) for _ in range(1000)) == 500


def test_after_a_minute_it_starts_over() -> None:
    budget = RetryBudget()
    while budget.spend(0.0, 0):
        pass
    assert not budget.spend(59.9, 0)
    assert budget.spend(60.0, 0)
