"""The restart budget: OTP's rule. At most `most` restarts within any `window` seconds, both ends included."""

from __future__ import annotations

from collections import deque


class Budget:
    """A sliding window of restart times.

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

    def spend(self, now: float) -> bool:
        """Record a restart and return True, or return False if that would be one too many."""
        while self._times and self._times[0] < now - self._window:
            self._times.popleft()
        if len(self._times) >= self._most:
            return False
        self._times.append(now)
        return True

    @property
    def spent(self) -> int:
        """Restarts recorded within the window, as of the last spend."""
        return len(self._times)

    def clear(self) -> None:
        """Forget all restarts."""
        self._times.clear()
