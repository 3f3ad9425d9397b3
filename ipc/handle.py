"""The async handle that a worker function receives. Its blocking twin is sync/handle.py.

A thin front: calls are in calling.py, handlers in serving.py, topics in publishing.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, TypeVar, cast, overload

from smartipc.ipc import control, links
from smartipc.ipc.calling import Caller
from smartipc.ipc.contracts import DEFAULT_TIMEOUT, Method, Topic
from smartipc.ipc.control import Launch
from smartipc.ipc.dispatch import Registry, request_payload, worker_of
from smartipc.ipc.drivers.aio import Link
from smartipc.ipc.errors import LocalProtocolError, NoSuchWorker, RequestTimeout, SmartIpcError
from smartipc.ipc.message import IpcMessage, Outcome, Peer
from smartipc.ipc.protocol.events import (
    CancelReceived,
    Closed,
    ConsumedReceived,
    GoodbyeReceived,
    MessageReceived,
    NotifyReceived,
    RequestReceived,
)
from smartipc.ipc.publishing import Hub, Messages, Publisher, deliver
from smartipc.ipc.routing.directory import Directory
from smartipc.ipc.routing.port import ControlPort
from smartipc.ipc.serving import Server, current_deadline
from smartipc.ipc.wire import codec

Req = TypeVar("Req")
Rep = TypeVar("Rep")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
H = TypeVar("H")

LOOK_AHEAD = 32
"""Calls that `map` keeps under way unless `concurrency` says otherwise."""


class SmartIpc:
    """What a worker can say and hear. Made by the worker runtime, one per process.

    Args:
        launch: who this instance is.
        directory: who is where, kept current by the control thread.
        port: the way to the supervisor.
    """

    def __init__(self, launch: Launch, directory: Directory, port: ControlPort) -> None:
        self.app = launch.app
        self.worker = launch.worker
        self.slot = launch.slot
        self.name = links.instance_name(launch)
        self.generation = launch.generation
        self.log = links.logger(launch)
        self._directory = directory
        self._port = port
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._stop_cause = ""
        self._registry = Registry(launch.worker, self.name)
        self._caller = Caller(launch, directory, self)
        self._server = Server(launch, self._registry, self)
        self._publisher = Publisher(directory, self._caller)
        self._hub = Hub(launch, port)
        self._subscribers: list[tuple[Messages[Any], Callable[..., Any], bool]] = []
        self._background: set[asyncio.Task[None]] = set()
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
        """Say that this worker can take requests; from here on they are routed to it. Later calls do nothing."""
        if self._ready:
            return
        self._ready = True
        for messages, function, wants_message in self._subscribers:
            self._keep(self._loop.create_task(deliver(messages, function, wants_message=wants_message)))
        self._port.notify(control.ready, None)

    async def serve(self) -> None:
        """Be ready and serve until told to stop. Requests under way are finished when the target returns."""
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

    # requests

    @overload
    async def request(
        self,
        method: Method[Req, Rep],
        payload: Req,
        *,
        timeout: float | None = None,
        slot: int | None = None,
        key: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> Rep: ...

    @overload
    async def request(
        self,
        method: str,
        payload: Any = None,
        *,
        timeout: float | None = None,
        slot: int | None = None,
        key: str | None = None,
        headers: dict[str, str] | None = None,
        reply_type: type[T],
    ) -> T: ...

    @overload
    async def request(
        self,
        method: str,
        payload: Any = None,
        *,
        timeout: float | None = None,
        slot: int | None = None,
        key: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> Any: ...

    async def request(
        self,
        method: Method[Any, Any] | str,
        payload: Any = None,
        *,
        timeout: float | None = None,
        slot: int | None = None,
        key: str | None = None,
        headers: dict[str, str] | None = None,
        reply_type: Any = None,
    ) -> Any:
        """Ask an instance of a worker and return its reply.

        Args:
            method: a contract, or "worker.method".
            payload: must fit the contract.
            timeout: seconds; default the contract's, and never more than what the request being handled has left.
            slot: pin this instance.
            key: equal keys go to the same instance while the ready ones stay the same.
            headers: strings that the handler sees in its message.
            reply_type: decode the reply into this type, for a method given by name.

        Cancelling the caller cancels the handler.

        Raises:
            RequestTimeout: no reply in time, or no instance became ready in time.
            WorkerDied, ConnectionLost: the instance was lost; `processed` says what is known of the call.
            NoSuchWorker, NoSuchMethod, Overloaded, InvalidPayload, RemoteError: what they say.
            Exception: an error that the contract declares, as itself.
        """
        name, encoded = request_payload(method, payload)
        contract = method if isinstance(method, Method) else None
        reply, _instance = await self._caller.request(
            name,
            encoded,
            worker=worker_of(name),
            timeout=self._budget(contract, timeout),
            slot=slot,
            key=key,
            headers=headers,
            idempotent=contract is not None and contract.idempotent,
            declared=contract.errors if contract is not None else (),
        )
        return _decode(reply, contract, reply_type, name)

    async def notify(
        self,
        method: Method[Req, Any] | str,
        payload: Req | Any = None,
        *,
        timeout: float | None = None,
        slot: int | None = None,
        key: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        """Send a one-way message to an instance; returns when it is written, not when it is handled.

        Raises:
            RequestTimeout: no instance became ready within `timeout` seconds.
            NoSuchWorker, WorkerDied, InvalidPayload: as request.
        """
        name, encoded = request_payload(method, payload)
        contract = method if isinstance(method, Method) else None
        budget = self._budget(contract, timeout)
        deadline = self._loop.time() + budget
        while True:
            entry = await self._caller._pick(name, worker_of(name), slot, key, deadline, budget)  # noqa: SLF001
            link = await self._caller.link_when_possible(entry)
            if link is not None:
                with contextlib.suppress(SmartIpcError):
                    link.notify(name, encoded, headers=headers)
                    await link.drained()
                    return

    async def broadcast(
        self, method: Method[Req, Rep] | str, payload: Req | Any = None, *, timeout: float | None = None
    ) -> list[Outcome[Rep]]:
        """Ask every live instance of a worker and return one Outcome each, by slot; partial results are kept.

        Raises:
            NoSuchWorker, InvalidPayload: as request; errors of single instances are in their outcomes.
        """
        name, encoded = request_payload(method, payload)
        contract = method if isinstance(method, Method) else None
        worker = worker_of(name)
        deadline = self._loop.time() + self._budget(contract, timeout)
        state = self._directory.state
        if worker not in state.by_worker:
            raise NoSuchWorker(worker, state.workers(), method=name)
        entries = [one for one in state.by_worker[worker] if state.lives(one.instance, one.generation)]

        async def one(entry: control.Entry) -> Outcome[Rep]:
            try:
                errors = contract.errors if contract is not None else ()
                reply = await self._caller.call(entry, name, encoded, deadline=deadline, declared=errors)
                return Outcome(entry.instance, _decode(reply, contract, None, name))
            except Exception as error:
                if not isinstance(error, SmartIpcError) and not (contract and isinstance(error, contract.errors)):
                    raise
                return Outcome(entry.instance, error=cast("SmartIpcError", error))

        return list(await asyncio.gather(*(one(entry) for entry in entries)))

    async def map(
        self,
        method: Method[Req, Rep],
        payloads: Iterable[Req] | AsyncIterable[Req],
        *,
        concurrency: int = LOOK_AHEAD,
        ordered: bool = True,
        timeout: float | None = None,
    ) -> AsyncIterator[Rep]:
        """Call once per payload, at most `concurrency` under way, and yield the replies, in order if `ordered`.

        Payloads are drawn only as places come free. The first failure is raised at its place; leaving the iteration
        early cancels what is under way.

        Raises:
            LocalProtocolError: `concurrency` is below 1.
            Exception: as request.
        """
        if concurrency < 1:
            raise LocalProtocolError(f"concurrency must be at least 1, got {concurrency}")
        source = _drawn(payloads)
        running: deque[asyncio.Task[Rep]] = deque()
        more = True
        try:
            while True:
                while more and len(running) < concurrency:
                    try:
                        payload = await anext(source)
                    except StopAsyncIteration:
                        more = False
                    else:
                        running.append(self._loop.create_task(self.request(method, payload, timeout=timeout)))
                if not running:
                    return
                if ordered:
                    yield await running.popleft()
                    continue
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                running = deque(task for task in running if task not in done)
                finished = deque(done)
                while finished:
                    yield finished.popleft().result()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    # topics

    async def publish(self, topic: Topic[T] | str, payload: T | Any, *, retain: bool = False) -> None:
        """Send to every subscription of the topic; waits while one of them has its window full.

        Cancelling it may leave the later subscriptions without the message, never a part of it.

        Raises:
            InvalidPayload: it does not fit the topic's type.
            LocalProtocolError: `retain` is not supported yet.
        """
        _no_retain(retain)
        await self._publisher.publish(topic, payload)

    def publish_nowait(self, topic: Topic[T] | str, payload: T | Any, *, retain: bool = False) -> int:
        """Send to every subscription, or to none, and return how many.

        Raises:
            Overloaded: a subscription has its window full; nothing was sent.
            InvalidPayload, LocalProtocolError: as publish.
        """
        _no_retain(retain)
        return self._publisher.publish_nowait(topic, payload)

    @overload
    def subscribe(
        self, topic: Topic[T], *, queue: str | None = None, max_pending: int | None = None, overflow: str = "block"
    ) -> Messages[T]: ...

    @overload
    def subscribe(
        self, topic: str, *, queue: str | None = None, max_pending: int | None = None, overflow: str = "block"
    ) -> Messages[Any]: ...

    def subscribe(
        self,
        topic: Topic[Any] | str,
        *,
        queue: str | None = None,
        max_pending: int | None = None,
        overflow: str = "block",
    ) -> Messages[Any]:
        """Subscribe to a topic or a pattern: `async with ipc.subscribe(t) as messages: async for message in messages`.

        Once entered, every later publish by any live worker reaches it. `max_pending` (default 1024) is how many
        unconsumed messages each publisher may have sent; then `publish` waits.

        Raises:
            LocalProtocolError: `queue` and other overflow policies than "block" are not supported yet.
            ValueError: the pattern is malformed.
        """
        return self._hub.subscribe(topic, queue=queue, max_pending=max_pending, overflow=overflow)

    def subscriber(self, topic: Topic[Any] | str) -> Callable[[F], F]:
        """Call the decorated function with each (payload) or (payload, message), from `ready` on, one at a time."""

        def register(function: F) -> F:
            wants = len(inspect.signature(function).parameters) > 1
            messages = self.subscribe(topic)
            self._subscribers.append((messages, function, wants))
            if self._ready:
                self._keep(self._loop.create_task(deliver(messages, function, wants_message=wants)))
            return function

        return register

    # serving

    @overload
    def handler(
        self, method: Method[Req, Rep]
    ) -> Callable[
        [Callable[[Req], Rep | Awaitable[Rep]] | Callable[[Req, IpcMessage[Req]], Rep | Awaitable[Rep]]],
        Callable[..., Rep | Awaitable[Rep]],
    ]: ...

    @overload
    def handler(self, method: str) -> Callable[[F], F]: ...

    def handler(self, method: Method[Any, Any] | str) -> Callable[[Any], Any]:
        """Register the decorated function, `def` or `async def`, taking (payload) or (payload, message).

        A contract carries the full address; a plain name is relative to this worker. A plain `def` runs on the event
        loop: keep it short.

        Raises:
            LocalProtocolError: the name is taken or another worker's, or the signature does not fit.
        """

        def register(function: Any) -> Any:
            self._registry.add(method, function)
            return function

        return register

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
        await self._caller.aclose(max(0.1, until - self._loop.time()))
        self._directory.listeners.remove(self._directory_changed_elsewhere)

    def _begin_stop(self, cause: str) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the worker has ended already
            self._loop.call_soon_threadsafe(self._stop_now, cause)

    def _stop_now(self, cause: str) -> None:
        if not self._stop.is_set():
            self._stop_cause = cause
            self._stop.set()
            self._hub.stop()

    def _directory_changed_elsewhere(self) -> None:
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._directory_changed)

    def _directory_changed(self) -> None:
        self._caller.directory_changed()
        self._publisher.directory_changed()

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _budget(self, contract: Method[Any, Any] | None, timeout: float | None) -> float:
        budget = timeout if timeout is not None else (contract.timeout if contract is not None else DEFAULT_TIMEOUT)
        deadline = current_deadline.get()
        if deadline is not None:
            budget = min(budget, deadline - time.monotonic())
        if budget <= 0:
            raise RequestTimeout(timeout, "the deadline has passed already", processed="no")
        return budget

    # LinkHost: what arrives on any link

    def on_opened(self, link: Link) -> None:
        """Nothing to do: requests may flow before."""

    def on_request(self, link: Link, event: RequestReceived) -> None:
        """Serve it."""
        self._server.on_request(link, event)

    def on_notify(self, link: Link, event: NotifyReceived) -> None:
        """Serve it."""
        self._server.on_notify(link, event)

    def on_cancel(self, link: Link, event: CancelReceived) -> None:
        """Cancel the handler."""
        self._server.on_cancel(link, event.id)

    def on_message(self, link: Link, event: MessageReceived) -> None:
        """Pass it to its subscription."""
        self._hub.on_message(link, event)

    def on_consumed(self, link: Link, event: ConsumedReceived) -> None:
        """Take credit back for the life at the other end."""
        for life, known in self._caller.links.items():
            if known is link:
                self._publisher.consumed(life, event)
                return

    def on_goodbye(self, link: Link, event: GoodbyeReceived) -> None:
        """The peer is stopping: the directory says so too, and new calls are refused unprocessed until it does."""

    def on_closed(self, link: Link, event: Closed) -> None:
        """Forget the link on whichever side it was."""
        life = self._caller.forget(link)
        if life is not None:
            self._publisher.lost(life)
        self._hub.forget(link)
        self._server.closed(link)


def _decode(reply: bytes, contract: Method[Any, Any] | None, reply_type: Any, name: str) -> Any:
    wanted = contract.reply if contract is not None else (Any if reply_type is None else reply_type)
    return codec.decode(reply, wanted, method=name)


def _no_retain(retain: bool) -> None:
    if retain:
        raise LocalProtocolError("publish(retain=True) is not supported yet")


async def _drawn(payloads: Iterable[H] | AsyncIterable[H]) -> AsyncIterator[H]:
    if isinstance(payloads, AsyncIterable):
        async for payload in payloads:
            yield payload
    else:
        for payload in payloads:
            yield payload
