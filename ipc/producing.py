"""The streams and channels that peers open, served by the async flavour: each handler in a task of its own.

How a handler's end is told is decided in ends.py; sending and receiving are in streaming.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from smartipc.ipc.dispatch import Registry
from smartipc.ipc.drivers.aio import Link
from smartipc.ipc.drivers.base import refuse_open
from smartipc.ipc.ends import admitted, served
from smartipc.ipc.errors import SmartIpcError
from smartipc.ipc.flows import FlowHandler, Reception, fault_of_opening
from smartipc.ipc.protocol.events import OpenReceived, StreamEvent
from smartipc.ipc.streaming import AsyncEnd, IpcChannel
from smartipc.ipc.tracing import handling
from smartipc.ipc.trust.gate import Gate


class _Producer(AsyncEnd):
    """The serving end of a stream: only sends, and has lost its purpose when the reader stops."""

    async def send(self, item: Any) -> None:
        """Send an item as credit allows."""
        await self._send(item)

    def on_event(self, event: StreamEvent) -> None:
        """Take an event of the link: whatever it is, the reader has gone, and the generator ends wherever it waits."""
        self._reception.on_event(event)
        if self.on_gone is not None:
            self.on_gone()


class StreamServer:
    """Serves the streams and channels that peers open, each in a task of its own.

    Args:
        registry: the handlers.
        instance: who we are, for faults.
        gate: what may come in; None for all.
    """

    def __init__(self, registry: Registry, instance: str, gate: Gate | None) -> None:
        self.tasks: set[asyncio.Task[None]] = set()
        self._registry = registry
        self._instance = instance
        self._gate = gate

    def __repr__(self) -> str:
        return f"<StreamServer {len(self.tasks)} running>"

    def on_open(self, link: Link, event: OpenReceived) -> None:
        """Start the handler, or refuse."""
        handler = admitted(link, event, self._registry, self._gate)
        if handler is None:
            return
        arguments: tuple[Any, ...] = ()
        if not handler.duplex:
            try:
                arguments = handler.arguments(event, link.peer)
            except SmartIpcError as error:
                refuse_open(link, event, fault_of_opening(error, self._instance))
                return
        reception: Reception[Any] = Reception(handler.receives, name=handler.name, duplex=handler.duplex)
        kind: type[AsyncEnd] = IpcChannel if handler.duplex else _Producer
        flow = kind(link, handler.name, reception, handler.sends, None)
        flow.attach(event.id)
        flow.accept()
        with handling(link.peer, event):
            task = asyncio.get_running_loop().create_task(self._serve(handler, flow, arguments))
        flow.on_gone = lambda: _cancel(task)
        self.tasks.add(task)
        task.add_done_callback(lambda _: self._over(task, flow))

    def _over(self, task: asyncio.Task[None], flow: AsyncEnd) -> None:
        self.tasks.discard(task)
        flow.leave()  # says something only if the task was cancelled before its first step
        flow.released()

    async def _serve(self, handler: FlowHandler, flow: Any, arguments: tuple[Any, ...]) -> None:
        with served(flow, handler, self._instance, cancelled_by=(asyncio.CancelledError,)):
            if handler.duplex:
                await handler.function(flow)
            else:
                await _produce(handler.function(*arguments), flow)


def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()


async def _produce(produced: Any, flow: _Producer) -> None:
    """Send what a generator yields; it is closed when the reader has gone."""
    if inspect.isawaitable(produced):
        produced = await produced
    if hasattr(produced, "__aiter__"):
        iterator = aiter(produced)
        try:
            async for item in iterator:
                await flow.send(item)
        finally:
            close: Callable[[], Awaitable[None]] | None = getattr(iterator, "aclose", None)
            if close is not None:
                await close()
        return
    with contextlib.closing(_closable(produced)) as items:
        for item in items:
            await flow.send(item)


def _closable(produced: Any) -> Any:
    """Return a generator over any iterable: what the handler returned need not be one."""
    return produced if inspect.isgenerator(produced) else (item for item in produced)
