"""The calls under way of one `map`, in rows: what both flavours do alike.

Payloads are drawn and encoded in rows, as places come free; a row leaves as one frame over a direct link, which brings
its answers back to the row. Whatever cannot go that way, or fails there, goes the long way by itself. Sending, waiting
and the long way are each flavour's own, see mapping.py and sync/mapping.py; choosing instances: routing.

Outcomes may come in whatever thread reads; everything else happens in the one that draws from the map.
"""

from __future__ import annotations

import abc
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
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

    __slots__ = ("_pieces", "began", "detours", "direct", "encoded", "ids", "left", "run", "values")

    def __init__(self, run: Run, encoded: bytes | bytearray, count: int, direct: Direct | None = None) -> None:
        self.run = run
        self.direct = direct
        self.encoded = encoded
        self.began = 0.0
        self.ids = range(0)
        self.values: list[Any] = [_PENDING] * count
        """Replies, Failed, or _PENDING."""
        self.left = count
        """How many the link still owes. Only whoever reads changes it once they are sent."""
        self.detours: set[int] = set()
        """Those that go the long way."""
        self._pieces: list[bytes] | None = None

    def payload_of(self, index: int) -> bytes:
        """Return one call's payload, encoded."""
        if isinstance(self.encoded, bytes):
            return self.encoded
        if self._pieces is None:
            self._pieces = codec.pieces(bytes(self.encoded))
        return self._pieces[index]

    @property
    def whole(self) -> bool:
        """Whether nothing is pending."""
        return not self.left and not self.detours

    def settle(self, index: int, value: Any) -> None:
        """Take the outcome of one call that went the long way."""
        self.values[index] = value
        self.detours.discard(index)
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
        self.values[(ident - self.ids.start) // ID_STEP] = value
        self.left -= 1
        self.run.arrived(self, (value,))

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
        index = (ident - self.ids.start) // ID_STEP
        self.detours.add(index)
        self.run.detour(self, index, Resume(self.direct.target, failure, self.began))
        self.left -= 1  # last, so that whoever sees that nothing is owed sees what is to be done instead

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


class Run(abc.ABC):
    """The calls under way of one map.

    Args:
        direct: gives the link for the next call, or None.
        method: the contract.
        budget: gives the seconds for the next call.
        concurrency: calls that may be under way, or wait for their turn to be yielded.
        ordered: whether replies are yielded in the order of the payloads.
    """

    def __init__(
        self,
        direct: Callable[[str], Direct | None] | None,
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
        self.concurrency = concurrency
        self._ordered = ordered
        self._direct = direct
        self.budget = budget
        self.open: set[Row] = set()
        """Those of which something is pending."""
        self._queue: deque[Row] = deque()
        self._at = 0
        """Members of the first in the queue that were taken."""
        self._finished: deque[Any] = deque()  # appended to by whatever thread reads
        self._share = max(1, min(_MOST, concurrency // _DEALT))
        self._chosen: Direct | None = None
        self._again = 0

    def __repr__(self) -> str:
        return f"<Run of {self.method.name}, {self.count} under way>"

    # beginning calls

    def fill(self, source: Iterator[Any]) -> bool:
        """Begin as many calls as there are places, or payloads: then return False."""
        while (room := self.concurrency - self.count) > 0:
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

    def begin(self, payload: Any) -> None:
        """Begin one call."""
        try:
            _, encoded = request_payload(self.method, payload)
        except SmartIpcError as error:
            row = Row(self, b"", 1)
            self._add(row)
            self._fail(row, error)
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
            self._divert(row)
            return
        row.began = time.monotonic()
        try:
            self.post(row, direct, self.budget())
        except ConnectionLost:
            self._divert(row)
        except SmartIpcError as error:
            self._fail(row, error)

    def _divert(self, row: Row) -> None:
        row.left = 0
        row.detours.update(range(len(row.values)))
        for index in range(len(row.values)):
            self.detour(row, index)

    def _fail(self, row: Row, error: SmartIpcError) -> None:
        row.left = 0
        row.values[:] = [Failed(error)] * len(row.values)
        self.arrived(row, row.values)

    def _add(self, row: Row) -> None:
        self.count += len(row.values)
        self.open.add(row)
        if self._ordered:
            self._queue.append(row)

    @abc.abstractmethod
    def post(self, row: Row, direct: Direct, timeout: float) -> None:
        """Send a row over a link, which sets its ids.

        Raises:
            ConnectionLost: nothing was sent.
            SmartIpcError: nothing was sent, and why it cannot be.
        """

    @abc.abstractmethod
    def detour(self, row: Row, index: int, resume: Resume | None = None) -> None:
        """Let one call go the long way, on from a failure of the short one if there was one."""

    @abc.abstractmethod
    def wake(self) -> None:
        """Let `wait` look again."""

    # their outcomes

    def took(self, began: float) -> None:
        """Note that something is back which was sent at that time."""
        quick = time.monotonic() - began < _QUICK
        self._share = max(1, min(_MOST, self.concurrency // (_DEALT_QUICKLY if quick else _DEALT)))

    def arrived(self, row: Row, values: Sequence[Any]) -> None:
        """Take note of outcomes."""
        if row.whole:
            self.open.discard(row)
        if not self._ordered:
            self._finished.extend(values)
            self.wake()
        elif row is self._queue[0]:
            self.wake()

    @property
    def ready(self) -> bool:
        """Whether `take` would give something."""
        if self._ordered:
            return self._queue[0].values[self._at] is not _PENDING
        return bool(self._finished)

    def take(self) -> list[Any]:
        """Return the outcomes that may be yielded, in their order."""
        if not self._ordered:
            return [self._finished.popleft() for _ in range(len(self._finished))]
        taken: list[Any] = []
        while self._queue:
            row = self._queue[0]
            if not row.whole:
                for value in row.values[self._at :]:
                    if value is _PENDING:
                        return taken
                    taken.append(value)
                    self._at += 1
            taken += row.values[self._at :]
            self._queue.popleft()
            self._at = 0
        return taken

    def withdraw(self) -> None:
        """Give up what is under way over links."""
        for row in list(self.open):
            for index, value in enumerate(row.values):
                if value is _PENDING and index not in row.detours and row.direct is not None:
                    row.direct.link.cancel(row.ids[index])
