"""How long to wait before the next life (SPEC 7.2): tenacity's exponential wait, then jitter inside the cap."""

from __future__ import annotations

from tenacity import RetryCallState, wait_exponential

from smartipc.supervisor.core.spec import RestartSpec


def delay(restart: RestartSpec, attempt: int, random: float) -> float:
    """Return seconds to wait before try number `attempt` (from 1).

    Args:
        restart: delay, factor, max_delay and jitter.
        attempt: how many failures in a row this is.
        random: drawn in [0, 1) by the caller; 0.5 means no jitter.
    """
    state = RetryCallState(None, None, (), {})  # type: ignore[arg-type]
    state.attempt_number = attempt
    wait = wait_exponential(multiplier=restart.delay, exp_base=restart.factor, max=restart.max_delay)
    base = wait(state)
    return min(restart.max_delay, base * (1 + restart.jitter * (2 * random - 1)))
