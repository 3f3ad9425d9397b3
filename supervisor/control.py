"""The control socket: what the `smartipc` command asks is answered here, each request in a task of its own.

Nothing here blocks anything else: long orders and long polls just wait. What an order means is the core's business,
reached through the runner.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from smartipc.ipc import control
from smartipc.ipc.contracts import Method
from smartipc.ipc.drivers.aio import Link
from smartipc.ipc.drivers.base import QuietHost
from smartipc.ipc.errors import NoSuchMethod
from smartipc.ipc.protocol.connection import Connection
from smartipc.ipc.protocol.events import CancelReceived, Closed, RequestReceived
from smartipc.ipc.protocol.handshake import Identity
from smartipc.ipc.transports.unix import UnixSocketTransport, same_user
from smartipc.ipc.wire import codec
from smartipc.ipc.wire.faults import fault_of
from smartipc.supervisor.core.facts import RestartOrdered, ShutdownOrdered, StartOrdered, StopOrdered
from smartipc.supervisor.inspection import Inspection
from smartipc.supervisor.operator import Operator
from smartipc.supervisor.status import app_status
from smartipc.supervisor.steering import resolve

if TYPE_CHECKING:
    from smartipc.ipc.hearing import Messages
    from smartipc.supervisor.runner import App

log = logging.getLogger("smartipc.supervisor")
_BREATH = 0.5
"""Seconds without listening when a command cannot be let in."""
_LONGEST_WAIT = 30.0
"""Seconds that one long poll may take."""


class ControlServer(QuietHost):
    """Serve the cli_* methods of ipc/control.py.

    Args:
        app: the running app.
        path: where to listen.
    """

    def __init__(self, app: App, path: str) -> None:
        self._app = app
        self._path = path
        self._listener = UnixSocketTransport(path).listen()
        self._reserve: int | None = os.open(os.devnull, os.O_RDONLY)
        """Given up for a command when there is no other descriptor left: that is when people look."""
        self._links: set[Link] = set()
        self._tasks: dict[tuple[Link, int], asyncio.Task[None]] = {}
        self._watches: dict[tuple[Link, str], Messages[Any]] = {}
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._listener.fileno(), self._accept)
        served: list[tuple[Method[Any, Any], Callable[[Link, Any], Awaitable[Any]]]] = [
            (control.cli_status, self._status),
            (control.cli_start, self._start),
            (control.cli_stop, self._stop),
            (control.cli_restart, self._restart),
            (control.cli_logs, self._logs),
            (control.cli_events, self._events),
            (control.cli_request, self._request),
            (control.cli_broadcast, self._broadcast),
            (control.cli_publish, self._publish),
            (control.cli_subscribe, self._subscribe),
            (control.cli_metrics, self._metrics),
            (control.cli_shutdown, self._shutdown),
        ]
        more = (*app.steering.methods(), *Inspection(app).methods(), *app.letters.methods())
        served += [(method, _without_link(serve)) for method, serve in more]
        self._methods = {method.name: (method, serve) for method, serve in served}

    def __repr__(self) -> str:
        return f"<ControlServer {len(self._links)} commands connected>"

    async def close(self) -> None:
        """Answer what can be answered, then end."""
        self._loop.remove_reader(self._listener.fileno())
        self._listener.close()
        if self._reserve is not None:
            os.close(self._reserve)
        for task in tuple(self._tasks.values()):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks.values())
        for link in tuple(self._links):
            await link.aclose(0.5)

    def _accept(self) -> None:
        try:
            sock = self._listener.accept()
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            if self._reserve is not None:
                os.close(self._reserve)
                self._reserve = None
                self._accept()
                return
            log.warning("control socket: %s", error.strerror)
            self._loop.remove_reader(self._listener.fileno())  # it would be readable for as long as that lasts
            self._loop.call_later(_BREATH, self._after_a_breath)
            return
        if not same_user(sock):
            sock.close()
            return
        self._links.add(Link(sock, Connection("server", Identity(control.SUPERVISOR, self._app.pid)), self))

    def listen_again(self) -> None:
        """Listen at a socket of the same name, where the old one was deleted. Whoever is connected stays so.

        Raises:
            OSError: it cannot be made.
        """
        fresh = UnixSocketTransport(self._path).listen()
        self._loop.remove_reader(self._listener.fileno())
        self._listener.close()
        self._listener = fresh
        self._loop.add_reader(fresh.fileno(), self._accept)

    def _after_a_breath(self) -> None:
        if self._listener.fileno() >= 0:
            self._loop.add_reader(self._listener.fileno(), self._accept)

    # LinkHost

    def on_request(self, link: Link, event: RequestReceived) -> None:
        """Serve it in a task."""
        task = self._loop.create_task(self._serve(link, event))
        self._tasks[link, event.id] = task
        task.add_done_callback(lambda _done: self._tasks.pop((link, event.id), None))

    def on_cancel(self, link: Link, event: CancelReceived) -> None:
        """Stop waiting for it; the order itself goes on."""
        task = self._tasks.get((link, event.id))
        if task is not None:
            task.cancel()

    def on_closed(self, link: Link, event: Closed) -> None:
        """Forget what that command watched."""
        self._links.discard(link)
        if self._reserve is None:
            with suppress(OSError):
                self._reserve = os.open(os.devnull, os.O_RDONLY)
        for (of, _ident), task in list(self._tasks.items()):
            if of is link:
                task.cancel()
        for key in [key for key in self._watches if key[0] is link]:
            messages = self._watches.pop(key)
            leave = self._loop.create_task(messages.__aexit__(None, None, None))
            self._app.keep(leave)

    async def _serve(self, link: Link, event: RequestReceived) -> None:
        known = self._methods.get(event.method)
        if known is None:
            link.fail(event.id, fault_of(NoSuchMethod(event.method, sorted(self._methods))))
            return
        method, serve = known
        try:
            payload = codec.decode(event.payload, method.request, method=method.name)
            link.reply(event.id, codec.encode(await serve(link, payload)))
        except Exception as error:  # the boundary of one command
            link.fail(event.id, fault_of(error, instance=control.SUPERVISOR))

    # methods

    async def _status(self, _link: Link, _payload: None) -> control.AppStatus:
        return app_status(self._app)

    async def _metrics(self, _link: Link, _payload: None) -> str:
        from smartipc.supervisor.metrics import metrics_text  # its library is loaded when somebody first asks

        return metrics_text(self._app)

    async def _start(self, _link: Link, names: control.Names) -> control.OrderOutcome:
        return await self._app.steering.order(names, StartOrdered)

    async def _stop(self, _link: Link, names: control.Names) -> control.OrderOutcome:
        return await self._app.steering.order(names, StopOrdered)

    async def _restart(self, _link: Link, names: control.Names) -> control.OrderOutcome:
        return await self._app.steering.order(names, RestartOrdered)

    async def _shutdown(self, _link: Link, names: control.Names) -> control.OrderOutcome:
        answer = self._app.order(lambda order: ShutdownOrdered("ordered shutdown", order=order))
        if names.wait:
            await answer
        return control.OrderOutcome({})

    async def _logs(self, _link: Link, request: control.LogsRequest) -> list[control.LogLine]:
        instances = resolve(self._app.spec, [request.name])
        output = self._app.output

        def lines() -> list[control.LogLine]:
            found = [line for name in instances for line in output.tail(name, lines=request.lines, after=request.after)]
            return sorted(found, key=lambda line: line.seq)[-request.lines :]

        found = lines()
        until = self._loop.time() + min(request.wait, _LONGEST_WAIT)
        while not found and (left := until - self._loop.time()) > 0:
            future: asyncio.Future[None] = self._loop.create_future()
            output.arrived.append(future)
            await asyncio.wait({future}, timeout=left)
            found = lines()
        return found

    async def _events(self, _link: Link, request: control.EventsRequest) -> control.Events:
        return await self._app.events.wait(request.since, min(request.wait, _LONGEST_WAIT))

    async def _request(self, _link: Link, call: control.CallRequest) -> control.CallOutcome:
        return await self._operator().request(call)

    async def _broadcast(self, _link: Link, call: control.CallRequest) -> list[control.CallOutcome]:
        return await self._operator().broadcast(call)

    async def _publish(self, _link: Link, request: control.PublishRequest) -> None:
        await self._operator().publish(request)

    async def _subscribe(self, link: Link, request: control.WatchRequest) -> list[control.WatchedMessage]:
        key = (link, request.pattern)
        messages = self._watches.get(key)
        if messages is None:
            messages = self._operator().subscribe(request.pattern)
            await messages.__aenter__()
            self._watches[key] = messages
        return await Operator.next_messages(messages, min(request.wait, _LONGEST_WAIT))

    def _operator(self) -> Operator:
        return self._app.operator


def _without_link(serve: Callable[[Any], Awaitable[Any]]) -> Callable[[Link, Any], Awaitable[Any]]:
    return lambda _link, payload: serve(payload)
