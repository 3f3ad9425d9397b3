"""One subscription of a client at its server: what was asked, and what the server says. For both flavours.

Nothing waits in here: subscribing.py does, and its twin in sync/.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from smartipc.ipc.errors import ConnectionLost, LocalProtocolError
from smartipc.ipc.protocol.topics import Topics
from smartipc.ipc.subscriptions import Inbox

M = TypeVar("M")


class Asked(Protocol):
    """The link to a server, of either driver."""

    def relay(self, say: Callable[[Topics], None]) -> None:
        """Let `say` queue something of the connection's topics, and send it; raises ConnectionLost if it is over."""
        ...


class Wanted(Generic[M]):
    """One subscription and what the server of the current link says of it.

    Args:
        messages: what the program reads.
        inbox: what arrives for it.
    """

    def __init__(self, messages: M, inbox: Inbox) -> None:
        self.messages = messages
        self.inbox = inbox
        self.holds = False
        self.refusal = ""

    def __repr__(self) -> str:
        return f"<Wanted {self.inbox.pattern}{', held' if self.holds else ''}>"

    @property
    def answered(self) -> bool:
        """Whether the server has said yes or no."""
        return self.holds or self.refusal != ""

    def check(self) -> None:
        """Raise what stands against it.

        Raises:
            LocalProtocolError: the server refuses it.
            ConnectionLost: there was no answer, because the client is closed.
        """
        if self.refusal:
            raise LocalProtocolError(f"the server refuses the subscription: {self.refusal}")
        if not self.holds:
            raise ConnectionLost(reason="this client is closed", processed="no", retryable=False)

    def ask(self, link: Asked) -> None:
        """Ask the server for it; a link that is lost meanwhile is no matter."""
        request = self.inbox.request
        self.holds = False
        try:
            link.relay(
                lambda topics: topics.subscribe(
                    request.number, request.pattern, request.window, request.queue, request.overflow
                )
            )
        except ConnectionLost:
            return  # the next link asks again
        except LocalProtocolError as error:
            self.refusal = error.reason
