"""How many retries a process may make: a share of its recent calls, so that retries never multiply an outage. Pure."""

from __future__ import annotations

RATIO = 0.1
"""Retries that each call earns (SPEC: at most a tenth of recent calls)."""
RESERVE = 10.0
"""Retries that are free before any call was made, and the most that can be saved up by a quiet process."""


class RetryBudget:
    """A purse that calls fill and retries empty; it never holds more than RESERVE, so only recent calls count."""

    __slots__ = ("_saved", "refused")

    def __init__(self) -> None:
        self._saved = RESERVE
        self.refused = 0
        """Retries that were not made for want of budget."""

    def __repr__(self) -> str:
        return f"<RetryBudget {self._saved:.1f} saved, {self.refused} refused>"

    def earn(self) -> None:
        """Note a call."""
        if self._saved < RESERVE:
            self._saved = min(RESERVE, self._saved + RATIO)

    def spend(self) -> bool:
        """Take one retry out, or count that there was none."""
        if self._saved < 1.0:
            self.refused += 1
            return False
        self._saved -= 1.0
        return True
