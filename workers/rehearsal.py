"""Run the first steps of a life once for nothing, in a spare: what a process does for the first time is slow.

A forked process copies every page of memory at its first write, and every call finds its caches cold. Whoever waits for
a spare to take over should not wait for that. What a life does is not here but in the runtimes, and nothing of a
rehearsal remains: no socket, thread, signal handler or count.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any, Literal

from smartipc.ipc import control
from smartipc.ipc.drivers.base import QuietHost
from smartipc.ipc.drivers.blocking import Link
from smartipc.ipc.errors import SmartIpcError
from smartipc.ipc.observe import traffic
from smartipc.ipc.protocol.connection import Connection
from smartipc.ipc.protocol.events import RequestReceived
from smartipc.ipc.protocol.handshake import Identity
from smartipc.ipc.routing.directory import Directory
from smartipc.ipc.wire import codec
from smartipc.workers.control import ControlClient

Run = Callable[[Any, control.Launch, Directory, ControlClient, control.Started], str]
_PATIENCE = 1.0
_HANDLED = (signal.SIGTERM, signal.SIGINT)


class _Prompter(QuietHost):
    """Plays the supervisor: tells what to become."""

    def on_request(self, link: Link, event: RequestReceived) -> None:
        """Answer with a life that listens nowhere."""
        state = control.Directory(revision=1, full=True)
        launch = control.Launch("rehearsal", "rehearsal", 0, 0, "", "", env=dict(os.environ), directory=state)
        link.reply(event.id, codec.encode(launch))


def rehearse(run: Run, kind: Literal["async", "blocking"]) -> None:
    """Begin and end a life that does nothing. Main thread only.

    Args:
        run: leads a life of that kind, once the control thread runs.
        kind: the flavour of the target that will follow.

    Raises:
        SmartIpcError: it went wrong; the life that follows begins more slowly, no more.
    """
    handlers = {number: signal.getsignal(number) for number in _HANDLED}
    theirs, ours = socket.socketpair()
    supervisor = Link(theirs, Connection("server", Identity(control.SUPERVISOR)), _Prompter())
    prompter = threading.Thread(target=_prompt, args=(supervisor,), name="smartipc-rehearsal", daemon=True)
    prompter.start()
    port = ControlClient(ours)
    try:
        launch = port.launch()
        directory = Directory()
        directory.apply(launch.directory)
        port.start(directory, source="process", interval=launch.heartbeat.interval)
        started = control.Started(heartbeat_source="loop" if kind == "async" else "process", flavour=kind)
        run(_nothing_async if kind == "async" else _nothing, launch, directory, port, started)
    finally:
        port.leave()
        prompter.join(_PATIENCE)
        supervisor.close()
        for number, handler in handlers.items():
            if handler is not None:  # else it was not Python that set it
                signal.signal(number, handler)
        traffic.ledger.forget()


def _prompt(supervisor: Link) -> None:
    try:
        while not supervisor.closed:
            supervisor.pump(_PATIENCE)
    except (SmartIpcError, OSError):
        return  # the rehearsal is over


async def _nothing_async(_ipc: Any) -> None:
    return


def _nothing(_ipc: Any) -> None:
    return
