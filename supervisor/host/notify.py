"""systemd's readiness protocol (sd_notify), in both directions: children tell us, we tell systemd.

Downward there is one datagram socket in the abstract namespace, which a child reaches whatever user it runs as; who
sent a message is the kernel's word (SCM_CREDENTIALS), never the sender's. What a message means is decided by the
runner. Linux only.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections.abc import Callable, Mapping

log = logging.getLogger("smartipc.supervisor")
MESSAGE = 16 * 1024
"""Longest message that is read; a longer one is ignored."""
_BATCH = 100
"""Messages read in one turn of the loop: a flood does not stop the supervisor."""
_UCRED = struct.Struct("3i")
_FDS = 253
"""Most descriptors in one message (SCM_MAX_FD)."""


def parse(data: bytes) -> dict[str, str]:
    """Return the assignments of a message; lines that are none, and bytes that are no UTF-8, are left out."""
    found = {}
    for line in data.split(b"\n"):
        name, equals, value = line.partition(b"=")
        if equals and name:
            with contextlib.suppress(UnicodeDecodeError):
                found[name.decode()] = value.decode()
    return found


class NotifySocket:
    """Listen to children.

    Args:
        name: of the socket, unique on this host.
        heard: called with (pid, assignments) of each message.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, name: str, heard: Callable[[int, dict[str, str]], None]) -> None:
        self.address = f"@{name}"
        self._heard = heard
        self._loop = asyncio.get_running_loop()
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._sock.bind(f"\0{name}")
        self._loop.add_reader(self._sock.fileno(), self.read)

    def __repr__(self) -> str:
        return f"<NotifySocket {self.address}>"

    def read(self) -> None:
        """Take what has arrived. Also called before a death is judged: a last word may lie here."""
        for _ in range(_BATCH):
            try:
                data, ancillary, flags, _ = self._sock.recvmsg(
                    MESSAGE, socket.CMSG_SPACE(_UCRED.size) + socket.CMSG_SPACE(4 * _FDS), socket.MSG_CMSG_CLOEXEC
                )
            except (BlockingIOError, InterruptedError):
                return
            pid = 0
            passed: list[int] = []
            for level, kind, body in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                    pid = _UCRED.unpack(body[: _UCRED.size])[0]
                elif level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    passed += array.array("i", body[: len(body) - len(body) % 4])
            try:
                if not flags & socket.MSG_TRUNC and pid:
                    self._heard(pid, parse(data))
            finally:
                for descriptor in passed:  # BARRIER=1: closing is the answer; FDSTORE is not offered
                    os.close(descriptor)

    def close(self) -> None:
        """Stop listening."""
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()


class Upward:
    """Tell systemd, if it started us with `Type=notify`; otherwise every call does nothing.

    Args:
        environ: has NOTIFY_SOCKET, and WATCHDOG_USEC if systemd wants signs of life.
        pid: our own.
    """

    def __init__(self, environ: Mapping[str, str], pid: int) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self.watchdog: float | None = None
        """Seconds between two signs of life: half of what systemd tolerates."""
        usec = environ.get("WATCHDOG_USEC", "")
        if self._address and usec.isdigit() and environ.get("WATCHDOG_PID", str(pid)) == str(pid):
            self.watchdog = int(usec) / 2e6

    def __repr__(self) -> str:
        return f"<Upward to {self._address!r}>"

    def __bool__(self) -> bool:
        return bool(self._address)

    def tell(self, **assignments: str | int) -> None:
        """Send assignments such as READY=1; a manager that is gone or busy is no reason to stop."""
        if not self._address:
            return
        text = "\n".join(f"{name}={value}" for name, value in assignments.items())
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.sendto(text.encode(), self._address)
