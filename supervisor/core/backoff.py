"""How long to wait before the next life: tenacity's exponential wait, then jitter inside the cap.

No randomness and no clock here: the caller draws the number and adds the time.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import cast

from tenacity import RetryCallState, wait_exponential

from smartipc.supervisor.core.spec import RestartSpec


def delay(restart: RestartSpec, attempt: int, random: float) -> float:
    """Return seconds to wait before try number `attempt` (from 1).

    Args:
        restart: delay, factor, max_delay and jitter.
        attempt: how many failures in a row this is.
        random: drawn in [0, 1) by the caller; 0.5 means no jitter.
    """
    wait = _wait(restart.delay, restart.factor, restart.max_delay)
    state = cast("RetryCallState", SimpleNamespace(attempt_number=attempt))  # all that it looks at, and much cheaper
    return min(restart.max_delay, wait(state) * (1 + restart.jitter * (2 * random - 1)))


@functools.lru_cache(maxsize=256)
def _wait(delay: float, factor: float, max_delay: float) -> wait_exponential:
    return wait_exponential(multiplier=delay, exp_base=factor, max=max_delay)
