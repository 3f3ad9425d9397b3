"""Topics of the async client: its subscriptions at the server, and its credit for publishing.

The counting is in subscriptions.py and protocol.topics; this file sends, waits, and restores what a lost link held.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

from smartipc.ipc.contracts import Topic
from smartipc.ipc.drivers.aio import Link
from smartipc.ipc.errors import ConnectionLost, LocalProtocolError, Overloaded
from smartipc.ipc.hearing import Messages
from smartipc.ipc.protocol.events import MessageReceived, SubscribedReceived
from smartipc.ipc.subscriptions import Inbox, subscription_of
from smartipc.ipc.wanted import Wanted


class Subscriptions:
    """The topics of one client, over whichever link there is.

    Args:
        usable: waits until there is a link that carries new work.
    """

    def __init__(self, usable: Callable[[str], Awaitable[Link]]) -> None:
        self._usable = usable
        self._loop = asyncio.get_running_loop()
        self._numbers = itertools.count(1)
        self._open: dict[int, Wanted[Messages[Any]]] = {}
        self._link: Link | None = None
        self._news: asyncio.Future[None] | None = None
        self._ended = False

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

    async def register(self, messages: Messages[Any], inbox: Inbox) -> None:
        """Tell the server, and wait until every later publish reaches the subscription.

        Raises:
            LocalProtocolError: it is entered already, or the server refuses.
            ConnectionLost: the client is closed.
        """
        if inbox.number in self._open:
            raise LocalProtocolError("this subscription is entered already")
        wanted = self._open[inbox.number] = Wanted(messages, inbox)
        if self._link is not None and not self._link.closed:
            wanted.ask(self._link)
        try:
            while not wanted.answered and not self._ended:
                await self._change()  # a link that is lost meanwhile is replaced, and the new one is asked
            wanted.check()
        except BaseException:
            await self.unregister(inbox.number)
            raise

    async def unregister(self, number: int) -> None:
        """Forget a subscription; messages under way to it are dropped."""
        self._open.pop(number, None)
        if self._link is not None and not self._link.closed:
            self._link.relay(lambda topics: topics.unsubscribe(number))

    async def restore(self, link: Link) -> None:
        """Ask a new link for all subscriptions and wait until they hold.

        Raises:
            ConnectionLost: the link is lost.
        """
        self._link = link
        for wanted in self._open.values():
            wanted.ask(link)
        while not link.closed and not all(wanted.answered for wanted in self._open.values()):
            await self._change()
        if link.closed:
            raise link.error or ConnectionLost()
        for wanted in self._open.values():
            if wanted.refusal:
                wanted.messages.close()  # the server that came refuses it: nothing will arrive any more

    def on_subscribed(self, link: Link, event: SubscribedReceived) -> None:
        """Take the server's answer to a subscription."""
        wanted = self._open.get(event.number)
        if wanted is not None and link is self._link:
            wanted.holds, wanted.refusal = not event.reason, event.reason
            self.look_again()

    def on_message(self, link: Link, event: MessageReceived) -> None:
        """Pass an arrived message on; one for a subscription that is gone is dropped."""
        wanted = self._open.get(event.number)
        if wanted is not None:
            wanted.messages.arrived(event, link)

    def lost(self, link: Link) -> None:
        """Drop the bookkeeping of a link that is over; what it brought stays readable."""
        for wanted in self._open.values():
            wanted.messages.forget(link)
        self.look_again()

    def stop(self) -> None:
        """Let every iteration end after what has arrived."""
        self._ended = True
        for wanted in self._open.values():
            wanted.messages.close()
        self.look_again()

    # publishing

    async def publish(self, topic: str, encoded: bytes, *, headers: dict[str, str] | None, retain: bool) -> None:
        """Hand a message to the server, waiting for credit and for a connection; see Router."""
        while True:
            link = await self._usable(topic)
            if not link.connection.topics.room:
                await self._change()
                continue
            with contextlib.suppress(ConnectionLost):  # it ended just now: nothing was written
                link.relay(lambda topics: topics.publish(topic, encoded, headers=headers, retain=retain))
                await link.drained()
                return

    def publish_nowait(
        self, link: Link | None, topic: str, encoded: bytes, *, headers: dict[str, str] | None, retain: bool
    ) -> int:
        """Hand a message to the server, or not; see Router."""
        if link is None or link.full or not link.connection.topics.room:
            raise Overloaded(method=topic)
        link.relay(lambda topics: topics.publish(topic, encoded, headers=headers, retain=retain))
        return 1

    def look_again(self) -> None:
        """Let whoever waits for credit, an answer or a link look again."""
        if self._news is not None and not self._news.done():
            self._news.set_result(None)
        self._news = None

    async def _change(self) -> None:
        if self._news is None:
            self._news = self._loop.create_future()
        await asyncio.wait({self._news})
