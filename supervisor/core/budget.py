"""The restart budget: OTP's rule. At most `most` restarts within any `window` seconds, both ends included.

What counts is decided in core.py: automatic restarts, at the moment they are ordered. A restart that a person
forestalls was none, so asking (`allows`) and counting (`record`) are two steps.
"""

from __future__ import annotations

from collections import deque


class Budget:
    """A sliding window of restart times (`add_restart` of Erlang's supervisor.erl).

    Args:
        most: restarts that the window may hold.
        window: seconds.
    """

    def __init__(self, most: int, window: float) -> None:
        self._most = most
        self._window = window
        self._times: deque[float] = deque()

    def __repr__(self) -> str:
        return f"<Budget {len(self._times)} of {self._most} in {self._window:g} s>"

    def allows(self, at: float, granted: int = 0) -> bool:
        """Tell whether a restart at `at`, now or later, would stay within the budget, beside those granted already."""
        return sum(time >= at - self._window for time in self._times) + granted < self._most

    def record(self, now: float) -> int:
        """Count a restart and return how many the window holds with it."""
        while self._times and self._times[0] < now - self._window:
            self._times.popleft()
        self._times.append(now)
        return len(self._times)

    def limit(self, most: int, window: float) -> None:
        """Change the limits; what has been counted stays."""
        self._most, self._window = most, window

    def clear(self) -> None:
        """Forget all restarts."""
        self._times.clear()
