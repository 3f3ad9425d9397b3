"""The worker's end of the child-process pipe: one thread that listens to the supervisor, for both flavours.

It applies and acknowledges directory updates, sends heartbeats, passes stop orders on, and ends the process when the
supervisor is gone. No message between workers ever passes here, and nothing here waits for the worker's own code:
a worker that computes for minutes still acknowledges, and notices that it has been orphaned.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from smartipc.ipc import control
from smartipc.ipc.contracts import Method
from smartipc.ipc.drivers.base import QuietHost
from smartipc.ipc.drivers.blocking import Link
from smartipc.ipc.errors import SmartIpcError
from smartipc.ipc.observe.traffic import traffic
from smartipc.ipc.protocol.connection import Connection
from smartipc.ipc.protocol.events import NotifyReceived
from smartipc.ipc.protocol.handshake import Identity
from smartipc.ipc.routing.directory import Directory
from smartipc.ipc.wire import codec

P = TypeVar("P")
R = TypeVar("R")

_STATE_INTERVAL = 0.1
"""Seconds between two progress or status reports: a tight loop that reports must not flood the supervisor."""

REPORT_FIRST = 1.0
REPORT_EVERY = 5.0
"""Seconds until the first report of what was carried, and between two."""

_MOMENTS = 8
"""Of each interval, at which beats are sent."""
_LATEST_ONLY = frozenset({control.status_text.name, control.progress.name})


def beat_after(now: float, interval: float, pid: int) -> float:
    """Return when the next beat is due, at most one interval later, in step with the beats of other processes.

    The clock is the same for all, so beats fall into a few moments of each interval: the supervisor wakes for many of
    them at once, and yet not all workers wake together.
    """
    phase = interval * (pid % _MOMENTS) / _MOMENTS
    return now + interval - (now - phase) % interval


def _be_as_main_thread() -> None:
    """Take over what the supervisor has set of the process: on Linux it holds for the main thread and later ones."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, os.getpid()))
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, os.sched_getaffinity(os.getpid()))


class ControlClient(QuietHost):
    """Speak with the supervisor over the pipe; implements routing.port.ControlPort.

    Args:
        sock: the worker's end of the socket pair; owned from here on.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._link = Link(sock, Connection("client", Identity(pid=os.getpid())), self)
        self._directory: Directory | None = None
        self._early: list[control.Directory] = []
        self._stop: Callable[[str], None] = lambda _cause: None
        self._stop_cause: str | None = None
        self._grace = 10.0
        self._interval = 1.0
        self._source = "off"
        self._turned = True
        self._counts = False
        self.traffic: Callable[[], control.Traffic] = traffic
        """What this process has carried; the runtimes know more."""
        self._report_at = time.monotonic() + REPORT_FIRST
        self._reported = control.Traffic()
        self.served: Callable[[], int] = lambda: 0
        """How many requests this worker has served; the runtimes know."""
        self._latest: dict[str, tuple[Method[Any, Any], Any]] = {}
        self._latest_sent = 0.0
        self._lock = threading.Lock()
        self._left = False
        self._thread: threading.Thread | None = None
        self._begun = threading.Event()
        self._hang: Callable[[], Any] = lambda: None

    def __repr__(self) -> str:
        return f"<ControlClient {self._source} beats every {self._interval:g} s, link {self._link!r}>"

    def launch(self) -> control.Launch:
        """Ask what to become. Waits as long as the supervisor likes: a spare waits here.

        Raises:
            SmartIpcError: the supervisor is gone or refuses.
        """
        request = codec.encode(control.LaunchRequest(pid=os.getpid()))
        reply = self._link.call(control.launch.name, request, timeout=control.launch.timeout)
        launch: control.Launch = codec.decode(reply, control.Launch, method=control.launch.name)
        self._grace = launch.grace
        self._counts = launch.counts_requests
        return launch

    def start(self, directory: Directory, *, source: str, interval: float) -> None:
        """Let the control thread begin: updates flow into `directory`, beats flow out."""
        for update in self._early:
            if update.revision > directory.state.revision:
                self._apply(directory, update)
        self._directory = directory
        self._report_at = time.monotonic() + REPORT_FIRST  # a spare may have waited for hours, and has carried nothing
        self._source = source
        self._interval = interval
        self.prepare()
        self._begun.set()

    def prepare(self) -> None:
        """Make the control thread ahead; it waits for `start`, which then need not wait until a thread is there."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="smartipc-control", daemon=True)
            self._thread.start()

    def leave(self) -> None:
        """Close the pipe without a word, and end the control thread; this process goes on."""
        self._left = True
        self._link.close()
        if self._thread is not None:
            self._begun.set()
            self._thread.join()

    def on_stop_call(self, stop: Callable[[str], None]) -> None:
        """Call `stop(cause)`, from the control thread, when the worker must stop; at once if it already must."""
        with self._lock:
            self._stop = stop
            cause = self._stop_cause
        if cause is not None:
            stop(cause)

    def on_hang_call(self, hang: Callable[[], Any]) -> None:
        """Call `hang()`, from the control thread, when this worker is to stand still for a test of others."""
        self._hang = hang

    # ControlPort

    def notify(self, method: Method[P, Any], payload: P) -> None:
        """Tell the supervisor; a lost supervisor is not an error here, the control thread deals with it."""
        if method.name in _LATEST_ONLY:
            with self._lock:
                self._latest[method.name] = (method, payload)
                due = time.monotonic() - self._latest_sent >= _STATE_INTERVAL
            if due:
                self._flush_latest()
            return
        self._send(method, payload)

    def call(self, method: Method[P, R], payload: P) -> Future[R]:
        """Ask the supervisor; the future fails with a SmartIpcError. Rare, so each call may cost a thread."""
        future: Future[R] = Future()
        future.set_running_or_notify_cancel()  # whoever awaits it may be cancelled; the answer still has its place

        def ask() -> None:
            try:
                reply = self._link.call(method.name, codec.encode(payload), timeout=method.timeout)
                value = codec.decode(reply, method.reply, method=method.name)
            except BaseException as error:  # whatever it is belongs to the caller
                future.set_exception(error)
            else:
                future.set_result(value)

        threading.Thread(target=ask, name=f"smartipc-control-{method.name}", daemon=True).start()
        return future

    def turned(self) -> None:
        """Note that the watched loop has turned; the next beat may be sent."""
        self._turned = True

    def ending(self, ending: control.Ending) -> None:
        """Report the last progress and how this life ends."""
        self._source = "off"
        self._flush_latest()
        self._report_at = 0.0
        self._report()
        self._send(control.ending, ending)

    def _send(self, method: Method[P, Any], payload: P) -> None:
        try:
            self._link.notify(method.name, codec.encode(payload))
        except (SmartIpcError, OSError):
            return  # the pipe is closed: the control thread sees the same and stops the worker

    def _flush_latest(self) -> None:
        with self._lock:
            latest, self._latest = self._latest, {}
            self._latest_sent = time.monotonic()
        for method, payload in latest.values():
            self._send(method, payload)

    # the thread

    def _run(self) -> None:
        self._begun.wait()
        _be_as_main_thread()
        next_beat = time.monotonic()
        while not self._link.closed:
            now = time.monotonic()
            if now >= next_beat:
                self._beat()
                next_beat = beat_after(now, self._interval, os.getpid())
            try:
                self._link.pump(max(0.0, next_beat - now))
            except (SmartIpcError, OSError):
                break
        if not self._left:
            self._orphaned()

    def _beat(self) -> None:
        if self._latest:
            self._flush_latest()
        self._report()
        if self._source == "process" or (self._source == "loop" and self._turned):
            self._turned = False
            self._send(control.beat, control.Beat(self.served() if self._counts else None))

    def _report(self) -> None:
        """Tell what was carried, at a slow pace and only if it changed."""
        now = time.monotonic()
        if now < self._report_at:
            return
        self._report_at = now + REPORT_EVERY
        carried = self.traffic()
        if carried != self._reported:
            self._reported = carried
            self._send(control.traffic, carried)

    def _orphaned(self) -> None:
        """End this process, gracefully first: nobody is left who would restart or kill it."""
        deadline = time.monotonic() + self._grace
        self._begin_stop("the supervisor is gone")
        while (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, 1.0))
        os.killpg(0, signal.SIGKILL)

    def _begin_stop(self, cause: str) -> None:
        with self._lock:
            first = self._stop_cause is None
            self._stop_cause = cause
            stop = self._stop
        if first:
            stop(cause)

    # LinkHost

    def on_notify(self, link: Link, event: NotifyReceived) -> None:
        """Directory updates and stop orders."""
        if event.method == control.directory.name:
            update = codec.decode(event.payload, control.Directory, method=event.method)
            if self._directory is None:
                self._early.append(update)  # it overtook a large launch answer
            else:
                self._apply(self._directory, update)
        elif event.method == control.stop.name:
            order = codec.decode(event.payload, control.StopOrder, method=event.method)
            self._grace = order.grace
            self._begin_stop(order.cause or "ordered to stop")
        elif event.method == control.hang.name:
            self._source = "off"
            self._hang()

    def _apply(self, directory: Directory, update: control.Directory) -> None:
        directory.apply(update)
        self._send(control.acknowledge, control.Acknowledge(update.revision))
