"""How a command finds its app and asks it: one blocking link to the control socket."""

from __future__ import annotations

import os
import re
import socket
import sys
import time
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from smartipc.ipc.contracts import Method
from smartipc.ipc.drivers.base import QuietHost, RemoteFault
from smartipc.ipc.drivers.blocking import Link
from smartipc.ipc.errors import ConfigError, ConnectFailed, ConnectionLost, NoSuchWorker, RequestTimeout
from smartipc.ipc.protocol.connection import Connection
from smartipc.ipc.protocol.handshake import Identity
from smartipc.ipc.transports.unix import UnixSocketTransport
from smartipc.ipc.wire import codec
from smartipc.ipc.wire.text import one_line
from smartipc.supervisor.host.rundir import CONTROL_SOCKET, base_directory, running_apps

P = TypeVar("P")
R = TypeVar("R")
FAILED, USAGE, NOT_RUNNING, NO_SUCH_WORKER = 1, 2, 3, 4
_DIAL_AGAIN = 0.01
_DIAL_FOR = 5.0


class Client:
    """A connection to the supervisor of one app; every failure ends the command with its exit code."""

    def __init__(self, directory: Path, app: str) -> None:
        self.app = app
        self._link = Link(_dial(directory, app), Connection("client", Identity("smartipc")), QuietHost())

    def ask(self, method: Method[P, R], payload: P) -> R:
        """Ask, or leave with the right exit code."""
        try:
            reply = self._link.call(method.name, codec.encode(payload), timeout=method.timeout)
        except RemoteFault as fault:
            error = fault.error(method=method.name, instance=None)
            if isinstance(error, NoSuchWorker):
                known = ", ".join(error.known) or "none"
                name = fault.fault.message.partition(";")[0].removeprefix("no worker named ")
                leave(NO_SUCH_WORKER, f"no such worker: {name}; known: {known}")
            leave(FAILED, str(error))
        except (ConnectionLost, RequestTimeout) as error:
            leave(NOT_RUNNING if isinstance(error, ConnectionLost) else FAILED, f"app {self.app}: {error}")
        return codec.decode(reply, method.reply, method=method.name)  # type: ignore[no-any-return]

    def close(self) -> None:
        """Hang up."""
        self._link.close()


def find(app: str | None, config: str | None) -> Client:
    """Return a client of the app that the options, SMARTIPC_APP or the circumstances name; exit 2 or 3 otherwise."""
    if config is not None:
        return _of_file(config)
    if app is not None:
        return Client(base_directory() / app, app)
    running = running_apps()
    if not running:
        leave(NOT_RUNNING, "no app of this user is running")
    if len(running) > 1:
        names = ", ".join(one.app for one in running)
        leave(USAGE, f"several apps are running ({names}): choose one with --app NAME")
    return Client(Path(running[0].directory), running[0].app)


def _of_file(config: str) -> Client:
    """Return a client of the app of a file; one that was broken while its app runs is still the file of that app."""
    from smartipc.supervisor.configuration import load

    try:
        spec = load(config)
    except ConfigError as error:
        running = running_apps()
        path, name = os.path.realpath(config), _app_line(config)
        matching = [one for one in running if one.config and os.path.realpath(one.config) == path]
        matching = matching or [one for one in running if one.app == name]
        if len(matching) == 1:
            return Client(Path(matching[0].directory), matching[0].app)
        leave(USAGE, str(error))
    chosen = spec.supervisor.runtime_dir
    return Client(Path(chosen) if chosen else base_directory() / spec.app, spec.app)


def _app_line(config: str) -> str | None:
    """Return what a file that cannot be loaded says of the name of its app."""
    try:
        text = Path(config).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r"^app:[ \t]*([\"']?)([a-z][a-z0-9_-]*)\1[ \t]*(?:#.*)?$", text, re.MULTILINE)
    return found[2] if found is not None else None


def _dial(directory: Path, app: str) -> socket.socket:
    until = time.monotonic() + _DIAL_FOR
    while True:
        try:
            return UnixSocketTransport(str(directory / CONTROL_SOCKET)).dial()
        except ConnectFailed:
            leave(NOT_RUNNING, f"app {app} is not running")
        except BlockingIOError:  # many commands at once: its queue is full for a moment
            if time.monotonic() > until:
                leave(FAILED, f"app {app} does not answer")
            time.sleep(_DIAL_AGAIN)


def leave(code: int, message: str) -> NoReturn:
    """Say why on stderr and exit."""
    click.echo("\n".join(map(one_line, message.split("\n"))), err=True)
    sys.exit(code)


def plain(value: Any) -> str:
    """Return a value as one line of JSON."""
    import msgspec

    return msgspec.json.encode(value).decode()
