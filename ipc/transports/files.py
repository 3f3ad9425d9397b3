"""The rules for files that sockets and FIFOs live in: private directories, who may replace what. No sockets here."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import time
from collections.abc import Iterator

from smartipc.ipc.errors import ConnectFailed

_LOCK_FOR = 2.0
_LOCK_AGAIN = 0.005


def user_directory() -> str:
    """Return this user's directory for sockets: $XDG_RUNTIME_DIR/smartipc, else <tmp>/smartipc-<uid>. Not made here."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(runtime):
        return os.path.join(runtime, "smartipc")
    return os.path.join(tempfile.gettempdir(), f"smartipc-{os.geteuid()}")


def private_directory(path: str, *, make: bool, address: str) -> str:
    """Return `path` once it is known to be a directory that only we can enter; never change one that is there.

    Args:
        path: of the directory.
        make: whether to make it, mode 0700, if it is missing.
        address: named in errors.

    Raises:
        ConnectFailed: it is missing, a link, another user's, or open to others.
    """
    if make:
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass
        except OSError as error:
            raise ConnectFailed(address, f"directory {path} cannot be made: {error.strerror}") from error
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ConnectFailed(address, "nobody listens there") from None
    except OSError as error:
        is_link = error.errno in (errno.ELOOP, errno.ENOTDIR)
        why = "is no directory, or a link to one" if is_link else f"cannot be opened: {error.strerror}"
        raise ConnectFailed(address, f"directory {path} {why}") from error
    try:
        status = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if status.st_uid != os.geteuid():
        raise ConnectFailed(address, f"directory {path} belongs to user {status.st_uid}")
    if status.st_mode & 0o077:
        raise ConnectFailed(address, f"directory {path} is open to others; run: chmod 700 {path}")
    return path


@contextlib.contextmanager
def locked_directory(path: str, address: str) -> Iterator[None]:
    """Hold the lock of the directory of `path`: whoever looks, removes and binds there does so alone.

    The directory itself is locked, so no file is left behind.

    Raises:
        ConnectFailed: there is no such directory, or its lock was not to be had within two seconds.
    """
    import fcntl  # here, so that a platform without it can import the transports that need none

    folder = os.path.dirname(path)
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ConnectFailed(address, f"directory {folder}: {error.strerror}") from error
    try:
        until = time.monotonic() + _LOCK_FOR
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise ConnectFailed(address, f"somebody holds the lock of directory {folder}") from None
                time.sleep(_LOCK_AGAIN)
        yield
    finally:
        os.close(descriptor)


def inode(path: str) -> tuple[int, int] | None:
    """Return what tells this file from a successor of the same name; None if there is none. Follows no link."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


class OwnFile:
    """A file that this process has just made and will remove.

    Args:
        path: where it is.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._inode = inode(path)
        self._pid = os.getpid()

    def __repr__(self) -> str:
        return f"<OwnFile {self.path}>"

    def remove(self) -> None:
        """Remove it if it is still the one we made: never a successor's, and never in a forked child."""
        if self._pid == os.getpid() and self._inode is not None and inode(self.path) == self._inode:
            with contextlib.suppress(OSError):
                os.unlink(self.path)
