"""The async handle that a worker function receives. Its blocking twin is sync/handle.py.

A thin front: the verbs are in endpoint.py, calls in calling.py, handlers in serving.py, topics in publishing.py and
hearing.py.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec

from smartipc.ipc import control, links
from smartipc.ipc.calling import Caller
from smartipc.ipc.contracts import Topic
from smartipc.ipc.control import Launch
from smartipc.ipc.dispatch import Registry
from smartipc.ipc.drivers.aio import Link
from smartipc.ipc.drivers.base import Direct
from smartipc.ipc.endpoint import Endpoint
from smartipc.ipc.hearing import Hub, Messages
from smartipc.ipc.hosting import ServingHost
from smartipc.ipc.message import Peer
from smartipc.ipc.observe.traffic import traffic
from smartipc.ipc.protocol.events import (
    Closed,
    ConsumedReceived,
    MessageReceived,
    MessagesReceived,
)
from smartipc.ipc.publishing import Publisher
from smartipc.ipc.resilience.dead_letters import DeadLetters
from smartipc.ipc.retained import Retained
from smartipc.ipc.routing.directory import Directory
from smartipc.ipc.routing.port import ControlPort
from smartipc.ipc.serving import Server
from smartipc.ipc.trust.gate import Gate

F = TypeVar("F", bound=Callable[..., Any])

LAST_MESSAGES = 1.0
"""Seconds that an ending worker gives to messages that wait for a slow subscriber that drops."""


class InstanceRouter:
    """The Router of a worker: to the instances that the directory lists. Only names who does what."""

    def __init__(self, caller: Caller, publisher: Publisher, hub: Hub) -> None:
        self.request = caller.request
        self.direct = caller.direct
        self.reach = caller.reach
        self.trial = caller.trial
        self.mourn = caller.mourn
        self.broadcast = caller.broadcast
        self.burst = publisher.burst
        self.flush = publisher.flush
        self._publisher = publisher
        self._hub = hub

    async def publish(self, topic: str, encoded: bytes, *, headers: dict[str, str] | None, retain: bool) -> None:
        """Send to every subscription that the directory lists."""
        await self._publisher.publish(topic, encoded, headers=headers, retain=retain)

    def publish_nowait(self, topic: str, encoded: bytes, *, headers: dict[str, str] | None, retain: bool) -> int:
        """Send to every subscription that the directory lists, or to none."""
        return self._publisher.publish_nowait(topic, encoded, headers=headers, retain=retain)

    def subscribe(
        self, topic: Topic[Any] | str, *, queue: str | None, max_pending: int | None, overflow: str
    ) -> Messages[Any]:
        """Make a subscription that is registered with the supervisor when it is entered."""
        return self._hub.subscribe(topic, queue=queue, max_pending=max_pending, overflow=overflow)


class GuardedRouter(InstanceRouter):
    """The Router of a worker whose configuration has an `allow`: asks first, then does the same."""

    def __init__(self, caller: Caller, publisher: Publisher, hub: Hub, gate: Gate) -> None:
        super().__init__(caller, publisher, hub)
        self._caller = caller
        self._gate = gate
        self.request = self._request
        self.reach = self._reach
        self.broadcast = self._broadcast
        self.direct = self._direct

    async def _request(self, name: str, encoded: bytes, **more: Any) -> bytes:
        self._gate.check("request", name)
        return await self._caller.request(name, encoded, **more)

    async def _reach(self, name: str, **more: Any) -> Link:
        self._gate.check("request", name)
        return await self._caller.reach(name, **more)

    async def _broadcast(self, name: str, encoded: bytes, **more: Any) -> list[tuple[str, bytes | BaseException]]:
        self._gate.check("request", name)
        return await self._caller.broadcast(name, encoded, **more)

    def _direct(self, name: str) -> Direct | None:
        self._gate.check("request", name)
        return self._caller.direct(name)

    async def publish(self, topic: str, encoded: bytes, *, headers: dict[str, str] | None, retain: bool) -> None:
        """Send to every subscription that the directory lists, if this worker may publish there."""
        self._gate.check("publish", topic)
        await super().publish(topic, encoded, headers=headers, retain=retain)

    def publish_nowait(self, topic: str, encoded: bytes, *, headers: dict[str, str] | None, retain: bool) -> int:
        """Send to every subscription that the directory lists, or to none, if this worker may publish there."""
        self._gate.check("publish", topic)
        return super().publish_nowait(topic, encoded, headers=headers, retain=retain)

    def subscribe(
        self, topic: Topic[Any] | str, *, queue: str | None, max_pending: int | None, overflow: str
    ) -> Messages[Any]:
        """Make a subscription, if this worker may hear all that falls under it."""
        self._gate.check("subscribe", topic.name if isinstance(topic, Topic) else topic)
        return super().subscribe(topic, queue=queue, max_pending=max_pending, overflow=overflow)


class SmartIpc(Endpoint):
    """What a worker can say and hear. Made by the worker runtime, one per process.

    Args:
        launch: who this instance is.
        directory: who is where, kept current by the control thread.
        port: the way to the supervisor.
    """

    def __init__(self, launch: Launch, directory: Directory, port: ControlPort) -> None:
        arrivals = _Arrivals()
        registry = Registry(launch.worker, links.instance_name(launch))
        self._caller = arrivals.caller = Caller(launch, directory, arrivals)
        retained = Retained(launch.retained, links.identity(launch))
        self._publisher = arrivals.publisher = Publisher(directory, self._caller, retained)
        gate = Gate(launch, directory)
        letters = DeadLetters(launch.dead_letters) if launch.dead_letters else None
        self._hub = arrivals.hub = Hub(launch, port, retained, gate)
        self._server = arrivals.handlers = Server(launch, registry, arrivals, directory, gate, letters)
        parts = self._caller, self._publisher, self._hub
        router = GuardedRouter(*parts, gate) if gate.restricts else InstanceRouter(*parts)
        super().__init__(registry, router)
        self._letters = letters
        self._letter_name = links.instance_name(launch)
        self.app = launch.app
        self.worker = launch.worker
        self.slot = launch.slot
        self.name = links.instance_name(launch)
        self.generation = launch.generation
        self.log = links.logger(launch)
        self._directory = directory
        self._port = port
        self._stop = asyncio.Event()
        self._stop_cause = ""
        self._on_stop: list[Callable[[], Any]] = []
        self._ready = False

    def __repr__(self) -> str:
        return f"<SmartIpc {self.name} generation {self.generation}{' stopping' if self.stopping else ''}>"

    # identity and lifecycle

    @property
    def peers(self) -> dict[str, tuple[Peer, ...]]:
        """The live directory: worker name to its living instances, ready or not."""
        return links.peers(self._directory.state)

    @property
    def stopping(self) -> bool:
        """Whether this worker has been told to stop."""
        return self._stop.is_set()

    async def stopped(self) -> None:
        """Wait until this worker is told to stop. Cancelling it changes nothing."""
        await self._stop.wait()

    async def ready(self) -> None:
        """Say that this worker can take requests; from here on they are routed to it. Later calls do nothing.

        Waits until every publisher knows of the `subscriber` functions: whoever this worker replaces is drained as soon
        as it is ready, and nothing may be lost in between. Cancelling it leaves the worker not ready, to call it again.
        """
        if self._ready:
            return
        if not self._delivering:
            self._deliver()
        for messages, _function, _wants in tuple(self._subscribers):
            await messages.registered.wait()
        if not self._ready:
            self._ready = True
            self._port.notify(control.ready, None)

    async def serve(self) -> None:
        """Be ready and serve until told to stop. Requests under way are finished when the target returns.

        Cancelling it only ends the waiting: what arrives is still served until the target returns.
        """
        await self.ready()
        await self.stopped()

    def beat(self) -> None:
        """Say that this worker's own loop still turns. The event loop of an async worker does it by itself."""
        self._port.turned()

    def set_status(self, text: str) -> None:
        """Show `text` in `smartipc status`."""
        self._port.notify(control.status_text, control.StatusText(text))

    def progress(self, done: float, total: float | None = None) -> None:
        """Show how far the work is; `total` None while unknown."""
        self._port.notify(control.progress, control.Progress(done, total))

    def on_stop(self, function: F) -> F:
        """Call `function()`, plain or async, when this worker ends, while it can still send."""
        self._on_stop.append(function)
        return function

    def snapshot(self) -> links.HandleSnapshot:
        """Return the facts of this moment."""
        handling, waiting = self._server.load
        subscriptions, dropped = self._hub.load
        return links.HandleSnapshot(
            self.name,
            len(self._caller.links) + len(self._server.links),
            sum(link.outstanding for link in list(self._caller.links.values())),
            self._caller.late_replies,
            handling,
            waiting,
            subscriptions,
            dropped,
            msgspec.structs.replace(traffic(), messages_dropped=dropped),
        )

    # the runtime's side

    async def _open(self) -> None:
        self._directory.listeners.append(self._directory_changed_elsewhere)
        self._server.open()

    async def _close(self, grace: float) -> None:
        self._server.goodbye()
        self._hub.stop()
        for function in self._on_stop:
            result = function()
            if isinstance(result, Awaitable):
                await result
        until = self._loop.time() + grace
        await self._server.drain(grace)
        if self._background:
            await asyncio.wait(self._background, timeout=max(0.0, until - self._loop.time()))
        for task in self._background:
            task.cancel()
        await self._publisher.drain(max(0.0, min(LAST_MESSAGES, until - self._loop.time())))
        await self._caller.aclose(max(0.1, until - self._loop.time()))
        self._directory.listeners.remove(self._directory_changed_elsewhere)
        if self._letters is not None:
            self._letters.close()

    def _begin_stop(self, cause: str) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the worker has ended already
            self._loop.call_soon_threadsafe(self._stop_now, cause)

    def _stop_now(self, cause: str) -> None:
        if not self._stop.is_set():
            self._stop_cause = cause
            self._stop.set()
            # Every publisher has known for a while that we stop: what it sent before is in our sockets by now.
            for link in tuple(self._server.links):
                link.catch_up()
            self._hub.stop()

    def _directory_changed_elsewhere(self) -> None:
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._directory_changed)

    def _directory_changed(self) -> None:
        self._server.directory_changed()
        self._caller.directory_changed()
        self._publisher.directory_changed()


class _Arrivals(ServingHost):
    """The LinkHost of a worker: hands what arrives on any link to the part that it is for.

    A goodbye needs nothing: the directory says so too, and new calls are refused unprocessed until it does.
    """

    caller: Caller
    publisher: Publisher
    hub: Hub

    def on_message(self, link: Link, event: MessageReceived) -> None:
        """Pass it to its subscription."""
        self.hub.on_message(link, event)

    def on_messages(self, link: Link, event: MessagesReceived) -> None:
        """Pass them to their subscription."""
        self.hub.on_messages(link, event)

    def on_consumed(self, link: Link, event: ConsumedReceived) -> None:
        """Take credit back for the life at the other end."""
        for life, known in self.caller.links.items():
            if known is link:
                self.publisher.consumed(life, event)
                return

    def on_closed(self, link: Link, event: Closed) -> None:  # noqa: ARG002 - the shape of every host
        """Forget the link on whichever side it was."""
        life = self.caller.forget(link)
        if life is not None:
            self.publisher.lost(life)
        self.hub.forget(link)
        self.handlers.closed(link)
