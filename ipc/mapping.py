"""`map` of the async endpoints: many calls under way without a task or a future for each.

Payloads are drawn and encoded in rows, as places come free; a row leaves as one frame over a direct link, which brings
its answers back to the row. Whatever cannot go that way, or fails there, gets a task that goes the long way.
Choosing instances and the meaning of failures: routing.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Sequence,
)
from typing import Any

from smartipc.ipc.contracts import Method
from smartipc.ipc.dispatch import request_payload
from smartipc.ipc.drivers.base import Direct, Resume
from smartipc.ipc.errors import ConnectionLost, InvalidPayload, SmartIpcError
from smartipc.ipc.tracing import with_trace
from smartipc.ipc.wire import codec
from smartipc.ipc.wire.codec import UNFIT, append
from smartipc.ipc.wire.frames import ARRAY, ARRAY_MARK, ID_STEP

_DEALT = 32
"""Of that many calls under way, one more goes to the instance that was chosen last before it is chosen anew."""
_QUICK = 0.02
"""Seconds within which a row must be back for later ones to be longer: slow calls are dealt out evenly instead."""
_DEALT_QUICKLY = 8
"""As _DEALT, for quick calls."""
_REFILL = 4
"""One of so many places may be free while there is something to yield, so that rows are worth their frames."""
_MOST = 128
"""Calls of the longest row, and places that may be free."""
_PENDING: Any = object()


class Failed:
    """What takes the place of a reply that will not come."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Row:
    """Calls of a map that were sent together. A link answers them by their ids, see drivers.base.Row."""

    __slots__ = ("_pieces", "began", "direct", "encoded", "ids", "left", "run", "tasks", "values")

    def __init__(self, run: Run, encoded: bytes | bytearray, count: int, direct: Direct | None = None) -> None:
        self.run = run
        self.direct = direct
        self.encoded = encoded
        self.began = 0.0
        self.ids = range(0)
        self.values: list[Any] = [_PENDING] * count
        """Replies, Failed, or _PENDING."""
        self.left = count
        """How many are pending."""
        self.tasks: dict[int, asyncio.Task[None]] = {}
        self._pieces: list[bytes] | None = None

    def payload_of(self, index: int) -> bytes:
        """Return one call's payload, encoded."""
        if isinstance(self.encoded, bytes):
            return self.encoded
        if self._pieces is None:
            self._pieces = codec.pieces(bytes(self.encoded))
        return self._pieces[index]

    def settle(self, index: int, value: Any) -> None:
        """Take one call's outcome."""
        self.values[index] = value
        self.left -= 1
        self.run.arrived(self, (value,))

    # called by the link

    def reply(self, ident: int, payload: bytes) -> None:
        """Take one reply."""
        method = self.run.method
        self._passed(1)
        try:
            value = codec.decode(payload, method.reply, method=method.name)
        except SmartIpcError as error:
            value = Failed(error)
        self.settle((ident - self.ids.start) // ID_STEP, value)

    def replies(self, ids: range, payload: bytes) -> None:
        """Take the replies of some calls in a row."""
        values = codec.decode_all(payload, self.run.method.reply)
        if values is None:
            values = self._one_by_one(ids, payload)
        self._passed(len(values))
        at = (ids.start - self.ids.start) // ID_STEP
        self.values[at : at + len(values)] = values
        self.left -= len(values)
        self.run.arrived(self, values)

    def failed(self, ident: int, failure: SmartIpcError) -> None:
        """Go the long way on from a failure of the short one."""
        assert self.direct is not None
        self.run.detour(self, (ident - self.ids.start) // ID_STEP, Resume(self.direct.target, failure, self.began))

    def _one_by_one(self, ids: range, payload: bytes) -> list[Any]:
        method = self.run.method
        values: list[Any] = []
        try:
            pieces = codec.pieces(payload)
        except InvalidPayload as error:
            wrong = InvalidPayload(error.path, f"a malformed batch: {error.reason}", method=method.name)
            return [Failed(wrong)] * len(ids)
        for piece in pieces:
            try:
                values.append(codec.decode(piece, method.reply, method=method.name))
            except SmartIpcError as error:
                values.append(Failed(error))
        return values

    def _passed(self, count: int) -> None:
        direct = self.direct
        if direct is not None and direct.circuit is not None:
            direct.circuit.passed(self.began, count)
        self.run.took(self.began)


class Run:
    """The calls under way of one map.

    Args:
        direct: gives the link for the next call, or None.
        long: `request` of the router, with what the map was told about where calls go.
        method: the contract.
        budget: gives the seconds for the next call.
        concurrency: calls that may be under way, or wait for their turn to be yielded.
        ordered: whether replies are yielded in the order of the payloads.
    """

    def __init__(
        self,
        direct: Callable[[str], Direct | None] | None,
        long: Callable[..., Awaitable[bytes]],
        method: Method[Any, Any],
        budget: Callable[[], float],
        *,
        concurrency: int,
        ordered: bool,
    ) -> None:
        self.method = method
        self.count = 0
        """Calls that were begun and whose replies were not yielded."""
        self.low = concurrency - max(1, min(_MOST, concurrency // _REFILL))
        """So few of them are reason to begin more, although there is something to yield."""
        self._concurrency = concurrency
        self._ordered = ordered
        self._direct = direct
        self._long = long
        self._budget = budget
        self._loop = asyncio.get_running_loop()
        self._rows: set[Row] = set()
        self._queue: deque[Row] = deque()
        self._at = 0
        """Members of the first in the queue that were taken."""
        self._finished: list[Any] = []
        self._share = max(1, min(_MOST, concurrency // _DEALT))
        self._chosen: Direct | None = None
        self._again = 0
        self._wake: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return f"<Run of {self.method.name}, {self.count} under way>"

    # beginning calls

    def fill(self, source: Iterator[Any]) -> bool:
        """Begin as many calls as there are places, or payloads: then return False."""
        while (room := self._concurrency - self.count) > 0:
            direct = self._choose()
            if direct is not None and direct.link.connection.batching_calls and with_trace(None) is None:
                if not self._fill_row(source, direct, min(_MOST, room if direct.only else min(room, self._again))):
                    return False
                continue
            payload = next(source, _PENDING)
            if payload is _PENDING:
                return False
            self.begin(payload)
        return True

    async def fill_from(self, source: AsyncIterator[Any]) -> bool:
        """As `fill`, from a source that may suspend."""
        while self.count < self._concurrency:
            try:
                self.begin(await anext(source))
            except StopAsyncIteration:
                return False
        return True

    def begin(self, payload: Any) -> None:
        """Begin one call."""
        try:
            _, encoded = request_payload(self.method, payload)
        except SmartIpcError as error:
            row = Row(self, b"", 1)
            self._add(row)
            row.settle(0, Failed(error))
            return
        direct = self._choose() if with_trace(None) is None else None
        self._send(Row(self, encoded, 1, direct))

    def _fill_row(self, source: Iterator[Any], direct: Direct, most: int) -> bool:
        """Draw payloads into one row and send it; return whether there may be more."""
        chunk, wanted = direct.link.connection.limits.chunk, self.method.request
        encoded = bytearray(ARRAY.size)
        drawn = 0
        for payload in itertools.islice(source, most):
            before = len(encoded)
            if type(payload) is wanted or wanted is Any:
                try:
                    append(payload, encoded, -1)
                except UNFIT:
                    del encoded[before:]
            if before < len(encoded) <= chunk:
                drawn += 1
                continue
            del encoded[before:]
            self._send_drawn(direct, encoded, drawn)
            self.begin(payload)
            return True
        self._send_drawn(direct, encoded, drawn)
        return drawn == most

    def _send_drawn(self, direct: Direct, encoded: bytearray, drawn: int) -> None:
        if drawn > 1:
            ARRAY.pack_into(encoded, 0, ARRAY_MARK, drawn)
            self._send(Row(self, encoded, drawn, direct))
        elif drawn:
            self._send(Row(self, bytes(encoded[ARRAY.size :]), 1, direct))

    def _choose(self) -> Direct | None:
        chosen = self._chosen
        if chosen is None or self._again <= 0 or chosen.link.closed:
            self._again = self._share
            self._chosen = chosen = self._direct(self.method.name) if self._direct is not None else None
        return chosen

    def _send(self, row: Row) -> None:
        count, direct = len(row.values), row.direct
        self._add(row)
        self._again -= count
        if direct is None:
            self.detour(row, 0)
            return
        row.began = self._loop.time()
        try:
            if type(row.encoded) is bytearray:
                row.ids = direct.link.post_all(self.method.name, row.encoded, count, row, timeout=self._budget())
            else:
                row.ids = direct.link.post(self.method.name, row.encoded, row, timeout=self._budget())
        except ConnectionLost:
            for index in range(count):
                self.detour(row, index)
        except SmartIpcError as error:
            for index in range(count):
                row.settle(index, Failed(error))

    def _add(self, row: Row) -> None:
        self.count += len(row.values)
        self._rows.add(row)
        if self._ordered:
            self._queue.append(row)

    def detour(self, row: Row, index: int, resume: Resume | None = None) -> None:
        """Let a task bring one call's answer."""
        row.tasks[index] = self._loop.create_task(self._follow(row, index, row.payload_of(index), resume))

    async def _follow(self, row: Row, index: int, encoded: bytes, resume: Resume | None) -> None:
        method = self.method
        try:
            reply = await self._long(
                method.name,
                encoded,
                timeout=self._budget(),
                headers=with_trace(None),
                idempotent=method.idempotent,
                declared=method.errors,
                resume=resume,
            )
            value = codec.decode(reply, method.reply, method=method.name)
        except Exception as error:
            value = Failed(error)
        row.settle(index, value)

    # their outcomes

    def took(self, began: float) -> None:
        """Note that something is back which was sent at that time."""
        quick = self._loop.time() - began < _QUICK
        self._share = max(1, min(_MOST, self._concurrency // (_DEALT_QUICKLY if quick else _DEALT)))

    def arrived(self, row: Row, values: Sequence[Any]) -> None:
        """Take note of outcomes."""
        if not row.left:
            self._rows.discard(row)
        if not self._ordered:
            self._finished += values
        elif row is not self._queue[0]:
            return
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def wait(self) -> None:
        """Wait until `take` would give something."""
        while not (self._queue[0].values[self._at] is not _PENDING if self._ordered else self._finished):
            self._wake = self._loop.create_future()
            await self._wake

    def take(self) -> list[Any]:
        """Return the outcomes that may be yielded, in their order."""
        if not self._ordered:
            taken, self._finished = self._finished, []
            return taken
        taken = []
        while self._queue:
            row = self._queue[0]
            if row.left:
                for value in row.values[self._at :]:
                    if value is _PENDING:
                        return taken
                    taken.append(value)
                    self._at += 1
            taken += row.values[self._at :]
            self._queue.popleft()
            self._at = 0
        return taken

    async def cancel(self) -> None:
        """Give up what is under way."""
        tasks: list[asyncio.Task[None]] = []
        for row in self._rows:
            tasks += row.tasks.values()
            for index, value in enumerate(row.values):
                if value is _PENDING and index not in row.tasks and row.direct is not None:
                    row.direct.link.cancel(row.ids[index])
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def mapped(run: Run, payloads: Iterable[Any] | AsyncIterable[Any]) -> AsyncGenerator[Any, None]:
    """Yield the replies; see Endpoint.map."""
    from_afar = aiter(payloads) if isinstance(payloads, AsyncIterable) else None
    source = iter(()) if isinstance(payloads, AsyncIterable) else iter(payloads)
    more = True
    try:
        while True:
            if more:
                more = run.fill(source) if from_afar is None else await run.fill_from(from_afar)
            if not run.count:
                return
            await run.wait()
            for value in run.take():
                run.count -= 1
                if type(value) is Failed:
                    raise value.error
                yield value
                if more and run.count <= run.low:
                    more = run.fill(source) if from_afar is None else await run.fill_from(from_afar)
    finally:
        await run.cancel()
