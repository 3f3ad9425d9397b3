"""Topics of the blocking client: the twin of subscribing.py, for any number of threads."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable
from typing import Any

from smartipc.ipc.contracts import Topic
from smartipc.ipc.drivers.blocking import Link
from smartipc.ipc.errors import ConnectionLost, LocalProtocolError, Overloaded
from smartipc.ipc.protocol.events import MessageReceived, SubscribedReceived
from smartipc.ipc.subscriptions import Inbox, subscription_of
from smartipc.ipc.sync.exchanging import Desk
from smartipc.ipc.sync.hearing import Messages
from smartipc.ipc.wanted import Wanted

_LOOK = 0.05
"""Seconds between looks at the connection while a subscription waits for messages: nobody else makes it again."""


class Subscriptions:
    """The topics of one client, over whichever link there is.

    Args:
        desk: reads, and waits.
        usable: returns a link that carries new work, made anew if need be, by a time; or raises RequestTimeout.
    """

    def __init__(self, desk: Desk, usable: Callable[[float, str], Link]) -> None:
        self._desk = desk
        self._usable = usable
        self._numbers = itertools.count(1)
        self._open: dict[int, Wanted[Messages[Any]]] = {}
        self._link: Link | None = None
        self._ended = False
        desk.on_published = self.on_message
        desk.on_lost = self.lost

    def __repr__(self) -> str:
        return f"<Subscriptions: {len(self._open)}>"

    # subscribing

    def subscribe(
        self, topic: Topic[Any] | str, *, queue: str | None, max_pending: int | None, overflow: str
    ) -> Messages[Any]:
        """Make a subscription that is registered when it is entered; see Router."""
        number = next(self._numbers)
        inbox = subscription_of(number, topic, queue=queue, max_pending=max_pending, overflow=overflow)
        return Messages(self, inbox)

    def register(self, messages: Messages[Any], inbox: Inbox) -> None:
        """Tell the server, and wait until every later publish reaches the subscription.

        Raises:
            LocalProtocolError: it is entered already, or the server refuses.
            ConnectionLost: the client is closed.
        """
        if inbox.number in self._open:
            raise LocalProtocolError("this subscription is entered already")
        self._desk.require_own()
        wanted = Wanted(messages, inbox)
        try:
            link = self._usable(_FOR_EVER, inbox.pattern)
            self._open[inbox.number] = wanted
            if link is self._link:
                wanted.ask(link)
            while not wanted.answered and not self._ended:
                link = self._usable(_FOR_EVER, inbox.pattern)  # a link that is lost meanwhile is replaced, and asked
                if not wanted.answered:
                    link.pump(_LOOK)
            wanted.check()
        except BaseException:
            self.unregister(inbox.number)
            raise

    def unregister(self, number: int) -> None:
        """Forget a subscription; messages under way to it are dropped."""
        self._open.pop(number, None)
        link = self._link
        if link is not None and not link.closed:
            with contextlib.suppress(ConnectionLost):
                link.relay(lambda topics: topics.unsubscribe(number), wait=False)

    def wait(self, done: Callable[[], bool], timeout: float | None = None) -> bool:
        """Wait as Desk.wait does, and make a lost connection again meanwhile: messages come over it."""
        self._desk.require_own()
        until = None if timeout is None else time.monotonic() + timeout
        while not done():
            left = _FOR_EVER if until is None else until
            if time.monotonic() >= left:
                return False
            with contextlib.suppress(TimeoutError):
                self._usable(min(left, time.monotonic() + 1.0), "")
            link = self._link
            self._desk.wait(
                lambda link=link: done() or link is None or link.closed,  # type: ignore[misc]
                None if until is None else max(0.0, until - time.monotonic()),
            )
        return True

    def restore(self, link: Link, until: float) -> None:
        """Ask a new link for all subscriptions and wait until they hold.

        Raises:
            ConnectionLost: the link is lost, or does not answer by `until`.
        """
        self._link = link
        for wanted in list(self._open.values()):
            wanted.ask(link)
        while not link.closed and not all(wanted.answered for wanted in list(self._open.values())):
            left = until - time.monotonic()
            if left <= 0:
                raise ConnectionLost(reason="the server does not answer subscriptions")
            link.pump(left)
        if link.closed:
            raise link.error or ConnectionLost()
        for wanted in list(self._open.values()):
            if wanted.refusal:
                wanted.messages.close()  # the server that came refuses it: nothing will arrive any more

    def on_subscribed(self, link: Link, event: SubscribedReceived) -> None:
        """Take the server's answer to a subscription."""
        wanted = self._open.get(event.number)
        if wanted is not None and link is self._link:
            wanted.refusal = event.reason
            wanted.holds = not event.reason

    def on_message(self, link: Link, event: MessageReceived) -> None:
        """Pass an arrived message on; one for a subscription that is gone is dropped."""
        wanted = self._open.get(event.number)
        if wanted is not None and wanted.messages.arrived(event, link):
            self._desk.post(wanted.messages.deliver)

    def lost(self, link: Link) -> None:
        """Drop the bookkeeping of a link that is over; what it brought stays readable."""
        for wanted in list(self._open.values()):
            wanted.messages.forget(link)

    def stop(self) -> None:
        """Let every iteration end after what has arrived."""
        self._ended = True
        for wanted in list(self._open.values()):
            wanted.messages.close()
        self._desk.wake()

    # publishing

    def publish(self, topic: str, encoded: bytes, *, headers: dict[str, str] | None, retain: bool) -> None:
        """Hand a message to the server, waiting for credit and for a connection; see Router."""
        self._desk.require_own()  # the link would refuse, too, but so it does when another thread takes the last credit
        while True:
            link = self._usable(_FOR_EVER, topic)
            if not link.connection.topics.room:
                self._desk.wait(lambda link=link: link.closed or link.connection.topics.room)  # type: ignore[misc]
                continue
            try:
                link.relay(lambda topics: topics.publish(topic, encoded, headers=headers, retain=retain))
            except ConnectionLost:
                continue  # it ended just now: nothing was written
            except LocalProtocolError:
                if link.connection.topics.negotiated and not link.closed:
                    continue  # another thread took the last credit
                raise
            else:
                return

    def publish_nowait(
        self, link: Link | None, topic: str, encoded: bytes, *, headers: dict[str, str] | None, retain: bool
    ) -> int:
        """Hand a message to the server, or not; see Router."""
        if link is not None and not link.connection.topics.room:
            link.pump(0)
        if link is None or not link.flush() or not link.connection.topics.room:
            raise Overloaded(method=topic)
        try:
            link.relay(lambda topics: topics.publish(topic, encoded, headers=headers, retain=retain), wait=False)
        except ConnectionLost:
            raise Overloaded(method=topic) from None
        return 1


_FOR_EVER = float(1 << 31)
"""A monotonic time that does not come."""
