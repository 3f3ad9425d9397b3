"""What an async Endpoint asks of whoever knows where things go: the directory, the one server, or the clients.

Implemented in handle.py (a worker's instances), client.py (one link) and server.py (many clients). No behaviour in
here. The blocking twin is sync/router.py.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Protocol

from smartipc.ipc.contracts import Topic
from smartipc.ipc.drivers.base import Direct, Resume
from smartipc.ipc.hearing import Messages
from smartipc.ipc.message import Peer
from smartipc.ipc.publishing import TopicBurst
from smartipc.ipc.streaming import Reach


class Router(Reach, Protocol):
    """Where things go; `reach`, `trial` and `mourn` are for what is opened there.

    Names are full addresses, payloads are encoded and checked, timeouts are seconds from now.
    """

    def request(
        self,
        name: str,
        encoded: bytes,
        *,
        timeout: float,
        to: Peer | None = None,
        slot: int | None = None,
        key: str | None = None,
        headers: dict[str, str] | None = None,
        idempotent: bool = False,
        declared: tuple[type[BaseException], ...] = (),
        resume: Resume | None = None,
    ) -> Awaitable[bytes]:
        """Carry one call to its end, over all its attempts, and return the reply's payload.

        With `resume` its first attempt was made over a `direct` link and has failed.
        """
        ...

    def direct(self, name: str) -> Direct | None:
        """Return the open link that a call with nothing special goes to now.

        None if there is anything to wait for, or to look at first: then `request` does it.
        """
        ...

    async def broadcast(
        self,
        name: str,
        encoded: bytes,
        *,
        timeout: float,
        headers: dict[str, str] | None,
        declared: tuple[type[BaseException], ...],
    ) -> list[tuple[str, bytes | BaseException]]:
        """Ask everybody who serves `name`, and return what each one answered."""
        ...

    async def publish(self, topic: str, encoded: bytes, *, headers: dict[str, str] | None, retain: bool) -> None:
        """Send to every subscription of a topic, waiting for those that are full."""
        ...

    def publish_nowait(self, topic: str, encoded: bytes, *, headers: dict[str, str] | None, retain: bool) -> int:
        """Send to every subscription of a topic, or to none."""
        ...

    def burst(self, topic: Topic[Any]) -> TopicBurst | None:
        """Begin a burst of messages on a topic, if one is worth while now."""
        ...

    def flush(self) -> None:
        """Send what a burst has collected, before something else is said."""
        ...

    def subscribe(
        self, topic: Topic[Any] | str, *, queue: str | None, max_pending: int | None, overflow: str
    ) -> Messages[Any]:
        """Make a subscription that is registered when it is entered."""
        ...
