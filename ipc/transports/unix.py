"""Unix sockets by path: mode 0600, peers by kernel credentials, paths longer than the kernel's 107 bytes too."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator

from smartipc.ipc.errors import ConnectFailed
from smartipc.ipc.transports.base import IpcTransport, PeerCredentials

MAX_PATH = 107
"""Bytes of sun_path that Linux accepts, without the final NUL."""
_UCRED = struct.Struct("3i")


class UnixSocketTransport(IpcTransport):
    """Connect or listen at a path.

    Args:
        path: absolute path of the socket.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def __repr__(self) -> str:
        return f"UnixSocketTransport({self.path!r})"

    def dial(self) -> socket.socket:
        """Connect; see IpcTransport.dial."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            with _short(self.path) as path:
                sock.connect(path)
        except BlockingIOError:
            sock.close()
            raise
        except OSError as error:
            sock.close()
            raise ConnectFailed(f"unix://{self.path}", error.strerror or str(error)) from error
        return sock

    def listen(self, backlog: int = 512) -> socket.socket:
        """Bind with mode 0600 and listen. The directory must be private: between bind and chmod it is what protects."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            with _short(self.path) as path:
                sock.bind(path)
                os.chmod(path, 0o600)
            sock.listen(backlog)
        except OSError as error:
            sock.close()
            raise ConnectFailed(f"unix://{self.path}", error.strerror or str(error)) from error
        return sock


def peer_credentials(sock: socket.socket) -> PeerCredentials:
    """Return the kernel's word on the process at the other end of a Unix socket.

    Raises:
        OSError: the platform or the socket has none.
    """
    if hasattr(socket, "SO_PEERCRED"):
        pid, uid, gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        return PeerCredentials(pid, uid, gid)
    # macOS: LOCAL_PEERCRED (level 0, option 1) gives a struct xucred: version, uid, ngroups, groups.
    _version, uid, _count, gid = struct.unpack_from("IIhI", sock.getsockopt(0, 1, 76))
    return PeerCredentials(0, uid, gid)


def same_user(sock: socket.socket) -> bool:
    """Tell whether the process at the other end runs as our user, or as root."""
    return peer_credentials(sock).uid in (os.geteuid(), 0)


@contextlib.contextmanager
def _short(path: str) -> Iterator[str]:
    """Give a form of `path` that fits sun_path: through a descriptor of its directory if it must."""
    if len(os.fsencode(path)) <= MAX_PATH:
        yield path
        return
    folder, name = os.path.split(path)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{name}"
    finally:
        os.close(descriptor)
