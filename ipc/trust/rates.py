"""A token bucket: so many calls a second, and a burst of one second's worth. Pure: `now` is given in."""

from __future__ import annotations


class TokenBucket:
    """Calls that are still free; it fills at `rate` a second up to `rate` (a burst of one second's worth).

    Args:
        rate: calls a second, positive.
        now: monotonic seconds.
    """

    __slots__ = ("_at", "_left", "_size", "rate")

    def __init__(self, rate: float, now: float) -> None:
        self.rate = rate
        self._size = max(1.0, rate)
        self._left = self._size
        self._at = now

    def __repr__(self) -> str:
        return f"<TokenBucket {self._left:.1f} of {self.rate:g}/s left>"

    def take(self, now: float) -> float | None:
        """Take one: None if it was there, else seconds until there will be one."""
        left = min(self._size, self._left + (now - self._at) * self.rate)
        self._at = now
        if left >= 1.0:
            self._left = left - 1.0
            return None
        self._left = left
        return (1.0 - left) / self.rate
