"""Streams and channels of the blocking flavour: the twin of streaming.py, without await.

Whoever waits reads: over the one link at a worker that opened, over all links at whoever serves. What an end says and
is told is in ends.py, the handlers that serve are in producing.py.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

from smartipc.ipc.drivers.blocking import Link
from smartipc.ipc.ends import FlowEnd, Refusals, judged, name_at
from smartipc.ipc.errors import (
    CallError,
    ConnectionLost,
    EndOfStream,
    LocalProtocolError,
    RequestTimeout,
)
from smartipc.ipc.flows import Reception, encode_item
from smartipc.ipc.resilience.breaker import Trial
from smartipc.ipc.sync.call import Call

S = TypeVar("S")
R = TypeVar("R")
F = TypeVar("F", bound="BlockingEnd")


class Waits(Protocol):
    """Who knows how to wait at this endpoint."""

    def await_on(self, link: Link, done: Callable[[], bool], until: float | None = None) -> bool:
        """Read, and do what else a waiting member does, until `done`, the link is over or the time; return done()."""
        ...


class Reach(Waits, Protocol):
    """The part of a Router that opening needs."""

    def reach(self, call: Call) -> Link:
        """Choose who gets it, wait until it can be reached, and return the link to it."""
        ...

    def trial(self, link: Link, name: str) -> Trial | None:
        """Ask before something is opened over the link: raises CircuitOpen; what is returned is told the outcome."""
        ...

    def mourn(self, lost: ConnectionLost, link: Link) -> CallError:
        """Say more about a lost link where more is known: that its process died, and how."""
        ...


class BlockingEnd(FlowEnd):
    """One end of a stream or channel, whose items are waited for by reading. Several threads may use it."""

    _link: Link

    def __init__(
        self, link: Link, name: str, reception: Reception[Any], sends: Any, waits: Waits, reach: Reach | None = None
    ) -> None:
        super().__init__(link, name, reception, sends)
        self._waits = waits
        self._reach = reach
        self._taking = threading.Lock()
        self._sending = threading.Lock()

    def accepted(self, until: float) -> bool:
        """Wait until the peer accepts, or raise why it does not; False when the time has passed."""
        self._waits.await_on(self._link, lambda: self._accepted or self._reception.end is not None, until)
        if not self._accepted and self._reception.end is not None:
            raise self._reason(self._reception.end)
        return self._accepted

    # items

    def _receive(self, timeout: float | None) -> Any:
        until = None if timeout is None else time.monotonic() + timeout
        reception = self._reception
        while (payload := self._take()) is None:
            if not self._waits.await_on(self._link, self._settled, until) and not self._link.closed:
                if timeout is None:
                    raise self._closing()
                raise RequestTimeout(timeout, "no item came", method=self._name, instance=reception.instance)
        size, streams = len(payload), self._link.connection.streams
        self._link.tell(lambda: streams.consumed(self._ident, size))
        return reception.decode(payload)

    def _take(self) -> bytes | None:
        """Take an item, or raise why none comes; None to wait."""
        with self._taking:
            end = self._reception.end  # before the items: what came before the end is not to be missed
            if self._reception.items:
                return self._reception.items.popleft()
        if self._finished:
            raise LocalProtocolError(f"{self._name} was left already")
        if end is not None:
            raise self._reason(end)
        return None

    def _settled(self) -> bool:
        return self._reception.ready or self._finished

    def _send(self, item: Any) -> None:
        payload = encode_item(item, self._sends, self._name)
        with self._sending:  # one after the other, in order
            while not self.try_send(payload):
                if self._reception.refusal is not None:
                    raise self._reason(self._reception.refusal)
                if not self._waits.await_on(self._link, self._may_send) and not self._link.closed:
                    raise self._closing()
            if self._link.stuck:  # nobody else would write it while this thread does something else
                self._waits.await_on(self._link, lambda: not self._link.stuck)

    def _closing(self) -> ConnectionLost:
        """Say why a wait without a limit ended: this end is being closed by another thread."""
        return ConnectionLost(self._reception.instance, "this end is closing", method=self._name)

    def _may_send(self) -> bool:
        return self._writable or self._reception.refusal is not None or self._closed_sending is not None

    def try_send(self, payload: bytes, *, flush: bool = True) -> bool:
        """Send an item if there is credit and room for it; with `flush` off it may wait for the next one."""
        if self._closed_sending is not None:
            raise self._closed_sending.with_traceback(None)
        if self._reception.refusal is not None:
            return False
        self._writable = False
        streams = self._link.connection.streams
        try:
            return self._link.tell(lambda: streams.send(self._ident, payload), flush=flush)
        except LocalProtocolError:
            return False  # it ended just now: what says so is on its way from the thread that reads

    def _reason(self, end: BaseException) -> BaseException:
        if isinstance(end, ConnectionLost) and self._reach is not None:
            known = self._reach.mourn(end, self._link)
            self._reception.retell(end, known)
            end = known
        return end.with_traceback(None)


class Items(BlockingEnd, Generic[R]):
    """The items of an open stream, for its reader: `for item in items`, or `items.receive()`."""

    def receive(self, timeout: float | None = None) -> R:
        """Return the next item, waiting for it at most `timeout` seconds; None for ever.

        Raises:
            EndOfStream: the handler is through.
            RequestTimeout: none came in time; nothing is lost.
            InvalidPayload: the next item does not fit the contract; the one after it may.
            WorkerDied, ConnectionLost: the instance was lost.
            RemoteError: the handler raised, after the items before; errors that the contract declares as themselves.
        """
        item: R = self._receive(timeout)
        return item

    def __iter__(self) -> Iterator[R]:
        return self

    def __next__(self) -> R:
        try:
            return self.receive()
        except EndOfStream:
            raise StopIteration from None

    def leave(self) -> None:
        """Tell the handler that no more is wanted."""
        if not self._finished:
            self.stop_receiving()
        self._finish()


class IpcChannel(BlockingEnd, Generic[S, R]):
    """One end of a channel: `send`, `receive`, iterate, `close_sending`. The two ends are alike."""

    @property
    def peer(self) -> str:
        """Name of the instance at the other end."""
        return self._reception.instance

    def send(self, item: S) -> None:
        """Send an item; waits while the other side has not consumed enough. An interrupt sends all of it or nothing.

        Raises:
            InvalidPayload: it does not fit the contract; nothing was sent.
            FrameTooLarge: it exceeds the limit of a message; nothing was sent.
            StreamReset: the other side gave the channel up, or takes no more.
            WorkerDied, ConnectionLost: the other side was lost.
            LocalProtocolError: sending was closed here.
        """
        self._send(item)

    def receive(self, timeout: float | None = None) -> R:
        """Return the next item, waiting for it at most `timeout` seconds; None for ever.

        Raises:
            EndOfStream: the other side closed its sending, and everything it sent has been received.
            RequestTimeout: none came in time; nothing is lost.
            InvalidPayload: the next item does not fit the contract; the one after it may.
            StreamReset: the other side gave the channel up; an error that the contract declares comes as itself.
            WorkerDied, ConnectionLost: the other side was lost.
        """
        item: R = self._receive(timeout)
        return item

    def __iter__(self) -> Iterator[R]:
        return self

    def __next__(self) -> R:
        try:
            return self.receive()
        except EndOfStream:
            raise StopIteration from None

    def close_sending(self) -> None:
        """Say that no more comes from this side; what was sent arrives, receiving goes on. Later calls do nothing."""
        self.end_sending()


class Opener(Generic[F]):
    """What `open_stream` and `open_channel` return: entering opens, leaving resets what is still open."""

    def __init__(self, reach: Reach, make: Callable[[Link], F], call: Callable[[], Call]) -> None:
        self._reach = reach
        self._make = make
        self._call = call
        self._flow: F | None = None

    def __repr__(self) -> str:
        return f"<Opener: {self._flow!r}>"

    def __enter__(self) -> F:
        call = self._call()
        if self._flow is not None:
            raise LocalProtocolError(f"this opening of {call.method} was entered already")
        refusals = Refusals(call.method, call.timeout)
        while True:
            link = self._reach.reach(call)
            try:
                with judged(self._reach.trial(link, call.method), time.monotonic):
                    self._flow = self._open(link, call)
            except CallError as error:
                pause = refusals.pause(error, call.deadline - time.monotonic())
            else:
                return self._flow
            if pause:
                time.sleep(pause)

    def _open(self, link: Link, call: Call) -> F:
        flow = self._make(link)
        try:
            if link.peer is None:
                self._reach.await_on(link, lambda: link.peer is not None, call.deadline)
            if link.peer is not None or link.closed:
                flow.open(call.payload, call.headers, duplex=isinstance(flow, IpcChannel))
                if flow.accepted(call.deadline):
                    return flow
        except BaseException:
            flow.leave()
            raise
        flow.leave()
        raise RequestTimeout(call.timeout, "it was not accepted", method=call.method, instance=name_at(link))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._flow is not None:
            self._flow.leave()
