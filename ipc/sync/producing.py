"""The streams and channels that peers open, served by the blocking flavour: the twin of producing.py.

A stream's generator is stepped in the home thread, between requests, as its reader gives credit; a channel function
runs there until it returns, and other links are read while it waits. How a handler's end is told is decided in ends.py.
"""

from __future__ import annotations

import contextvars
import inspect
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from smartipc.ipc.dispatch import Registry
from smartipc.ipc.drivers.blocking import Link
from smartipc.ipc.ends import admitted, served
from smartipc.ipc.errors import SmartIpcError
from smartipc.ipc.flows import FlowHandler, Reception, cancelled, encode_item, fault_of_handler, fault_of_opening
from smartipc.ipc.protocol.events import OpenReceived, StreamEvent
from smartipc.ipc.sync.streaming import BlockingEnd, IpcChannel, Waits
from smartipc.ipc.tracing import handling
from smartipc.ipc.trust.gate import Gate

log = logging.getLogger("smartipc.streaming")
_SLICE = 0.002
"""Seconds that a generator may produce before requests have their turn."""


class Serves(Waits, Protocol):
    """The part of a Server that streams need."""

    def post(self, work: Callable[[], None]) -> None:
        """Let the home thread run `work` in its turn."""
        ...

    def call_home(self) -> None:
        """Make sure that the home thread looks at what was posted."""
        ...

    def look_after(self, link: Link) -> None:
        """Write what the link's socket has no room for, when it has."""
        ...


class StreamServer:
    """Serves the streams and channels that peers open, in the home thread.

    Args:
        registry: the handlers.
        instance: who we are, for faults.
        server: runs what is posted, and knows how to wait.
        gate: what may come in; None for all.
    """

    def __init__(self, registry: Registry, instance: str, server: Serves, gate: Gate | None) -> None:
        self.active: set[_Producer] = set()
        """The generators that are not through."""
        self._registry = registry
        self._instance = instance
        self._server = server
        self._gate = gate

    def __repr__(self) -> str:
        return f"<StreamServer {len(self.active)} generators>"

    def on_open(self, link: Link, event: OpenReceived) -> None:
        """Let the home thread start the handler, or refuse. Called where links are read."""
        handler = admitted(link, event, self._registry, self._gate)
        if handler is None:
            return
        reception: Reception[Any] = Reception(handler.receives, name=handler.name, duplex=handler.duplex)
        if handler.duplex:
            channel: IpcChannel[Any, Any] = IpcChannel(link, handler.name, reception, handler.sends, self._server)
            channel.attach(event.id)
            self._post(lambda: self._converse(link, event, handler, channel))
        else:
            producer = _Producer(link, handler, reception, self)
            producer.attach(event.id)
            self._post(lambda: self._begin(producer, event))

    def _post(self, work: Callable[[], None]) -> None:
        self._server.post(work)
        self._server.call_home()

    def cancel(self) -> None:
        """Give up every generator that is not through, because the worker ends."""
        for producer in list(self.active):
            producer.cancel()

    def _converse(self, link: Link, event: OpenReceived, handler: FlowHandler, channel: IpcChannel[Any, Any]) -> None:
        try:
            if not channel.alive:
                channel.released()
                return
            channel.accept()
            with served(channel, handler, self._instance), handling(link.peer, event):
                handler.function(channel)
        finally:
            self._server.look_after(link)

    def _begin(self, producer: _Producer, event: OpenReceived) -> None:
        if not producer.alive:
            producer.released()
            return
        link = producer._link  # noqa: SLF001 - one room
        try:
            arguments = producer.handler.arguments(event, link.peer)
        except SmartIpcError as error:
            producer.fail(fault_of_opening(error, self._instance))
            producer.released()
            return
        producer.accept()
        self.active.add(producer)
        with handling(link.peer, event):
            producer.begin(arguments, contextvars.copy_context())


class _Producer(BlockingEnd):
    """The serving end of a stream: its generator, stepped as credit allows."""

    def __init__(self, link: Link, handler: FlowHandler, reception: Reception[Any], server: StreamServer) -> None:
        super().__init__(link, handler.name, reception, handler.sends, server._server)  # noqa: SLF001 - one room
        self.handler = handler
        self._server = server
        self._iterator: Iterator[Any] | None = None
        self._context = contextvars.copy_context()
        """What its generator runs in: the calls that it makes belong to the stream's trace."""
        self._held: bytes | None = None
        """An item that had no credit."""
        self._posted = False

    def on_event(self, event: StreamEvent) -> None:
        """Take an event of the link: whatever it is, the reader has gone, and the generator is closed."""
        super().on_event(event)
        self._again()

    def on_writable(self) -> None:
        """Go on in the home thread."""
        super().on_writable()
        self._again()

    def _again(self) -> None:
        if not self._posted:
            self._posted = True
            self._server._post(self.step)  # noqa: SLF001 - one room

    def begin(self, arguments: tuple[Any, ...], context: contextvars.Context) -> None:
        """Call the handler, and take its first items, in this context."""
        self._context = context
        try:
            self._iterator = context.run(lambda: iter(self.handler.function(*arguments)))
        except Exception as error:  # the boundary of the user's handler
            self._failed(error, self.handler.errors)
        except BaseException as error:
            self._failed(error, ())
            raise
        else:
            self.step()

    def step(self) -> None:
        """Produce for a moment, as far as credit goes; close the generator when its reader has gone."""
        self._posted = False
        if self._iterator is None:
            return
        try:
            self._context.run(self._produce, self._iterator, time.monotonic() + _SLICE)
        except StopIteration:
            self.end_sending()
            self._over()
        except Exception as error:  # the boundary of the user's handler
            self._failed(error, self.handler.errors)
        except BaseException as error:  # the worker ends by it, but the reader shall know
            self._failed(error, ())
            raise
        self._link.flush()
        self._server._server.look_after(self._link)  # noqa: SLF001 - one room

    def _produce(self, iterator: Iterator[Any], until: float) -> None:
        while self.alive and self._reception.refusal is None:
            if self._held is None:
                self._held = encode_item(next(iterator), self._sends, self._name)
            if not self.try_send(self._held, flush=False) and not (self._link.flush() and self.try_send(self._held)):
                return  # on_writable goes on
            self._held = None
            if time.monotonic() > until:
                self._again()
                return
        self._close()
        self._over()

    def cancel(self) -> None:
        """Give it up because the worker ends."""
        self._close()
        self.reset(cancelled(self._name, self._server._instance))  # noqa: SLF001 - one room
        self._over()

    def _close(self) -> None:
        if inspect.isgenerator(self._iterator):
            try:
                self._iterator.close()
            except Exception:  # the boundary of the user's handler
                log.exception("the generator of %s raised while it was closed", self._name)

    def _failed(self, error: BaseException, errors: tuple[type[BaseException], ...]) -> None:
        log.debug("handler of %s raised", self._name, exc_info=error)
        self.fail(fault_of_handler(error, self._server._instance, errors))  # noqa: SLF001 - one room
        self._over()

    def _over(self) -> None:
        self._iterator = None
        self._server.active.discard(self)
        self.released()
