"""The owners of links that serve what peers ask: a worker's handle, a client, a server. Async flavour.

Only hands on what arrives; handlers run in serving.py. What becomes of topics differs, and is each owner's own.
"""

from __future__ import annotations

from typing import Any

from smartipc.ipc.contracts import Topic
from smartipc.ipc.drivers.aio import Link
from smartipc.ipc.drivers.base import QuietHost
from smartipc.ipc.errors import ConnectionLost
from smartipc.ipc.protocol.events import (
    CancelReceived,
    NotifiesReceived,
    NotifyReceived,
    OpenReceived,
    RequestReceived,
    RequestsReceived,
)
from smartipc.ipc.serving import Server


class ServingHost(QuietHost):
    """A LinkHost with handlers."""

    handlers: Server

    def on_request(self, link: Link, event: RequestReceived) -> None:
        """Serve it."""
        self.handlers.on_request(link, event)

    def on_requests(self, link: Link, event: RequestsReceived) -> None:
        """Serve them."""
        self.handlers.on_requests(link, event)

    def on_notify(self, link: Link, event: NotifyReceived) -> None:
        """Serve it."""
        self.handlers.on_notify(link, event)

    def on_notifies(self, link: Link, event: NotifiesReceived) -> None:
        """Serve them."""
        self.handlers.on_notifies(link, event)

    def on_open(self, link: Link, event: OpenReceived) -> None:
        """Serve it."""
        self.handlers.streams.on_open(link, event)

    def on_cancel(self, link: Link, event: CancelReceived) -> None:
        """Cancel the handler."""
        self.handlers.on_cancel(link, event.id)


class StandaloneHost(ServingHost):
    """A ServingHost without a supervisor, with the part of a Router that needs a directory: there is none to ask."""

    def trial(self, link: Link, name: str) -> None:
        """Let everything pass: there is no other destination to turn to; see Router."""

    async def mourn(self, lost: ConnectionLost, link: Link) -> ConnectionLost:  # noqa: ARG002 - the shape of every router
        """Return the loss as it is: no more can be known; see Router."""
        return lost

    def burst(self, topic: Topic[Any]) -> None:
        """Begin none; see Router."""

    def flush(self) -> None:
        """Do nothing: there are no bursts."""
