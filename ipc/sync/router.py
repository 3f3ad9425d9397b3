"""What a blocking Endpoint asks of whoever knows where things go: the twin of router.py, in terms of Calls.

Implemented in handle.py (a worker's instances), client.py (one link) and server.py (many clients). No behaviour in
here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Protocol

from smartipc.ipc.contracts import Method, Topic
from smartipc.ipc.drivers.base import Direct, Resume
from smartipc.ipc.drivers.blocking import Link
from smartipc.ipc.sync.call import Call, never
from smartipc.ipc.sync.hearing import Messages
from smartipc.ipc.sync.streaming import Reach


class Router(Reach, Protocol):
    """Where things go; `reach`, `trial`, `mourn` and `await_on` are for what is opened there.

    Calls carry full addresses and encoded, checked payloads.
    """

    def request(self, call: Call) -> bytes:
        """Carry one call to its end, over all its attempts, and return the reply's payload."""
        ...

    def ask(self, method: Method[Any, Any], payload: Any) -> Any:
        """Carry a call without options to its end and return its reply, decoded; LONG, and nothing done, if longer."""
        ...

    def start(self, call: Call) -> None:
        """Make the first attempt of a call that `drive` carries on."""
        ...

    def drive(self, calls: Collection[Call], links: Collection[Link] = (), enough: Callable[[], bool] = never) -> None:
        """Work on all the calls until at least one is done; returns at once when one is.

        Reads the `links`, too, until what came over them is `enough`.
        """
        ...

    def direct(self, name: str) -> Direct | None:
        """Return the open link that a call with nothing special goes to now.

        None if there is anything to wait for, or to look at first: then `start` does it.
        """
        ...

    def resume(self, call: Call, resume: Resume) -> None:
        """Decide on a call that was made over a `direct` link and has failed there; `drive` carries it on."""
        ...

    def cancel(self, call: Call) -> None:
        """Give a call up that is not done."""
        ...

    def notify(self, call: Call) -> None:
        """Write one one-way message."""
        ...

    def everyone(self, call: Call) -> list[Call]:
        """Return one call for everybody who serves the method of `call`; each knows its `instance`."""
        ...

    def publish(self, topic: str, encoded: bytes, *, headers: dict[str, str] | None, retain: bool) -> None:
        """Send to every subscription of a topic, waiting for those that are full."""
        ...

    def publish_nowait(self, topic: str, encoded: bytes, *, headers: dict[str, str] | None, retain: bool) -> int:
        """Send to every subscription of a topic, or to none."""
        ...

    def subscribe(
        self, topic: Topic[Any] | str, *, queue: str | None, max_pending: int | None, overflow: str
    ) -> Messages[Any]:
        """Make a subscription that is registered when it is entered."""
        ...
