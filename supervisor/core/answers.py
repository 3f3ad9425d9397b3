"""The orders of persons that wait to be answered. Bookkeeping only: what fulfils an order is decided in core.py.

Every order is answered exactly once, when each of its instances has a result: "" for done, else why not. The first
result of an instance stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from smartipc.supervisor.core.orders import Answer

Aim = Literal["up", "down", "gone", "replaced"]
"""What an order wants of an instance: ready; without a process; removed for good; or a new life in the place of the
one that serves. Orders of one aim wait together, others overtake them."""


class Answers:
    """All open orders of one app."""

    def __init__(self) -> None:
        self._open: dict[int, dict[str, str | None]] = {}
        self._aims: dict[int, dict[str, Aim]] = {}

    def __repr__(self) -> str:
        return f"<Answers {len(self._open)} open>"

    def open(self, order: int, aims: Mapping[str, Aim]) -> None:
        """Begin to wait, by instance for what; order 0 wants no answer."""
        if order:
            self._open[order] = dict.fromkeys(aims)
            self._aims[order] = dict(aims)

    def say(self, order: int, instance: str, result: str) -> None:
        """Give one order its result for one instance."""
        results = self._open.get(order)
        if results is not None and results.get(instance, "") is None:
            results[instance] = result

    def settle(self, instance: str, aim: Aim, result: str) -> None:
        """Give this result to all orders of that aim that wait for the instance."""
        for order, results in self._open.items():
            if self._aims[order].get(instance) == aim and instance in results:
                self.say(order, instance, result)

    def waits(self, aim: Aim) -> bool:
        """Tell whether any open order has that aim."""
        return any(aim in aims.values() for aims in self._aims.values())

    def aim(self, order: int, instance: str, aim: Aim) -> None:
        """Let an open order want something else of an instance."""
        if order in self._aims:
            self._aims[order][instance] = aim

    def unsaid(self, order: int, instance: str) -> bool:
        """Tell whether an order still waits for that instance; order 0 always does."""
        return not order or self._open.get(order, {}).get(instance, "") is None

    def collect(self) -> list[Answer]:
        """Return the answers that have become complete, each once."""
        complete: list[Answer] = []
        for order, results in list(self._open.items()):
            said = tuple((name, result) for name, result in results.items() if result is not None)
            if len(said) == len(results):
                complete.append(Answer(order, said))
                del self._open[order], self._aims[order]
        return complete
