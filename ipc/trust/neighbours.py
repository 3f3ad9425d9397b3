"""Who may come in at a worker's own socket: the workers of the app, each under its own name, by the kernel's word.

The kernel tells the process at the other end, the directory tells which instance runs in it. What a peer says of itself
is only compared with that. Decisions only; the servers of both flavours hold the connections.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial
from typing import Literal, TypeAlias

from smartipc.ipc.control import Entry
from smartipc.ipc.errors import ConnectFailed
from smartipc.ipc.protocol.handshake import Identity
from smartipc.ipc.routing.directory import Directory
from smartipc.ipc.transports.base import Stream
from smartipc.ipc.transports.unix import UnixSocketTransport, peer_credentials

Admit: TypeAlias = Callable[[Identity], str]
"""Told what a peer says of itself; returns why it must not come in, or ""."""

PATIENCE = 2.0
"""Seconds for the directory to name the process of an arrival: a fresh worker may be quicker here than its entry."""


class Neighbours:
    """The processes that may connect to this worker.

    Args:
        directory: who is where, kept current.
        trust: "app": the app's own workers and its supervisor; "user": every process of this user.
    """

    def __init__(self, directory: Directory, trust: Literal["app", "user"] = "app") -> None:
        self._directory = directory
        self._trust = trust

    def __repr__(self) -> str:
        return f"<Neighbours: {len(self._directory.lives)} lives, trusting the {self._trust}>"

    def admission(self, stream: Stream) -> Admit | None:
        """Return what to ask an arrival of a Unix socket for, or None while its process is unknown.

        Raises:
            OSError: it is gone already.
        """
        pid = pid_of(stream)
        if pid in self._directory.lives.values():
            return partial(self._as_worker, pid)
        return self._as_stranger if self._trust == "user" else None

    def refusal(self, stream: Stream) -> Admit:
        """Return what to tell an arrival whose process stayed unknown."""
        try:
            pid = pid_of(stream)
        except OSError:
            pid = 0
        return lambda _peer: f"process {pid} is no worker of this app"

    def _as_worker(self, pid: int, peer: Identity) -> str:
        if self._directory.lives.get((peer.name, peer.generation)) == pid:
            return ""
        return f"process {pid} is not generation {peer.generation} of {peer.name!r}"

    def _as_stranger(self, peer: Identity) -> str:
        worker = peer.name.partition(":")[0]
        if worker.startswith("$") or worker in self._directory.state.by_worker:
            return f"{peer.name!r} is a name of this app's own"
        return ""


def pid_of(stream: Stream) -> int:
    """Return the process at the other end of a Unix socket, 0 if the platform does not tell.

    Raises:
        OSError: the socket has ended.
    """
    assert isinstance(stream, socket.socket)
    return peer_credentials(stream).pid


def dial_life(entry: Entry) -> socket.socket:
    """Return a connection to where an entry listens, if it is its own process that listens there.

    Raises:
        ConnectFailed: nobody listens there (any more), or another process.
        BlockingIOError: its queue of connections is full; try again soon.
    """
    sock = UnixSocketTransport(entry.address.removeprefix("unix://")).dial()
    pid = pid_of(sock)
    if 0 not in (pid, entry.pid) and pid != entry.pid:
        sock.close()
        raise ConnectFailed(entry.address, f"process {pid} listens there in place of {entry.instance}")
    return sock


def is_life(entry: Entry) -> Admit:
    """Return what to ask the answering side of a link to an entry for: to be the instance that was dialled."""
    return lambda peer: (
        ""
        if (peer.name, peer.generation) == (entry.instance, entry.generation)
        else f"{peer.name!r} answered in place of {entry.instance}"
    )
