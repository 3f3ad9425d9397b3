"""Thresholds of a repeated check, as arithmetic: from single results to well, sick and past hope. Nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Turn = Literal["", "sicken", "recover", "give up"]


@dataclass(slots=True)
class Health:
    """Judge results in sequence.

    From its first failed check on it is sick, until `successes` checks in a row have passed; at `failures` in a row it
    is past hope.
    """

    failures: int = 1
    successes: int = 1
    sick: bool = False
    failed: int = 0
    """In a row, up to now."""
    passed: int = 0

    def take(self, *, ok: bool) -> Turn:
        """Take a result and return what turns with it, "" for nothing."""
        if ok:
            self.failed, self.passed = 0, self.passed + 1
            if self.sick and self.passed >= self.successes:
                self.sick = False
                return "recover"
            return ""
        self.failed, self.passed = self.failed + 1, 0
        if self.failed >= self.failures:
            self.sick = True
            return "give up"
        if not self.sick:
            self.sick = True
            return "sicken"
        return ""
