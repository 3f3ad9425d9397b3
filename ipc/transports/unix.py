"""Unix sockets by path or abstract name: mode 0600, kernel credentials, and paths beyond the kernel's 107 bytes."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
import sys
from collections.abc import Iterator

from smartipc.ipc.errors import ConnectFailed
from smartipc.ipc.transports.base import IpcTransport, PeerCredentials, SocketListener, Stream
from smartipc.ipc.transports.files import OwnFile, inode, locked_directory, private_directory

MAX_PATH = 107
"""Bytes of sun_path that Linux accepts, without the final NUL."""
_UCRED = struct.Struct("3i")


class UnixSocketTransport(IpcTransport):
    """Connect or listen at a path, or at "@name" in Linux's abstract namespace.

    Args:
        path: absolute path of the socket, or "@name".
        private: the directory is the user's own for sockets: made when it is missing, refused unless only we can enter.
    """

    def __init__(self, path: str, *, private: bool = False) -> None:
        self.path = path
        self._private = private

    def __repr__(self) -> str:
        return f"UnixSocketTransport({self.path!r})"

    @property
    def _address(self) -> str:
        return f"unix:{self.path}" if self.path.startswith("@") else f"unix://{self.path}"

    def dial(self, timeout: float = 5.0) -> socket.socket:  # noqa: ARG002 - connecting to a Unix socket never waits
        """Connect, and refuse a listener of another user; see IpcTransport.dial.

        Root connects to whom the socket's directory belongs as well.
        """
        self._check_directory(make=False)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            with self._bindable() as path:
                sock.connect(path)
            uid = peer_credentials(sock).uid
        except BlockingIOError:
            sock.close()
            raise
        except OSError as error:
            sock.close()
            raise ConnectFailed(self._address, error.strerror or str(error)) from error
        except ConnectFailed:
            sock.close()
            raise
        if uid not in self._trusted():
            sock.close()
            raise ConnectFailed(self._address, f"user {uid} listens there, whom we do not trust")
        return sock

    def listen(self, backlog: int = 512) -> SocketListener:
        """Bind with mode 0600 and listen. A socket that nobody listens at any more is replaced.

        Raises:
            ConnectFailed: somebody listens there, or the path cannot be bound.
        """
        self._check_directory(make=True)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            if self.path.startswith("@"):
                with self._bindable() as name:
                    sock.bind(name)
                sock.listen(backlog)
                return SocketListener(sock, self._address)
            with locked_directory(self.path, self._address):
                self._bind(sock)
                sock.listen(backlog)
                return _PathListener(sock, self._address, self.path)
        except OSError as error:
            sock.close()
            raise ConnectFailed(self._address, error.strerror or str(error)) from error
        except ConnectFailed:
            sock.close()
            raise

    def _check_directory(self, *, make: bool) -> None:
        if self._private:
            private_directory(os.path.dirname(self.path), make=make, address=self._address)

    def _bind(self, sock: socket.socket) -> None:
        # The mode of an unbound socket becomes that of the file: there is no moment at which it is open to others.
        with contextlib.suppress(OSError):
            os.fchmod(sock.fileno(), 0o600)
        with self._bindable() as path:
            try:
                sock.bind(path)
            except OSError:
                if not self._stale():
                    raise
                os.unlink(path)
                sock.bind(path)
            os.chmod(path, 0o600)

    def _stale(self) -> bool:
        """Tell whether the path is a socket of ours at which nobody listens; call with the directory locked."""
        before = inode(self.path)
        if before is None or not stat.S_ISSOCK(os.lstat(self.path).st_mode):
            return False
        probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        probe.setblocking(False)
        try:
            with self._bindable() as path:
                probe.connect(path)
        except ConnectionRefusedError:
            return inode(self.path) == before
        except OSError:
            return False
        finally:
            probe.close()
        return False

    def _trusted(self) -> set[int]:
        trusted = {os.geteuid(), 0}
        if os.geteuid() == 0 and not self.path.startswith("@"):
            with contextlib.suppress(OSError):
                trusted.add(os.stat(os.path.dirname(self.path)).st_uid)
        return trusted

    @contextlib.contextmanager
    def _bindable(self) -> Iterator[str]:
        """Give a form of the path that fits sun_path: through a descriptor of its directory if it must."""
        if self.path.startswith("@"):
            if sys.platform != "linux":
                raise ConnectFailed(self._address, "only Linux has abstract sockets; use a path")
            yield "\0" + self.path[1:]
            return
        if len(os.fsencode(self.path)) <= MAX_PATH:
            yield self.path
            return
        folder, name = os.path.split(self.path)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield f"/proc/self/fd/{descriptor}/{name}"
        finally:
            os.close(descriptor)


class _PathListener(SocketListener):
    """A listening socket with a file, which goes with it."""

    def __init__(self, sock: socket.socket, address: str, path: str) -> None:
        super().__init__(sock, address)
        self._file = OwnFile(path)

    def close(self) -> None:
        if self.fileno() >= 0:
            super().close()
            self._file.remove()


def peer_credentials(sock: socket.socket) -> PeerCredentials:
    """Return the kernel's word on the process at the other end of a Unix socket.

    Raises:
        OSError: the platform or the socket has none.
    """
    if hasattr(socket, "SO_PEERCRED"):
        pid, uid, gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        return PeerCredentials(pid, uid, gid)
    # macOS: LOCAL_PEERCRED (level 0, option 1) is a struct xucred: version, uid, ngroups, groups; option 2 is the pid.
    _version, uid, _count, gid = struct.unpack_from("IIhI", sock.getsockopt(0, 1, 76))
    return PeerCredentials(sock.getsockopt(0, 2), uid, gid)


def same_user(stream: Stream) -> bool:
    """Tell whether the process at the other end of a Unix socket runs as our user, or as root."""
    return isinstance(stream, socket.socket) and peer_credentials(stream).uid in (os.geteuid(), 0)
