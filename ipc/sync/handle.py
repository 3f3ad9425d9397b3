"""The blocking handle that a plain `def` worker function receives: the twin of handle.py, without await.

A thin front: the verbs are in endpoint.py, calls in calling.py, waiting and handlers in serving.py, topics in
publishing.py and hearing.py. No thread of its own and no event loop: whoever waits does the reading.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from smartipc.ipc import control, links
from smartipc.ipc.contracts import Method, Topic
from smartipc.ipc.control import Launch
from smartipc.ipc.dispatch import Registry
from smartipc.ipc.drivers.base import Direct
from smartipc.ipc.drivers.blocking import Link
from smartipc.ipc.message import Peer
from smartipc.ipc.observe.traffic import traffic
from smartipc.ipc.resilience.dead_letters import DeadLetters
from smartipc.ipc.retained import Retained
from smartipc.ipc.routing.directory import Directory
from smartipc.ipc.routing.port import ControlPort
from smartipc.ipc.sync.call import Call
from smartipc.ipc.sync.calling import Caller
from smartipc.ipc.sync.endpoint import Endpoint, refuse_async
from smartipc.ipc.sync.hearing import Hub, Messages
from smartipc.ipc.sync.publishing import Publisher
from smartipc.ipc.sync.serving import Server
from smartipc.ipc.trust.gate import Gate

F = TypeVar("F", bound=Callable[..., Any])
log = logging.getLogger("smartipc.handle")

LAST_MESSAGES = 1.0
"""Seconds that an ending worker gives to messages that wait for a slow subscriber that drops."""


class InstanceRouter:
    """The Router of a worker: to the instances that the directory lists. Only names who does what."""

    def __init__(self, caller: Caller, publisher: Publisher, hub: Hub) -> None:
        self.request = caller.request
        self.ask = caller.ask
        self.start = caller.start
        self.direct = caller.direct
        self.resume = caller.resume
        self.drive = caller.drive
        self.cancel = caller.cancel
        self.notify = caller.notify
        self.everyone = caller.everyone
        self.reach = caller.reach
        self.trial = caller.trial
        self.mourn = caller.mourn
        self.await_on = caller.await_on
        self._publisher = publisher
        self._hub = hub

    def publish(self, topic: str, encoded: bytes, *, headers: dict[str, str] | None, retain: bool) -> None:
        """Send to every subscription that the directory lists."""
        self._publisher.publish(topic, encoded, headers=headers, retain=retain)

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
        self.ask = self._ask
        self.direct = self._direct
        self.start = self._start
        self.notify = self._notify
        self.everyone = self._everyone
        self.reach = self._reach

    def _request(self, call: Call) -> bytes:
        self._gate.check("request", call.method)
        return self._caller.request(call)

    def _ask(self, method: Method[Any, Any], payload: Any) -> Any:
        self._gate.check("request", method.name)
        return self._caller.ask(method, payload)

    def _direct(self, name: str) -> Direct | None:
        self._gate.check("request", name)
        return self._caller.direct(name)

    def _start(self, call: Call) -> None:
        self._gate.check("request", call.method)
        self._caller.start(call)

    def _notify(self, call: Call) -> None:
        self._gate.check("request", call.method)
        self._caller.notify(call)

    def _everyone(self, call: Call) -> list[Call]:
        self._gate.check("request", call.method)
        return self._caller.everyone(call)

    def _reach(self, call: Call) -> Link:
        self._gate.check("request", call.method)
        return self._caller.reach(call)

    def publish(self, topic: str, encoded: bytes, *, headers: dict[str, str] | None, retain: bool) -> None:
        """Send to every subscription that the directory lists, if this worker may publish there."""
        self._gate.check("publish", topic)
        super().publish(topic, encoded, headers=headers, retain=retain)

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
    """What a blocking worker can say and hear. Made by the worker runtime, one per process.

    Several threads may use it. Handlers and subscriber functions run one at a time in one thread, the *home* thread:
    the one that opened the handle (the main thread of a worker), while it is in `serve`, `stopped` or iterates a
    subscription. A handler that calls its own instance waits for itself; so does a home thread that publishes to its
    own full subscription.

    Args:
        launch: who this instance is.
        directory: who is where, kept current by the control thread.
        port: the way to the supervisor.
    """

    def __init__(self, launch: Launch, directory: Directory, port: ControlPort) -> None:
        registry = Registry(launch.worker, links.instance_name(launch))
        self._caller = Caller(launch, directory)
        gate = Gate(launch, directory)
        letters = DeadLetters(launch.dead_letters) if launch.dead_letters else None
        self._server = Server(launch, registry, port, directory, gate, letters)
        retained = Retained(launch.retained, links.identity(launch))
        self._publisher = Publisher(directory, self._caller, self._server, retained)
        self._hub = Hub(launch, port, self._server, retained, gate, letters)
        parts = self._caller, self._publisher, self._hub
        router = GuardedRouter(*parts, gate) if gate.restricts else InstanceRouter(*parts)
        super().__init__(registry, router)
        self._letters = letters
        self._gatherer = self._publisher
        self._letter_name = links.instance_name(launch)
        self.app = launch.app
        self.worker = launch.worker
        self.slot = launch.slot
        self.name = links.instance_name(launch)
        self.generation = launch.generation
        self.log = links.logger(launch)
        self._directory = directory
        self._port = port
        self._pid = os.getpid()
        self._stop = threading.Event()
        self._stop_cause = ""
        self._caller.while_stalled = self._server.read
        self._server.before_sleep = self._before_sleep
        self._on_stop: list[Callable[[], Any]] = []
        self._ready = False
        self._closed = False

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

    def stopped(self, timeout: float | None = None) -> bool:
        """Wait until this worker is told to stop, serving meanwhile in the home thread; return whether it was."""
        return self._server.wait(self._stop.is_set, timeout)

    def ready(self) -> None:
        """Say that this worker can take requests; from here on they are routed to it. Later calls do nothing."""
        if self._ready:
            return
        self._ready = True
        self._deliver()
        self._port.notify(control.ready, None)

    def serve(self) -> None:
        """Be ready and serve until told to stop. Requests that wait then are finished when the target returns.

        The calling thread becomes the home thread.
        """
        self._server.home = threading.get_ident()
        self.ready()
        self._server.wait(self._stop.is_set)

    def beat(self) -> None:
        """Say that this worker's own loop still turns; `serve` and every other waiting member do it by themselves.

        What was published in a flood leaves, as far as sockets have room.
        """
        self._publisher.end_burst(wait=False)
        self._port.turned()

    def set_status(self, text: str) -> None:
        """Show `text` in `smartipc status`."""
        self._port.notify(control.status_text, control.StatusText(text))

    def progress(self, done: float, total: float | None = None) -> None:
        """Show how far the work is; `total` None while unknown."""
        self._port.notify(control.progress, control.Progress(done, total))

    def on_stop(self, function: F) -> F:
        """Call `function()` when this worker ends, while it can still send."""
        refuse_async(function, "an on_stop function")
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

    def _open(self) -> None:
        self._server.home = threading.get_ident()
        self._directory.listeners.append(self._directory_changed)
        self._server.open()

    def _close(self, grace: float) -> None:
        if self._closed:
            return
        self._closed = True
        until = time.monotonic() + grace
        try:
            if self._pid == os.getpid():
                self._server.goodbye()
                self._hub.stop()
                for function in self._on_stop:
                    function()
                self._server.drain(until)
                self._publisher.drain(min(until, time.monotonic() + LAST_MESSAGES))
        finally:
            self._publisher.close()
            self._server.close()
            self._caller.close(max(0.1, until - time.monotonic()))
            if self._letters is not None:
                self._letters.close()
            if self._directory_changed in self._directory.listeners:
                self._directory.listeners.remove(self._directory_changed)

    def _before_sleep(self) -> None:
        self._publisher.end_burst(wait=False)
        self._caller.flush()
        self._publisher.flush()

    def _begin_stop(self, cause: str) -> None:
        if not self._stop.is_set():
            self._stop_cause = cause
            self._stop.set()
            self._hub.stop()
            self._server.wake()

    def _directory_changed(self) -> None:
        self._server.directory_changed()
        self._publisher.directory_changed()
        self._caller.directory_changed()
