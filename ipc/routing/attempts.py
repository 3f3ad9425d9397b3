"""One logical call over its attempts: what a failure means, and whether to try again. Pure, for both handles."""

from __future__ import annotations

from typing import Literal

from smartipc.ipc.errors import CallError, ConnectionLost, WorkerDied
from smartipc.ipc.routing.directory import DirectoryState

ATTEMPTS = 3
"""Most attempts of an idempotent call whose instance was lost."""
BACKOFF = 0.1
"""Seconds before the second attempt; doubles."""
FACTS_WAIT = 0.15
"""Seconds to wait for a lost peer's exit facts: callers hear of a death within 200 ms."""


def lost(error: ConnectionLost, state: DirectoryState, instance: str, generation: int, method: str) -> CallError | None:
    """Turn a lost link into WorkerDied with the directory's facts, or None if that life is still listed."""
    if state.lives(instance, generation):
        return None
    facts = state.exit_of(instance, generation)
    if facts is None:
        return WorkerDied(instance, processed=error.processed, reason="exit facts unknown", method=method)
    return WorkerDied(
        instance, facts.code, facts.signal, facts.oom, error.processed, reason=facts.reason, method=method
    )


def pause(attempt: int, random: float) -> float:
    """Return seconds to wait behind attempt number `attempt`: BACKOFF, doubling, by up to a quarter more or less.

    Args:
        attempt: from 1.
        random: drawn in [0, 1) by the caller; 0.5 means no jitter.
    """
    from tenacity import RetryCallState, Retrying, wait_exponential

    wait = wait_exponential(multiplier=BACKOFF, exp_base=2)
    state = RetryCallState(Retrying(wait=wait), None, (), {})
    state.attempt_number = attempt
    return float(wait(state)) * (0.75 + random / 2)


def after(error: BaseException, *, idempotent: bool, attempt: int) -> Literal["again", "retry", "raise"]:
    """Decide on a failed attempt: "again" costs no attempt (nothing ran), "retry" is the next one, or give up."""
    if not isinstance(error, (ConnectionLost, WorkerDied)):
        return "raise"
    if error.processed == "no":
        return "again"
    return "retry" if idempotent and attempt < ATTEMPTS else "raise"
