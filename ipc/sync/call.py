"""One logical request of the blocking flavour over all its attempts, as data. calling.py and exchanging.py drive it."""

from __future__ import annotations

import time
from typing import Any

from smartipc.ipc.control import Entry
from smartipc.ipc.drivers.blocking import Link
from smartipc.ipc.errors import ConnectionLost
from smartipc.ipc.message import Peer
from smartipc.ipc.resilience.breaker import Breaker
from smartipc.ipc.routing.directory import DirectoryState

LONG: Any = object()
"""What is returned in place of a reply for a call that must go the long way."""
Life = tuple[str, int]
"""An instance and its generation."""


def never() -> bool:
    """Return False: nothing but the calls themselves is waited for."""
    return False


class Call:
    """One logical request: on a link, at rest before its next attempt, or done with a reply or an error.

    Args:
        method: full address.
        payload: encoded.
        timeout: seconds for all attempts together.
        entry: the life to ask, and no other (broadcast); else one is chosen per attempt.
    """

    __slots__ = (
        "attempt", "avoid", "circuit", "deadline", "declared", "entry", "error", "fixed", "headers", "idempotent",
        "ident", "key", "link", "lost", "method", "payload", "reply", "rest_until", "seen", "slot", "timeout", "to",
        "waiting_for", "where",
    )  # fmt: skip

    def __init__(
        self,
        method: str,
        payload: bytes,
        *,
        timeout: float,
        to: Peer | None = None,
        slot: int | None = None,
        key: str | None = None,
        headers: dict[str, str] | None = None,
        idempotent: bool = False,
        declared: tuple[type[BaseException], ...] = (),
        entry: Entry | None = None,
    ) -> None:
        self.method = method
        self.payload = payload
        self.timeout = timeout
        self.to = to
        self.slot = slot
        self.key = key
        self.headers = headers
        self.idempotent = idempotent
        self.declared = declared
        self.fixed = entry
        self.deadline = time.monotonic() + timeout
        self.attempt = 1
        self.entry = entry
        self.link: Link | None = None
        self.ident = 0
        self.lost: ConnectionLost | None = None
        self.rest_until = 0.0
        self.seen: DirectoryState | None = None
        self.avoid: set[Life] | None = None
        self.waiting_for = ""
        self.where = ""
        self.circuit: Breaker | None = None
        self.reply: bytes | None = None
        self.error: BaseException | None = None

    def __repr__(self) -> str:
        where = "done" if self.done else f"on {self.link!r}" if self.link is not None else "at rest"
        return f"<Call {self.method} attempt {self.attempt}, {where}>"

    @property
    def done(self) -> bool:
        """Whether `result` returns or raises."""
        return self.reply is not None or self.error is not None

    @property
    def instance(self) -> str:
        """The instance that is, or was last, asked."""
        return self.entry.instance if self.entry is not None else self.where

    def result(self) -> bytes:
        """Return the reply's payload or raise the error."""
        if self.error is not None:
            raise self.error
        assert self.reply is not None
        return self.reply
