"""Named pipes: on POSIX a pair of FIFOs per connection, met at a rendezvous FIFO.

Whoever connects makes two FIFOs beside the rendezvous, `<path>.<pid>.<nonce>.c2s` and `.s2c`, and writes one JOIN
record into the rendezvous; records are smaller than PIPE_BUF, so they never mix. Names are derived from the record,
never taken from it. There are no peer credentials: files of another user or open to others are refused on both sides,
which leaves processes of this user (and root). Both FIFOs are unlinked once both ends have them open.

On Windows the same class stands for a pipe below its own namespace, and says that it is not built.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import select
import stat
import struct
import sys
import time
from collections.abc import Iterable
from itertools import islice
from typing import Any

from smartipc.ipc.errors import ConnectFailed
from smartipc.ipc.transports.base import Conduit, IpcTransport, Listener
from smartipc.ipc.transports.files import OwnFile, inode, locked_directory, private_directory

_JOIN = struct.Struct("<8sQ16s")
_MAGIC = b"SIPCJOIN"
_SIZE = 256 * 1024
"""Bytes that each FIFO holds where the kernel allows it: about a socket's, or small frames would wait behind them."""
_IOV = 512
_LOOK_AGAIN = 1
"""Milliseconds."""
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW if os.name == "posix" else 0
_WRITE = os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW if os.name == "posix" else 0
_NOT_BUILT = "named pipes of Windows are not built yet: use tcp://127.0.0.1:port with a token"


class NamedPipeTransport(IpcTransport):
    r"""Connect or listen at a rendezvous FIFO (POSIX) or at `\\.\pipe\name` (Windows, refused as not built).

    Args:
        path: absolute path of the rendezvous.
        private: as for UnixSocketTransport.
    """

    instant = False

    def __init__(self, path: str, *, private: bool = False) -> None:
        self.path = path
        self._private = private

    def __repr__(self) -> str:
        return f"NamedPipeTransport({self.path!r})"

    @property
    def _address(self) -> str:
        return f"pipe://{self.path}"

    def dial(self, timeout: float = 5.0) -> FifoConduit:
        """Connect; see IpcTransport.dial. Waits until the listener has taken the connection."""
        self._check_platform(make=False)
        nonce = secrets.token_bytes(16)
        to_server, to_client = _names(self.path, os.getpid(), nonce)
        opened: list[int] = []
        try:
            try:
                os.mkfifo(to_client, 0o600)
                os.mkfifo(to_server, 0o600)
                opened.append(_open(to_client, _READ))
                rendezvous = self._join(nonce)
                try:
                    opened.append(self._taken(to_server, rendezvous, time.monotonic() + timeout))
                finally:
                    os.close(rendezvous)
            except OSError as error:
                if isinstance(error, BlockingIOError):
                    raise
                raise ConnectFailed(self._address, error.strerror or str(error)) from error
            finally:
                for name in (to_client, to_server):
                    with contextlib.suppress(OSError):
                        os.unlink(name)
        except BaseException:
            for descriptor in opened:
                os.close(descriptor)
            raise
        return FifoConduit(opened[0], opened[1], self._address)

    def listen(self, backlog: int = 512) -> Listener:  # noqa: ARG002 - a FIFO has room for 2048 records
        """Make the rendezvous FIFO; one that nobody reads any more is replaced. See IpcTransport.listen."""
        self._check_platform(make=True)
        with locked_directory(self.path, self._address):
            try:
                self._remove_stale()
                os.mkfifo(self.path, 0o600)
                return _Rendezvous(self.path, self._address)
            except OSError as error:
                raise ConnectFailed(self._address, error.strerror or str(error)) from error

    def _check_platform(self, *, make: bool) -> None:
        if sys.platform == "win32":
            raise ConnectFailed(self._address, _NOT_BUILT)
        if self._private:
            private_directory(os.path.dirname(self.path), make=make, address=self._address)

    def _join(self, nonce: bytes) -> int:
        """Announce us; return the rendezvous, which tells whether anybody still reads there."""
        try:
            rendezvous = _open(self.path, _WRITE)
        except OSError as error:
            if error.errno in (errno.ENXIO, errno.ENOENT):
                raise ConnectFailed(self._address, "nobody listens there") from error
            raise
        try:
            os.write(rendezvous, _JOIN.pack(_MAGIC, os.getpid(), nonce))
        except BaseException:
            os.close(rendezvous)
            raise
        return rendezvous

    def _taken(self, to_server: str, rendezvous: int, until: float) -> int:
        """Wait until the listener reads from our FIFO: by then it has both open."""
        watched = select.poll()
        watched.register(rendezvous, 0)
        gone = False
        while True:
            try:
                return _open(to_server, _WRITE)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
            if gone:  # it may have taken us before it went, hence one more try
                raise ConnectFailed(self._address, "the listener went away")
            if time.monotonic() > until:
                raise ConnectFailed(self._address, "the listener does not answer")
            gone = bool(watched.poll(_LOOK_AGAIN))

    def _remove_stale(self) -> None:
        """Remove a rendezvous that nobody reads, and what clients that died while connecting have left."""
        if inode(self.path) is not None:
            if not stat.S_ISFIFO(os.lstat(self.path).st_mode):
                raise FileExistsError(errno.EEXIST, "another kind of file is there")
            try:
                os.close(_open(self.path, _WRITE))
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                os.unlink(self.path)
            else:
                raise ConnectFailed(self._address, "somebody listens there already")
        folder, name = os.path.split(self.path)
        for left in os.listdir(folder):
            pid = left.removeprefix(f"{name}.").partition(".")[0]
            if left.startswith(f"{name}.") and left.endswith((".c2s", ".s2c")) and pid.isdecimal() and _gone(int(pid)):
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(folder, left))


class FifoConduit(Conduit):
    """Two FIFOs, one per direction.

    Args:
        reading: descriptor to read from; owned from here on.
        writing: descriptor to write to; owned from here on.
        endpoint: the rendezvous.
    """

    def __init__(self, reading: int, writing: int, endpoint: str) -> None:
        self.endpoint = endpoint
        self._reading = reading
        self._writing = writing
        _widen(writing)

    def __repr__(self) -> str:
        return f"<FifoConduit {'closed' if self._reading < 0 else self.endpoint}>"

    def fileno(self) -> int:
        """Return the descriptor that is read from; see Conduit."""
        return self._reading

    def write_fileno(self) -> int:
        """Return the descriptor that is written to; see Conduit."""
        return self._writing

    def recv(self, size: int, flags: int = 0, /) -> bytes:  # noqa: ARG002 - never blocks anyway
        """Read; see Conduit."""
        return os.read(self._reading, size)

    def send(self, data: bytes | bytearray | memoryview, flags: int = 0, /) -> int:  # noqa: ARG002 - never blocks anyway
        """Write; see Conduit."""
        return os.write(self._writing, data)

    def sendmsg(
        self,
        pieces: Iterable[bytes | bytearray | memoryview],
        ancillary: Iterable[Any] = (),  # noqa: ARG002 - the shape of socket.sendmsg
        flags: int = 0,  # noqa: ARG002
        /,
    ) -> int:
        """Write several pieces; see Conduit."""
        return os.writev(self._writing, list(islice(pieces, _IOV)))

    def shutdown(self, how: int, /) -> None:
        """Do nothing: FIFOs know no such thing, and whoever waits for one looks again within a second."""

    def close(self) -> None:
        """Close both; see Conduit."""
        reading, writing, self._reading, self._writing = self._reading, self._writing, -1, -1
        for descriptor in (reading, writing):
            if descriptor >= 0:
                os.close(descriptor)


class _Rendezvous(Listener):
    """The FIFO at which JOIN records arrive. A write end of our own keeps it from ever ending."""

    def __init__(self, path: str, address: str) -> None:
        self.address = address
        self._path = path
        self._file = OwnFile(path)
        self._reading = _open(path, _READ)
        self._keep = _open(path, _WRITE)

    def __repr__(self) -> str:
        return f"<Rendezvous {self._path}{' closed' if self._reading < 0 else ''}>"

    def fileno(self) -> int:
        return self._reading

    def accept(self) -> FifoConduit:
        record = os.read(self._reading, _JOIN.size)
        if len(record) < _JOIN.size or not record.startswith(_MAGIC):
            with contextlib.suppress(BlockingIOError):
                while os.read(self._reading, 65536):
                    pass
            raise OSError(errno.EPROTO, "what came is no JOIN record")
        _, pid, nonce = _JOIN.unpack(record)
        to_server, to_client = _names(self._path, pid, nonce)
        writing = _open(to_client, _WRITE)
        try:
            return FifoConduit(_open(to_server, _READ), writing, self.address)
        except BaseException:
            os.close(writing)
            raise

    def close(self) -> None:
        if self._reading >= 0:
            os.close(self._reading)
            os.close(self._keep)
            self._reading = -1
            self._file.remove()


def _names(path: str, pid: int, nonce: bytes) -> tuple[str, str]:
    """Return where the client writes and where it reads."""
    return f"{path}.{pid}.{nonce.hex()}.c2s", f"{path}.{pid}.{nonce.hex()}.s2c"


def _open(path: str, flags: int) -> int:
    """Open a FIFO that is our user's and nobody else's.

    Raises:
        OSError: it cannot be opened, or is not such a FIFO.
    """
    descriptor = os.open(path, flags)
    status = os.fstat(descriptor)
    if not stat.S_ISFIFO(status.st_mode) or status.st_uid not in (os.geteuid(), 0) or status.st_mode & 0o077:
        os.close(descriptor)
        raise PermissionError(errno.EPERM, "it is no FIFO of this user alone")
    return descriptor


def _widen(descriptor: int) -> None:
    """Give a FIFO a socket's room where the kernel has the call and the user's pipe budget allows it."""
    import fcntl

    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with contextlib.suppress(OSError):
            fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _SIZE)


def _gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
