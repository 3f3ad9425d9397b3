"""Requests that came in one frame, for a handler that is called where it was read: run in a row, answered together.

Each of them is a request of its own all the same: its deadline is looked at before its call, it can be withdrawn until
then, and what it raises is its own error. A long row is interrupted, so that other links, cancels and beats have their
turn. Which requests come here is decided in serving.py; handlers that suspend do not.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections import deque
from typing import Any, Never

from smartipc.ipc import tracing
from smartipc.ipc.answering import Answers, Replies
from smartipc.ipc.dispatch import Handler
from smartipc.ipc.drivers.aio import Link
from smartipc.ipc.errors import ConnectionLost
from smartipc.ipc.protocol.events import RequestsReceived

SLICE = 0.005
"""Seconds after which a row lets the loop turn."""


class Row:
    """What is left of one batch."""

    __slots__ = ("at", "event", "handler", "link", "payloads")

    def __init__(self, handler: Handler, link: Link, event: RequestsReceived, payloads: list[Any]) -> None:
        self.handler = handler
        self.link = link
        self.event = event
        self.payloads = payloads
        self.at = 0

    def __len__(self) -> int:
        return len(self.event.ids) - self.at


class Rows:
    """Runs batches, the first slice of one at once if none waits.

    Args:
        answers: says what became of each request.
        deadline: set to the deadline of the request whose handler runs.
    """

    def __init__(self, answers: Answers, deadline: contextvars.ContextVar[float | None]) -> None:
        self._answers = answers
        self._deadline = deadline
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Row] = deque()
        self._idle: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return f"<Rows, {len(self)} requests wait>"

    def __len__(self) -> int:
        return sum(len(row) for row in self._waiting)

    def run(self, handler: Handler, link: Link, event: RequestsReceived, payloads: list[Any]) -> None:
        """Call a plain handler with each of the payloads, now or behind those that wait."""
        row = Row(handler, link, event, payloads)
        if not self._waiting and self._serve(row):
            return
        self._waiting.append(row)
        if len(self._waiting) == 1:
            self._loop.call_soon(self._go_on)

    def cancel(self, link: Link, ident: int) -> None:
        """Keep a waiting request from being run."""
        for row in self._waiting:
            if row.link is link and ident in row.event.ids:
                row.event.withdrawn.add(ident)

    def closed(self, link: Link) -> None:
        """Forget what came over a link."""
        self._waiting = deque(row for row in self._waiting if row.link is not link)

    async def finish(self, grace: float, name: str) -> None:
        """Run what waits, for at most `grace` seconds, and answer the rest as never run: `name` is stopping."""
        if self._waiting:
            self._idle = self._loop.create_future()
            await asyncio.wait({self._idle}, timeout=grace)
        lost = ConnectionLost(name, "stopping", processed="no", retryable=True)
        while self._waiting:
            row = self._waiting.popleft()
            for ident in row.event.ids[row.at :]:
                self._answers.refused(row.link, ident, lost)

    def _go_on(self) -> None:
        """Serve a slice of the row that has waited longest; those behind it have their turn after the loop's."""
        if self._waiting:
            row = self._waiting.popleft()
            if not row.link.closed and not self._serve(row):
                self._waiting.append(row)
        if self._waiting:
            self._loop.call_soon(self._go_on)
        elif self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    def _serve(self, row: Row) -> bool:
        """Call the handler for as long as a slice is; tell whether it is done with the row."""
        handler, link, event, payloads = row.handler, row.link, row.event, row.payloads
        function, clock = handler.function, time.monotonic
        ids, withdrawn, peer, received_at = event.ids, event.withdrawn, link.peer, event.received_at
        due = event.deadline if event.deadline is not None else float("inf")
        wanted = _certain(handler.reply)
        replies = Replies(link)
        current, until = tracing.current, clock() + SLICE
        token, handled = self._deadline.set(event.deadline), current.set(None)
        try:
            for at in range(row.at, len(ids)):
                row.at = at
                now = clock()
                if now > until:
                    return False
                ident = ids[at]
                if now >= due:
                    self._answers.expired(handler, link, ident)
                    continue
                if withdrawn and ident in withdrawn:
                    continue
                current.set((peer, None, ident, received_at))
                try:
                    value = function(payloads[at])
                except asyncio.CancelledError:
                    self._answers.cancelled(handler, link, ident)
                    continue
                except BaseException as error:
                    self._answers.failed(handler, link, ident, error)
                    continue
                if not (replies.room and (wanted is None or type(value) is wanted) and replies.add(ident, value)):
                    self._answers.reply(handler, link, ident, value)
            row.at = len(ids)
            return True
        finally:
            self._deadline.reset(token)
            current.reset(handled)
            replies.send()


def _certain(reply: Any) -> Any:
    """Return the type whose values need no look at what they are encoded to; None for all."""
    if reply is Any:
        return None
    if reply is None:
        return type(None)
    return reply if isinstance(reply, type) else Never
