"""The incoming half of the async handle: accept, check who it is, run handlers, answer.

What a request means is decided in dispatch; this file owns the listening socket and the handlers' tasks.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sys
from collections import OrderedDict
from collections.abc import Coroutine
from typing import Any

from smartipc.ipc import links, tracing
from smartipc.ipc.answering import Answers
from smartipc.ipc.batches import Rows
from smartipc.ipc.cancelling import is_being_cancelled
from smartipc.ipc.control import Launch
from smartipc.ipc.dispatch import ENDING, Handler, Registry, again
from smartipc.ipc.drivers.aio import Link
from smartipc.ipc.drivers.base import LinkHost, apart, requests_of
from smartipc.ipc.errors import InvalidPayload, Overloaded, PermissionDenied
from smartipc.ipc.producing import StreamServer
from smartipc.ipc.protocol.connection import Connection
from smartipc.ipc.protocol.events import NotifiesReceived, NotifyReceived, RequestReceived, RequestsReceived
from smartipc.ipc.resilience.dead_letters import DeadLetters
from smartipc.ipc.resilience.undelivered import Undelivered
from smartipc.ipc.routing import attempts
from smartipc.ipc.routing.directory import Directory
from smartipc.ipc.tracing import current_deadline
from smartipc.ipc.transports.base import Listener, Stream
from smartipc.ipc.transports.unix import UnixSocketTransport, same_user
from smartipc.ipc.trust.door import UNAUTHENTICATED
from smartipc.ipc.trust.gate import Gate
from smartipc.ipc.trust.neighbours import PATIENCE, Admit, Neighbours
from smartipc.ipc.wire import codec
from smartipc.ipc.wire.heads import Fault

log = logging.getLogger("smartipc.serving")
_ACCEPTS_PER_TURN = 64


class Server:
    """One listening socket, its links and the handlers that run.

    Args:
        launch: who we are and how much may run at once.
        registry: the handlers.
        host: told what arrives besides requests.
        directory: who is where: who may connect, and as whom. Needed to listen.
        gate: which requests may come in; None for all.
        letters: where one-way messages go that cannot be handled; None for nowhere.
    """

    def __init__(
        self,
        launch: Launch,
        registry: Registry,
        host: LinkHost,
        directory: Directory | None = None,
        gate: Gate | None = None,
        letters: DeadLetters | None = None,
    ) -> None:
        self._gate = gate
        self._undelivered = Undelivered(letters)
        self._answers = Answers(registry)
        self._rows = Rows(self._answers, current_deadline)
        self.links: set[Link] = set()
        self._launch = launch
        self._registry = registry
        self._host = host
        self._identity = links.identity(launch)
        self._loop = asyncio.get_running_loop()
        self._listener: Listener | None = None
        self._neighbours = Neighbours(directory if directory is not None else Directory(), launch.trust)
        self._strangers: dict[Stream, asyncio.TimerHandle] = {}
        self._running: dict[tuple[Link, int], asyncio.Task[None]] = {}
        self._notifies: set[asyncio.Task[None]] = set()
        self.streams = StreamServer(registry, links.instance_name(launch), gate)
        # First come, first served, and yet a cancel finds its request at once: looking through ten thousand for each of
        # ten thousand cancels would take the loop for minutes.
        self._waiting: OrderedDict[tuple[Link, int], tuple[Handler, Link, RequestReceived]] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Server {len(self.links)} links, {len(self._running)} running, {len(self._waiting)} waiting>"

    @property
    def load(self) -> tuple[int, int]:
        """Handlers that run, and requests that wait for their turn."""
        return len(self._running) + len(self._notifies), len(self._waiting) + len(self._rows)

    def open(self) -> None:
        """Listen at the launch's address.

        Raises:
            ConnectFailed: the address cannot be bound.
        """
        if not self._launch.address:
            return
        self._listener = UnixSocketTransport(links.path_of(self._launch.address)).listen()
        self._loop.add_reader(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        assert self._listener is not None
        for _ in range(_ACCEPTS_PER_TURN):
            try:
                sock = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                log.warning("cannot accept a connection: %s", error)
                return
            if not same_user(sock):
                log.warning("connection of another user refused")
                sock.close()
                continue
            self._let_in(sock)

    def _let_in(self, stream: Stream) -> None:
        try:
            admit = self._neighbours.admission(stream)
        except OSError:
            stream.close()
            return
        if admit is not None:
            self._begin(stream, admit)
        elif len(self._strangers) < UNAUTHENTICATED:
            # Nothing of it is read: what it sends waits in the kernel until the directory knows its process.
            self._strangers[stream] = self._loop.call_later(PATIENCE, self._refuse, stream)
        else:
            self._begin(stream, self._neighbours.refusal(stream))

    def _begin(self, stream: Stream, admit: Admit) -> None:
        self.links.add(Link(stream, Connection("server", self._identity, links.LIMITS, admit=admit), self._host))

    def _refuse(self, stream: Stream) -> None:
        del self._strangers[stream]
        self._begin(stream, self._neighbours.refusal(stream))

    def directory_changed(self) -> None:
        """Look again at arrivals whose process the directory did not know."""
        strangers, self._strangers = self._strangers, {}
        for stream, timer in strangers.items():
            admit = self._neighbours.admission(stream)
            if admit is None:
                self._strangers[stream] = timer
            else:
                timer.cancel()
                self._begin(stream, admit)

    def closed(self, link: Link) -> None:
        """Cancel what a caller that is gone had asked for."""
        self.links.discard(link)
        for (of, _ident), task in list(self._running.items()):
            if of is link:
                task.cancel()
        for key in [key for key in self._waiting if key[0] is link]:
            del self._waiting[key]
        self._rows.closed(link)

    # requests

    def on_request(self, link: Link, event: RequestReceived) -> None:
        """Start the handler, let it wait for a place, or refuse."""
        refused = self._gate.refusal(link.peer, event.method, event.received_at) if self._gate is not None else None
        if refused is not None:
            link.fail(event.id, self._registry.fault(refused, ()))
            return
        known = self._registry.handlers.get(event.method)
        if known is not None and known.plain and len(self._running) < self._launch.concurrency_running:
            self._call(known, link, event)
            return
        handler = self._registry.find(event.method)
        if isinstance(handler, Fault):
            link.fail(event.id, handler)
        elif len(self._running) < self._launch.concurrency_running:
            self._start(handler, link, event)
        elif len(self._waiting) < self._launch.concurrency_waiting:
            self._waiting[link, event.id] = handler, link, event
        else:
            link.fail(event.id, self._registry.fault(Overloaded(method=handler.name), ()))

    def on_requests(self, link: Link, event: RequestsReceived) -> None:
        """Run a plain handler for each; to all other handlers, and through a gate, they go one by one."""
        handler = self._registry.handlers.get(event.method)
        if (
            handler is not None
            and handler.plain
            and (self._gate is None or self._gate.open)
            and len(self._running) < self._launch.concurrency_running
        ):
            payloads = codec.decode_all(event.payload, handler.request)
            if payloads is not None:
                self._registry.served += len(event.ids)
                self._rows.run(handler, link, event, payloads)
                return
        for one in requests_of(event, link):
            self.on_request(link, one)

    def on_cancel(self, link: Link, ident: int) -> None:
        """Cancel the handler of a request that its caller no longer wants."""
        task = self._running.get((link, ident))
        if task is not None:
            task.cancel()
        else:
            self._waiting.pop((link, ident), None)
            self._rows.cancel(link, ident)

    def _call(self, handler: Handler, link: Link, event: RequestReceived) -> None:
        """Run a plain handler here and now; whatever is unusual about the request is left to `_start`."""
        deadline = event.deadline
        if deadline is not None and self._loop.time() >= deadline:
            self._start(handler, link, event)
            return
        try:
            payload = codec.decode(event.payload, handler.request)
        except InvalidPayload:
            self._start(handler, link, event)
            return
        self._registry.served += 1
        token = current_deadline.set(deadline)
        handled = tracing.current.set(tracing.handled(link.peer, event))
        try:
            value = handler.function(payload)
        except asyncio.CancelledError:
            self._answers.cancelled(handler, link, event.id)
            return
        except BaseException as error:
            self._answers.failed(handler, link, event.id, error)
            return
        finally:
            current_deadline.reset(token)
            tracing.current.reset(handled)
        self._answers.reply(handler, link, event.id, value)

    def _start(self, handler: Handler, link: Link, event: RequestReceived) -> None:
        arguments = self._registry.arguments(handler, event, link.peer, self._loop.time())
        if isinstance(arguments, Fault):
            link.fail(event.id, arguments)
            return
        token = current_deadline.set(event.deadline)
        handled = tracing.current.set(tracing.handled(link.peer, event))
        try:
            if handler.is_async:
                task = _start_task(self._loop, self._run(handler, link, event.id, arguments))
                if not task.done():
                    self._running[link, event.id] = task
                    task.add_done_callback(lambda _done: self._finished(link, event.id))
            else:
                try:
                    value = handler.function(*arguments)
                except asyncio.CancelledError:
                    self._answers.cancelled(handler, link, event.id)
                except BaseException as error:
                    self._answers.failed(handler, link, event.id, error)
                else:
                    self._answers.reply(handler, link, event.id, value)
        finally:
            current_deadline.reset(token)
            tracing.current.reset(handled)

    async def _run(self, handler: Handler, link: Link, ident: int, arguments: tuple[Any, ...]) -> None:
        try:
            value = await handler.function(*arguments)
        except asyncio.CancelledError:
            # Either the caller gave up, and drops this, or the handler cancelled itself: never leave it unanswered.
            self._answers.cancelled(handler, link, ident)
            if is_being_cancelled():
                raise
        except GeneratorExit:  # nothing runs any more
            raise
        except BaseException as error:
            self._answers.failed(handler, link, ident, error)
        else:
            self._answers.reply(handler, link, ident, value)

    def _finished(self, link: Link, ident: int) -> None:
        self._running.pop((link, ident), None)
        while self._waiting and len(self._running) < self._launch.concurrency_running:
            self._start(*self._waiting.popitem(last=False)[1])

    # one way

    def on_notify(self, link: Link, event: NotifyReceived) -> None:
        """Run the handler of a one-way message; nobody waits for it, so its failure becomes a dead letter."""
        refused = self._gate.refusal(link.peer, event.method, event.received_at) if self._gate is not None else None
        if refused is not None:
            self._undelivered.dropped(link.peer, event, str(refused), keep=not isinstance(refused, PermissionDenied))
            return
        handler = self._registry.find(event.method)
        if isinstance(handler, Fault):
            self._undelivered.dropped(link.peer, event, handler.message)
            return
        arguments = self._registry.arguments(handler, event, link.peer, self._loop.time())
        if isinstance(arguments, Fault):
            self._undelivered.dropped(link.peer, event, arguments.message)
            return
        handled = tracing.current.set(tracing.handled(link.peer, event))
        try:
            if handler.is_async:
                self._keep(self._one_way(handler, link, event, arguments, 1))
            else:
                handler.function(*arguments)
        except BaseException as error:
            self._failed_one_way(handler, link, event, arguments, error)
        finally:
            tracing.current.reset(handled)

    def on_notifies(self, link: Link, event: NotifiesReceived) -> None:
        """Run the handler of one-way messages for each, in order."""
        handler = self._registry.handlers.get(event.method)
        if handler is not None and handler.plain and (self._gate is None or self._gate.open):
            payloads = codec.decode_all(event.payload, handler.request)
            if payloads is not None:
                self._call_each(handler, link, event, payloads)
                return
        for one in apart(event, link):
            self.on_notify(link, NotifyReceived(event.method, one, None, event.received_at))

    def _call_each(self, handler: Handler, link: Link, event: NotifiesReceived, payloads: list[Any]) -> None:
        function = handler.function
        handled = tracing.current.set((link.peer, None, 0, event.received_at))
        try:
            for payload in payloads:
                try:
                    function(payload)
                except BaseException as error:
                    single = NotifyReceived(event.method, codec.encode(payload), None, event.received_at)
                    self._failed_one_way(handler, link, single, (payload,), error)
        finally:
            tracing.current.reset(handled)

    def _failed_one_way(
        self, handler: Handler, link: Link, event: NotifyReceived, arguments: tuple[Any, ...], error: BaseException
    ) -> None:
        """Try a plain handler again a little later if that is safe; else give the message up."""
        if handler.idempotent and not isinstance(error, ENDING):
            self._keep(self._one_way(handler, link, event, arguments, 2))
        else:
            self._give_up(handler, link, event, error, 1)

    def _give_up(
        self, handler: Handler, link: Link, event: NotifyReceived, error: BaseException, attempts_made: int
    ) -> None:
        log.error("handler of one-way message %s raised", handler.name, exc_info=error)
        self._undelivered.failed(link.peer, event, error, attempts_made)
        if isinstance(error, ENDING):
            raise error

    async def _one_way(
        self, handler: Handler, link: Link, event: NotifyReceived, arguments: tuple[Any, ...], attempt: int
    ) -> None:
        """Run a handler until it succeeds, within reason; the end of the worker is one of its failures."""
        begun = attempt - 1
        while True:
            try:
                if attempt > 1:
                    await asyncio.sleep(attempts.pause(attempt - 1, random.random()))  # noqa: S311 - jitter
                begun = attempt
                result = handler.function(*again(arguments, attempt))
                if handler.is_async:
                    await result
            except GeneratorExit:  # nothing runs any more
                raise
            except BaseException as error:
                cancelled = isinstance(error, asyncio.CancelledError) and is_being_cancelled()
                if handler.idempotent and attempt < attempts.ATTEMPTS and not (cancelled or isinstance(error, ENDING)):
                    attempt += 1
                    continue
                self._give_up(handler, link, event, error, begun)
                if cancelled:
                    raise
            return

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = _start_task(self._loop, work)
        if not task.done():
            self._notifies.add(task)
            task.add_done_callback(self._notifies.discard)

    # the end

    def goodbye(self) -> None:
        """Stop accepting, and tell every caller to go elsewhere with new calls."""
        self._stop_listening()
        for link in tuple(self.links):
            link.goodbye("the worker is stopping")

    async def drain(self, grace: float) -> None:
        """Wait at most `grace` seconds for running handlers and unsent answers, then cancel and close.

        Cancelling it cancels and closes at once.
        """
        try:
            await self._drain(grace)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Cancel every handler and close every link at once."""
        for task in (*self._running.values(), *self._notifies, *self.streams.tasks):
            task.cancel()
        for link in tuple(self.links):
            link.close()

    async def _drain(self, grace: float) -> None:
        until = self._loop.time() + grace
        await self._rows.finish(grace, self._identity.name)
        while (tasks := {*self._running.values(), *self._notifies, *self.streams.tasks}) and (
            left := until - self._loop.time()
        ) > 0:
            await asyncio.wait(tasks, timeout=left)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        closing = [link.aclose(max(0.1, until - self._loop.time())) for link in tuple(self.links)]
        if closing:
            await asyncio.gather(*closing)

    def _stop_listening(self) -> None:
        if self._listener is None:
            return
        self._loop.remove_reader(self._listener.fileno())
        self._listener.close()
        self._listener = None
        for stream, timer in self._strangers.items():
            timer.cancel()
            stream.close()
        self._strangers.clear()


def _start_task(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Start a handler; from Python 3.12 on its first step runs at once, and a quick one costs no loop turn."""
    if sys.version_info >= (3, 12):
        return asyncio.Task(work, loop=loop, eager_start=True)
    return loop.create_task(work)
