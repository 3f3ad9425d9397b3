"""Facts about the connections of a handle, shared by both flavours: limits, identity, who may come in.

No sockets are kept here; each handle owns its links.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

from smartipc.ipc.control import Entry, Launch, Traffic
from smartipc.ipc.errors import LocalProtocolError
from smartipc.ipc.message import Peer
from smartipc.ipc.protocol.handshake import Identity
from smartipc.ipc.routing.directory import DirectoryState
from smartipc.ipc.wire.limits import Limits

LIMITS = Limits(handshake_timeout=24 * 3600.0)
"""Between workers of one app. A blocking worker may compute for hours before it looks at its socket: that is no
reason to give its connection up, each call has its own deadline."""


@dataclass(frozen=True, slots=True)
class HandleSnapshot:
    """Facts about a handle at one moment, for status, metrics and tests."""

    instance: str
    links: int
    """Connections to and from other processes."""
    calls: int
    """Our requests without an answer."""
    late_replies: int
    """Answers that came after their request had been given up, since the handle was opened; they are dropped."""
    handling: int
    """Handlers that run."""
    waiting: int
    """Requests that wait for a handler's turn."""
    subscriptions: int
    dropped: int
    """Messages that open subscriptions have lost."""
    traffic: Traffic
    """What the connections of this process have carried."""


@dataclass(frozen=True, slots=True)
class EndSnapshot:
    """Facts about a client or a server at one moment."""

    name: str
    address: str
    state: str
    peers: tuple[str, ...]
    """Names of those that are connected."""
    traffic: Traffic
    """What the connections of this process have carried, those of others than this one too."""


def check_options(*, name: object, limits: object, timeout: object = 1.0) -> None:
    """Look at what `serve` or `connect` was given besides the address.

    Raises:
        LocalProtocolError: one of them is of another kind.
    """
    if not isinstance(name, (str, type(None))):
        raise LocalProtocolError(f"name must be a text, got {name!r}")
    if not isinstance(limits, (Limits, type(None))):
        raise LocalProtocolError(f"limits must be a smartipc.Limits, got {limits!r}")
    if not isinstance(timeout, (int, float)) or not timeout >= 0:
        raise LocalProtocolError(f"timeout must be a number of seconds, got {timeout!r}")


def identity(launch: Launch) -> Identity:
    """Return what this instance says of itself when it connects."""
    return Identity(instance_name(launch), os.getpid(), launch.generation, launch.app)


def instance_name(launch: Launch) -> str:
    """Return "worker:slot", or the bare name of what is no worker, such as the supervisor."""
    return launch.worker if launch.worker.startswith("$") else f"{launch.worker}:{launch.slot}"


def logger(launch: Launch) -> logging.LoggerAdapter[logging.Logger]:
    """Return a logger whose records carry app, instance and generation."""
    facts = {"app": launch.app, "instance": instance_name(launch), "generation": launch.generation}
    return logging.LoggerAdapter(logging.getLogger(f"smartipc.{launch.worker}"), facts)


def peers(state: DirectoryState) -> dict[str, tuple[Peer, ...]]:
    """Return the live directory as `ipc.peers` shows it: processes that exist, ready or not."""
    return {
        worker: tuple(
            Peer(entry.instance, entry.slot, entry.generation, entry.pid, entry.ready)
            for entry in state.by_worker[worker]
            if state.lives(entry.instance, entry.generation)
        )
        for worker in state.workers()
    }


def life(entry: Entry) -> tuple[str, int]:
    """Return the identity of an entry's current life."""
    return entry.instance, entry.generation


def path_of(address: str) -> str:
    """Return the path of a unix:// address."""
    return address.removeprefix("unix://")


def alone(name: str) -> Launch:
    """Return the facts of a process that nobody launched: it listens nowhere by itself and belongs to no app."""
    return Launch(app="", worker=name, slot=0, generation=0, target="", run_id="")


def only_one(to: Peer | None, slot: int | None) -> None:
    """Refuse what chooses among servers: a client has one.

    Raises:
        LocalProtocolError: something is chosen.
    """
    if to is not None or slot is not None:
        raise LocalProtocolError("a client has one server: to= and slot= are for workers and servers")
