"""The blocking handle that a plain `def` worker function receives: the twin of handle.py, without await.

A thin front: calls are in calling.py, waiting and handlers in serving.py, topics in publishing.py. No thread of its own
and no event loop: whoever waits does the reading.
"""

from __future__ import annotations

import functools
import inspect
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar, cast, overload

from smartipc.ipc import control, links
from smartipc.ipc.contracts import DEFAULT_TIMEOUT, Method, Topic
from smartipc.ipc.control import Launch
from smartipc.ipc.dispatch import Registry, request_payload, worker_of
from smartipc.ipc.errors import LocalProtocolError, NoSuchWorker, RequestTimeout, SmartIpcError
from smartipc.ipc.message import IpcMessage, Outcome, Peer
from smartipc.ipc.routing.directory import Directory
from smartipc.ipc.routing.port import ControlPort
from smartipc.ipc.sync.calling import Call, Caller
from smartipc.ipc.sync.publishing import Hub, Messages, Publisher
from smartipc.ipc.sync.serving import Server, current_deadline
from smartipc.ipc.wire import codec

Req = TypeVar("Req")
Rep = TypeVar("Rep")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

LOOK_AHEAD = 32
"""Calls that `map` keeps under way unless `concurrency` says otherwise."""
log = logging.getLogger("smartipc.handle")


class SmartIpc:
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
        self._registry = Registry(launch.worker, self.name)
        self._caller = Caller(launch, directory)
        self._server = Server(launch, self._registry, port)
        self._publisher = Publisher(directory, self._caller)
        self._hub = Hub(launch, port, self._server)
        self._caller.while_stalled = self._server.read
        self._server.before_sleep = self._caller.flush
        self._subscribers: list[Messages[Any]] = []
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
        for messages in self._subscribers:
            messages.__enter__()
        self._port.notify(control.ready, None)

    def serve(self) -> None:
        """Be ready and serve until told to stop. Requests that wait then are finished when the target returns.

        The calling thread becomes the home thread.
        """
        self._server.home = threading.get_ident()
        self.ready()
        self._server.wait(self._stop.is_set)

    def beat(self) -> None:
        """Say that this worker's own loop still turns; `serve` and every other waiting member do it by themselves."""
        self._port.turned()

    def set_status(self, text: str) -> None:
        """Show `text` in `smartipc status`."""
        self._port.notify(control.status_text, control.StatusText(text))

    def progress(self, done: float, total: float | None = None) -> None:
        """Show how far the work is; `total` None while unknown."""
        self._port.notify(control.progress, control.Progress(done, total))

    def on_stop(self, function: F) -> F:
        """Call `function()` when this worker ends, while it can still send."""
        _refuse_async(function, "an on_stop function")
        self._on_stop.append(function)
        return function

    # requests

    @overload
    def request(
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
    def request(
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
    def request(
        self,
        method: str,
        payload: Any = None,
        *,
        timeout: float | None = None,
        slot: int | None = None,
        key: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> Any: ...

    def request(
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

        An exception that interrupts the wait (KeyboardInterrupt) cancels the call.

        Raises:
            RequestTimeout: no reply in time, or no instance became ready in time.
            WorkerDied, ConnectionLost: the instance was lost; `processed` says what is known of the call.
            NoSuchWorker, NoSuchMethod, Overloaded, InvalidPayload, RemoteError: what they say.
            LocalProtocolError: the handle was inherited through fork.
            Exception: an error that the contract declares, as itself.
        """
        contract = method if isinstance(method, Method) else None
        call = self._call(method, payload, contract, timeout=timeout, slot=slot, key=key, headers=headers)
        return _decode(self._caller.request(call), contract, reply_type, call.method)

    def notify(
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
            NoSuchWorker, WorkerDied, InvalidPayload, FrameTooLarge: as request.
        """
        contract = method if isinstance(method, Method) else None
        call = self._call(method, payload, contract, timeout=timeout, slot=slot, key=key, headers=headers)
        self._caller.notify(call)

    def broadcast(
        self, method: Method[Req, Rep] | str, payload: Req | Any = None, *, timeout: float | None = None
    ) -> list[Outcome[Rep]]:
        """Ask every live instance of a worker at once and return one Outcome each, by slot; partial results are kept.

        Raises:
            NoSuchWorker, InvalidPayload: as request; errors of single instances are in their outcomes.
        """
        contract = method if isinstance(method, Method) else None
        name, encoded = request_payload(method, payload)
        worker, state = worker_of(name), self._directory.state
        if worker not in state.by_worker:
            raise NoSuchWorker(worker, state.workers(), method=name)
        budget = self._budget(contract, timeout)
        errors = contract.errors if contract is not None else ()
        calls = [
            Call(name, encoded, worker=worker, timeout=budget, declared=errors, entry=entry)
            for entry in state.by_worker[worker]
            if state.lives(entry.instance, entry.generation)
        ]
        waiting = list(calls)
        try:
            for call in calls:
                self._caller.start(call)
            while waiting := [call for call in waiting if not call.done]:
                self._caller.drive(waiting)
        finally:
            for call in waiting:
                self._caller.cancel(call)
        return [self._outcome(call, contract) for call in calls]

    def _outcome(self, call: Call, contract: Method[Any, Any] | None) -> Outcome[Any]:
        assert call.entry is not None
        try:
            return Outcome(call.entry.instance, _decode(call.result(), contract, None, call.method))
        except Exception as error:
            if not isinstance(error, SmartIpcError) and not isinstance(error, call.declared):
                raise
            return Outcome(call.entry.instance, error=cast("SmartIpcError", error))

    def map(
        self,
        method: Method[Req, Rep],
        payloads: Iterable[Req],
        *,
        concurrency: int = LOOK_AHEAD,
        ordered: bool = True,
        timeout: float | None = None,
    ) -> Iterator[Rep]:
        """Call once per payload, at most `concurrency` under way, and yield the replies, in order if `ordered`.

        Payloads are drawn only as places come free. The first failure is raised at its place; leaving the iteration
        early (closing the iterator) cancels what is under way. No threads: the calls are pipelined.

        Raises:
            LocalProtocolError: `concurrency` is below 1.
            Exception: as request.
        """
        if concurrency < 1:
            raise LocalProtocolError(f"concurrency must be at least 1, got {concurrency}")
        return self._map(method, iter(payloads), concurrency, ordered=ordered, timeout=timeout)

    def _map(
        self, method: Method[Req, Rep], source: Iterator[Req], concurrency: int, *, ordered: bool, timeout: float | None
    ) -> Iterator[Rep]:
        running: deque[Call] = deque()
        more = True
        try:
            while True:
                while more and len(running) < concurrency:
                    try:
                        payload = next(source)
                    except StopIteration:
                        more = False
                    else:
                        call = self._call(method, payload, method, timeout=timeout)
                        running.append(call)
                        self._caller.start(call)
                if not running:
                    return
                if ordered:
                    while not running[0].done:
                        self._caller.drive([call for call in running if not call.done])
                    call = running.popleft()
                    yield _decode(call.result(), method, None, call.method)
                    continue
                self._caller.drive(running)
                finished = [call for call in running if call.done]
                running = deque(call for call in running if not call.done)
                for call in finished:
                    yield _decode(call.result(), method, None, call.method)
        finally:
            for call in running:
                self._caller.cancel(call)

    def _call(
        self,
        method: Method[Any, Any] | str,
        payload: Any,
        contract: Method[Any, Any] | None,
        *,
        timeout: float | None,
        slot: int | None = None,
        key: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> Call:
        name, encoded = request_payload(method, payload)
        return Call(
            name,
            encoded,
            worker=_worker_of(name),
            timeout=self._budget(contract, timeout),
            slot=slot,
            key=key,
            headers=headers,
            idempotent=contract is not None and contract.idempotent,
            declared=contract.errors if contract is not None else (),
        )

    # topics

    def publish(self, topic: Topic[T] | str, payload: T | Any, *, retain: bool = False) -> None:
        """Send to every subscription of the topic; waits while one of them has its window full.

        Raises:
            InvalidPayload: it does not fit the topic's type.
            LocalProtocolError: `retain` is not supported yet.
        """
        _no_retain(retain)
        self._publisher.publish(topic, payload)

    def publish_nowait(self, topic: Topic[T] | str, payload: T | Any, *, retain: bool = False) -> int:
        """Send to every subscription, or to none, and return how many.

        Raises:
            Overloaded: a subscription has its window full, or its socket; nothing was sent.
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
        """Subscribe to a topic or a pattern: `with ipc.subscribe(topic) as messages: for message in messages`.

        Once entered, every later publish by any live worker reaches it. `max_pending` (default 1024) is how many
        unconsumed messages each publisher may have sent; then `publish` waits. Iterating ends when the worker is told
        to stop; in the home thread it also serves the requests that arrive meanwhile.

        Raises:
            LocalProtocolError: `queue` and other overflow policies than "block" are not supported yet.
            ValueError: the pattern is malformed.
        """
        return self._hub.subscribe(topic, queue=queue, max_pending=max_pending, overflow=overflow)

    def subscriber(self, topic: Topic[Any] | str) -> Callable[[F], F]:
        """Call the decorated function with each (payload) or (payload, message), from `ready` on, one at a time."""

        def register(function: F) -> F:
            _refuse_async(function, "a subscriber")
            messages = self.subscribe(topic)
            messages.function = function
            messages.wants_message = len(inspect.signature(function).parameters) > 1
            self._subscribers.append(messages)
            if self._ready:
                messages.__enter__()
            return function

        return register

    # serving

    @overload
    def handler(
        self, method: Method[Req, Rep]
    ) -> Callable[[Callable[[Req], Rep] | Callable[[Req, IpcMessage[Req]], Rep]], Callable[..., Rep]]: ...

    @overload
    def handler(self, method: str) -> Callable[[F], F]: ...

    def handler(self, method: Method[Any, Any] | str) -> Callable[[Any], Any]:
        """Register the decorated plain function, taking (payload) or (payload, message).

        A contract carries the full address; a plain name is relative to this worker. Handlers run one at a time, in
        the home thread.

        Raises:
            TypeError: an `async def`: a blocking worker has no event loop to run it.
            LocalProtocolError: the name is taken or another worker's, or the signature does not fit.
        """

        def register(function: Any) -> Any:
            _refuse_async(function, "a handler")
            self._registry.add(method, function)
            return function

        return register

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
        finally:
            self._server.close()
            self._caller.close(max(0.1, until - time.monotonic()))
            if self._directory_changed in self._directory.listeners:
                self._directory.listeners.remove(self._directory_changed)

    def _begin_stop(self, cause: str) -> None:
        if not self._stop.is_set():
            self._stop_cause = cause
            self._stop.set()
            self._hub.stop()
            self._server.wake()

    def _directory_changed(self) -> None:
        self._publisher.directory_changed()
        self._caller.directory_changed()

    def _budget(self, contract: Method[Any, Any] | None, timeout: float | None) -> float:
        budget = timeout if timeout is not None else (contract.timeout if contract is not None else DEFAULT_TIMEOUT)
        deadline = current_deadline.get()
        if deadline is not None:
            budget = min(budget, deadline - time.monotonic())
        if budget <= 0:
            raise RequestTimeout(timeout, "the deadline has passed already", processed="no")
        return budget


_worker_of = functools.lru_cache(maxsize=1024)(worker_of)


def _decode(reply: bytes, contract: Method[Any, Any] | None, reply_type: Any, name: str) -> Any:
    wanted = contract.reply if contract is not None else (Any if reply_type is None else reply_type)
    return codec.decode(reply, wanted, method=name)


def _no_retain(retain: bool) -> None:
    if retain:
        raise LocalProtocolError("publish(retain=True) is not supported yet")


def _refuse_async(function: Callable[..., Any], what: str) -> None:
    plain = inspect.unwrap(function)
    if inspect.iscoroutinefunction(plain) or inspect.isasyncgenfunction(plain):
        name = getattr(function, "__qualname__", repr(function))
        raise TypeError(
            f"{name} is async, but {what} of a blocking worker must be a plain function: "
            "make the worker's target async too, or drop the async"
        )
