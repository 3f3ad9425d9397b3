"""From an address to its transport. The one place that knows all of them."""

from __future__ import annotations

import os
import ssl
import sys

from smartipc.ipc.address import Address, parse
from smartipc.ipc.errors import ConnectFailed
from smartipc.ipc.transports.base import IpcTransport
from smartipc.ipc.transports.child import ChildProcessTransport
from smartipc.ipc.transports.files import user_directory
from smartipc.ipc.transports.pipe import NamedPipeTransport
from smartipc.ipc.transports.tcp import TcpTransport
from smartipc.ipc.transports.unix import UnixSocketTransport


def transport_for(address: str | Address, *, tls: ssl.SSLContext | None = None) -> IpcTransport:
    """Return the transport of an address.

    Args:
        address: see address.parse.
        tls: for tls:// and tcp://, which it makes a tls://; tls:// without one verifies against the system's
            certificates when it connects, and cannot listen.

    Raises:
        ValueError: the address names nothing.
        ConnectFailed: TLS for what is no TCP.
    """
    where = parse(address) if isinstance(address, str) else address
    if tls is not None and where.scheme not in ("tcp", "tls"):
        raise ConnectFailed(str(where), "TLS is for tcp:// and tls:// only")
    match where.scheme:
        case "ipc":
            if sys.platform == "win32":
                return NamedPipeTransport(_windows_pipe(where.target))
            return UnixSocketTransport(os.path.join(user_directory(), f"{where.target}.sock"), private=True)
        case "unix":
            return UnixSocketTransport(where.target)
        case "pipe":
            if sys.platform == "win32":
                return NamedPipeTransport(_windows_pipe(where.target))
            if where.target.startswith("/"):
                return NamedPipeTransport(where.target)
            return NamedPipeTransport(os.path.join(user_directory(), f"{where.target}.pipe"), private=True)
        case "tcp":
            return TcpTransport(where.host, where.port, tls=tls)
        case "tls":
            return TcpTransport(where.host, where.port, tls=tls if tls is not None else ssl.create_default_context())
        case "fd":
            return ChildProcessTransport(int(where.target))


def _windows_pipe(name: str) -> str:
    """Return where a name lives among the named pipes of Windows."""
    return "\\\\.\\pipe\\smartipc-" + name.strip("/").replace("/", "-")
