"""Listening sockets that the supervisor holds and hands to its children, so that restarts lose no connection.

While nobody accepts, connections wait in the kernel's queue. A socket lives as long as the configuration names it;
who gets it is launch.py's and process.py's business.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Iterable

from smartipc.supervisor.core.process_spec import SocketSpec


class Sockets:
    """All of one app, by name."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[SocketSpec, socket.socket]] = {}

    def __repr__(self) -> str:
        return f"<Sockets {', '.join(spec.address for spec, _ in self._open.values())}>"

    def apply(self, specs: Iterable[SocketSpec]) -> None:
        """Have exactly these open: unchanged ones stay as they are, those no longer named are closed.

        Raises:
            OSError: one cannot be opened; nothing has changed, and the text names it.
        """
        wanted = {spec.name: spec for spec in specs}
        kept = {name: entry for name, entry in self._open.items() if wanted.get(name) == entry[0]}
        stay_at = {entry[0].address for entry in kept.values()}
        dropped = {name: entry for name, entry in self._open.items() if name not in kept}
        moved = {entry[0].address: entry[1] for entry in dropped.values()}
        fresh: dict[str, tuple[SocketSpec, socket.socket]] = {}
        with contextlib.ExitStack() as undo:
            for name, spec in wanted.items():
                if name in kept:
                    continue
                if spec.address in moved and spec.address not in stay_at:  # renamed, or another backlog
                    sock = moved[spec.address]
                    sock.listen(spec.backlog)
                else:
                    sock = undo.enter_context(_listen(spec))
                fresh[name] = spec, sock
            undo.pop_all()
        self._open = {**kept, **fresh}
        reused = {id(sock) for _, sock in fresh.values()}
        for spec, sock in dropped.values():
            if id(sock) not in reused:
                _close(spec, sock)

    def descriptors(self, names: Iterable[str]) -> tuple[int, ...]:
        """Return the descriptors of these sockets, in this order; they stay ours."""
        return tuple(self._open[name][1].fileno() for name in names)

    def addresses(self) -> dict[str, str]:
        """Return where each socket really listens, with the port that the kernel chose for port 0."""
        return {name: _bound(spec, sock) for name, (spec, sock) in self._open.items()}

    def close(self) -> None:
        """Close all, and remove their paths."""
        self.apply(())


def environment(names: tuple[str, ...]) -> dict[str, str]:
    """Return what sd_listen_fds reads, less LISTEN_PID, which only the child knows."""
    return {"LISTEN_FDS": str(len(names)), "LISTEN_FDNAMES": ":".join(names)} if names else {}


def _listen(spec: SocketSpec) -> socket.socket:
    try:
        sock = _bind(spec.address)
    except OSError as error:
        raise OSError(error.errno, f"socket {spec.name}: {spec.address}: {error.strerror or error}") from error
    sock.listen(spec.backlog)
    return sock


def _bind(address: str) -> socket.socket:
    if address.startswith("tcp://"):
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        family, kind, proto, _, where = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, proto)
        with contextlib.ExitStack() as undo:
            undo.callback(sock.close)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(where)
            undo.pop_all()
        return sock
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with contextlib.ExitStack() as undo:
        undo.callback(sock.close)
        if address.startswith("unix:@"):
            sock.bind("\0" + address.removeprefix("unix:@"))
        else:
            path = address.removeprefix("unix://")
            _remove_stale(path)
            sock.bind(path)
        undo.pop_all()
    return sock


def _remove_stale(path: str) -> None:
    """Remove the socket of a killed predecessor: one that nobody listens on. A full queue is a listener, too."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except BlockingIOError:
            return


def _bound(spec: SocketSpec, sock: socket.socket) -> str:
    if not spec.address.startswith("tcp://"):
        return spec.address
    host, port = sock.getsockname()[:2]
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def _close(spec: SocketSpec, sock: socket.socket) -> None:
    sock.close()
    if spec.address.startswith("unix:///"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(spec.address.removeprefix("unix://"))
