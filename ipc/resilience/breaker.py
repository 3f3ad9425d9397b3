"""A circuit breaker per destination: stop asking what fails anyway, and look again with one call.

Pure arithmetic with `now` given in. What counts as a failure (a lost link, a timeout, a death, overload; never a
handler's own exception) is told by `counts`.

    closed ──half of at least `of` calls in the last minute failed──> open ──`open` seconds──> half open (one probe)
       ^──────────────────────── the probe succeeds ───────────────────────────────────────────────┤
                                                               open <────── the probe fails ────────┘
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from smartipc.ipc.errors import CircuitOpen, ConnectFailed, ConnectionLost, Overloaded, RequestTimeout, WorkerDied

WINDOW = 60.0
"""Seconds of calls that are judged."""
_SLICES = 6
_SLICE = WINDOW / _SLICES
_DESTINATIONS = 4096
"""Breakers kept; the one used longest ago is forgotten."""


@dataclass(frozen=True, slots=True)
class BreakerPlan:
    """When a breaker opens and for how long. `failures` is a share of at least `of` calls; `open` is seconds."""

    failures: float = 0.5
    of: int = 20
    open: float = 10.0


def counts(error: BaseException) -> bool:
    """Tell whether an error speaks against the destination itself."""
    return isinstance(error, (ConnectionLost, ConnectFailed, RequestTimeout, WorkerDied, Overloaded))


class Breaker:
    """The state of one destination."""

    __slots__ = ("_failed", "_open_until", "_plan", "_probing", "_slices", "_total")

    def __init__(self, plan: BreakerPlan) -> None:
        self._plan = plan
        self._slices: list[tuple[int, int, int]] = []
        """(number of the slice, calls, failures), the newest last."""
        self._total = 0
        self._failed = 0
        self._open_until: float | None = None
        self._probing = False

    def __repr__(self) -> str:
        return f"<Breaker {self.state}, {self._failed} of {self._total} failed>"

    @property
    def state(self) -> str:
        """Return "closed", "open" or "half-open"; open until somebody asks after its time is over."""
        if self._open_until is None:
            return "closed"
        return "half-open" if self._probing else "open"

    def refuses(self, now: float) -> float | None:
        """Ask before a call: None lets it pass, else seconds after which to ask again.

        Whoever is let pass must tell the outcome by `record` or `abandon`.
        """
        if self._open_until is None:
            return None
        if self._probing:
            return self._plan.open
        if now < self._open_until:
            return self._open_until - now
        self._probing = True
        return None

    def record(self, now: float, *, failed: bool) -> bool:
        """Note a call's outcome; return whether the state has changed."""
        if self._open_until is not None:
            if not self._probing:
                return False  # a call from before it opened
            self._probing = False
            if failed:
                self._open_until = now + self._plan.open
                return True
            self._open_until = None
            self._forget()
            return True
        self._count(int(now // _SLICE), failed)
        if not failed or self._total < self._plan.of or self._failed < self._plan.failures * self._total:
            return False
        self._open_until = now + self._plan.open
        return True

    def abandon(self) -> None:
        """Note that a call ended without an outcome, such as by its caller's cancellation."""
        self._probing = False

    def _count(self, number: int, failed: bool) -> None:
        slices = self._slices
        self._total += 1
        self._failed += failed
        if slices and slices[-1][0] == number:
            _, calls, failures = slices[-1]
            slices[-1] = (number, calls + 1, failures + failed)
            return
        slices.append((number, 1, int(failed)))
        while slices[0][0] <= number - _SLICES:
            _, calls, failures = slices.pop(0)
            self._total -= calls
            self._failed -= failures

    def _forget(self) -> None:
        self._slices.clear()
        self._total = self._failed = 0


class Breakers:
    """The breakers of all destinations that a process calls.

    Args:
        plan: None switches them off.
    """

    def __init__(self, plan: BreakerPlan | None) -> None:
        self._plan = plan
        self._known: OrderedDict[tuple[str, str], Breaker] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Breakers of {len(self._known)} destinations>"

    def check(self, instance: str, method: str, now: float) -> None:
        """Ask before a call.

        Raises:
            CircuitOpen: not now; `retry_after` says when.
        """
        breaker = self._known.get((instance, method))
        if breaker is not None:
            wait = breaker.refuses(now)
            if wait is not None:
                raise CircuitOpen(wait, method=method, instance=instance, processed="no")

    def record(self, instance: str, method: str, now: float, *, failed: bool) -> bool:
        """Note a call's outcome; return whether that breaker's state has changed."""
        if self._plan is None:
            return False
        key = (instance, method)
        breaker = self._known.get(key)
        if breaker is None:
            if len(self._known) >= _DESTINATIONS:
                self._known.popitem(last=False)
            breaker = self._known[key] = Breaker(self._plan)
        return breaker.record(now, failed=failed)

    def abandon(self, instance: str, method: str) -> None:
        """Note that a call ended without an outcome."""
        breaker = self._known.get((instance, method))
        if breaker is not None:
            breaker.abandon()

    def forget(self, instance: str) -> None:
        """Give a fresh life of an instance a fresh start."""
        for key in [key for key in self._known if key[0] == instance]:
            del self._known[key]

    def states(self) -> dict[tuple[str, str], str]:
        """Return the state of every breaker that is not closed."""
        return {key: one.state for key, one in self._known.items() if one.state != "closed"}
