"""A circuit breaker per destination: stop asking what fails anyway, and look again with one call.

Pure arithmetic with `now` given in. What counts as a failure (a lost link, a timeout, a death, overload; never a
handler's own exception) is told by `counts`.

    closed ──half of at least `of` calls in the last minute failed──> open ──`open` seconds──> half open (one probe)
       ^──────────────────────── the probe succeeds ───────────────────────────────────────────────┤
                                                               open <────── the probe fails ────────┘
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from smartipc.ipc.control import BreakerPlan
from smartipc.ipc.errors import CircuitOpen, ConnectFailed, ConnectionLost, Overloaded, RequestTimeout, WorkerDied

WINDOW = 60.0
"""Seconds of calls that are judged."""
_SLICES = 6
_SLICE = WINDOW / _SLICES
_DESTINATIONS = 4096
"""Breakers kept; the oldest is forgotten."""


def counts(error: BaseException) -> bool:
    """Tell whether an error speaks against the destination itself, and not against what its handler called in turn."""
    if getattr(error, "processed", None) == "yes":
        return False
    return isinstance(error, (ConnectionLost, ConnectFailed, RequestTimeout, WorkerDied, Overloaded))


class Breaker:
    """The state of one destination."""

    __slots__ = ("_calls", "_failed", "_failures", "_open_until", "_past", "_plan", "_probing", "_slice_until", "total")

    def __init__(self, plan: BreakerPlan) -> None:
        self._plan = plan
        self._calls = self._failures = 0
        """Of the slice of time that runs."""
        self._slice_until = 0.0
        self._past: list[tuple[float, int, int]] = []
        """(end, calls, failures) of the slices before, the newest last."""
        self.total = self._failed = 0
        """Of the last minute."""
        self._open_until: float | None = None
        self._probing = False

    def __repr__(self) -> str:
        return f"<Breaker {self.state}, {self._failed} of {self.total} failed>"

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

    def passed(self, now: float, count: int = 1) -> bool:
        """Note that calls did not fail; return whether the state has changed."""
        if self._open_until is None and now < self._slice_until:
            self._calls += count
            self.total += count
            return False
        changed = self.record(now, failed=False)
        return (self.passed(now, count - 1) if count > 1 else False) or changed

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
        self._count(now, failed)
        if not failed or self.total < self._plan.of or self._failed < self._plan.failures * self.total:
            return False
        self._open_until = now + self._plan.open
        return True

    def abandon(self) -> None:
        """Note that a call ended without an outcome, such as by its caller's cancellation."""
        self._probing = False

    def _count(self, now: float, failed: bool) -> None:
        if now >= self._slice_until:
            if self._calls:
                self._past.append((self._slice_until, self._calls, self._failures))
            self._calls = self._failures = 0
            self._slice_until = (now // _SLICE + 1) * _SLICE
            while self._past and self._past[0][0] <= now - WINDOW + _SLICE:
                _, calls, failures = self._past.pop(0)
                self.total -= calls
                self._failed -= failures
        self._calls += 1
        self.total += 1
        self._failures += failed
        self._failed += failed

    def _forget(self) -> None:
        self._past.clear()
        self._calls = self._failures = self.total = self._failed = 0


class Trial:
    """Something that a breaker has let pass and that takes a while: it is told once how that went."""

    __slots__ = ("_breaker", "_breakers", "_what")

    def __init__(self, breakers: Breakers, breaker: Breaker, what: str) -> None:
        self._breakers = breakers
        self._breaker = breaker
        self._what = what

    def __repr__(self) -> str:
        return f"{self._what} is {self._breaker.state}"

    def passed(self, now: float) -> None:
        """Note that it succeeded."""
        self._breaker.passed(now)

    def failed(self, error: BaseException, now: float) -> bool:
        """Note how it failed; return whether the breaker has opened or closed."""
        return self._breakers.failed(self._breaker, error, now)

    def abandon(self) -> None:
        """Note that nobody waited for its outcome."""
        self._breaker.abandon()


class Breakers:
    """The breakers of all destinations that a process calls: a method of one life of an instance. For any thread.

    A new life begins with a closed one: what was wrong may have been what it was restarted for.

    Args:
        plan: for workers that have none of their own; None for no breaker.
        plans: by called worker.
    """

    def __init__(self, plan: BreakerPlan | None, plans: Mapping[str, BreakerPlan | None] | None = None) -> None:
        self.trouble = False
        """Whether one has ever opened: only then is there anything to look up."""
        self._plan = plan
        self._plans = plans or {}
        self._known: OrderedDict[tuple[str, int, str], Breaker] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Breakers of {len(self._known)} destinations>"

    def of(self, instance: str, generation: int, method: str) -> Breaker | None:
        """Return the breaker of a destination; None if it has none."""
        key = (instance, generation, method)
        breaker = self._known.get(key)
        if breaker is None:
            plan = self._plans.get(instance.rpartition(":")[0], self._plan)
            if plan is None:
                return None
            if len(self._known) >= _DESTINATIONS:
                self._known.popitem(last=False)
            breaker = self._known[key] = Breaker(plan)
        return breaker

    @property
    def calls(self) -> int:
        """Calls of the last minute to all destinations that have a breaker, as of the last one to each."""
        return sum(breaker.total for breaker in list(self._known.values()))

    def enter(self, instance: str, generation: int, method: str, now: float) -> Breaker | None:
        """Ask before a call; tell the breaker that is returned how it went.

        Raises:
            CircuitOpen: not now; `retry_after` says when.
        """
        breaker = self.of(instance, generation, method)
        if breaker is not None and self.trouble:
            wait = breaker.refuses(now)
            if wait is not None:
                raise CircuitOpen(wait, method=method, instance=instance, processed="no")
        return breaker

    def trial(self, instance: str, generation: int, method: str, now: float) -> Trial | None:
        """Ask as `enter` does; None if the destination has no breaker."""
        breaker = self.enter(instance, generation, method, now)
        return Trial(self, breaker, f"{method} on {instance}") if breaker is not None else None

    def failed(self, breaker: Breaker | None, error: BaseException, now: float) -> bool:
        """Note how a call failed; return whether its breaker has opened or closed."""
        if breaker is None:
            return False
        changed = breaker.record(now, failed=counts(error))
        self.trouble = self.trouble or changed
        return changed

    def closed(self, instance: str, generation: int, method: str) -> bool:
        """Tell whether calls to a destination are let through as usual."""
        breaker = self._known.get((instance, generation, method))
        return breaker is None or breaker.state == "closed"

    def states(self) -> dict[tuple[str, str], str]:
        """Return the state of every breaker that is not closed, by instance and method."""
        return {key[::2]: one.state for key, one in list(self._known.items()) if one.state != "closed"}
