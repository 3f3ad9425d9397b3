"""The runtime directory: private, verified, one supervisor per app, found again by the commands.

Files in it: `lock` (held by the supervisor, its pid inside), `run.json` (see record.py), `control.sock`, and one socket
per living worker. An app with a directory of its own choice leaves a link in the default base, so that it is found by
name.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import shutil
import stat
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from smartipc.ipc.errors import SmartIpcError
from smartipc.supervisor.host.record import Record, read_record, remove_record, write_record

log = logging.getLogger("smartipc.supervisor")
CONTROL_SOCKET = "control.sock"
RETAINED = "retained"
"""Folder with the last values of retained topics, written by the workers; it ends with the app."""
_LOCK = "lock"
_LOOKS, _LOOK = 5, 0.01
"""How often, and with how many seconds in between, a lock is asked for before it counts as another supervisor's."""


class AlreadyRunning(SmartIpcError):  # noqa: N818 - a state, as FileExists is
    """Another supervisor runs this app; `pid` is its process."""

    def __init__(self, app: str, pid: int) -> None:
        self.app = app
        self.pid = pid

    def __str__(self) -> str:
        return f"app {self.app} is already running, by process {self.pid}"


class UnsafeDirectory(SmartIpcError):  # noqa: N818 - named after what it is about
    """The runtime directory cannot be trusted or made; `reason` says why and what to do."""

    def __init__(self, path: str, reason: str) -> None:
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"runtime directory {self.path}: {self.reason}"


@dataclass(frozen=True, slots=True)
class RunningApp:
    """An app whose supervisor lives."""

    app: str
    directory: str
    pid: int
    config: str
    """The file that it runs from, "" for none."""


class RuntimeDirectory:
    """The directory of one app while its supervisor runs; a context manager that cleans up.

    Args:
        app: name of the app.
        directory: its path, or None for the default place.
    """

    def __init__(self, app: str, directory: str | None) -> None:
        self.app = app
        self._link = base_directory() / app
        self.path = Path(directory) if directory is not None else self._link
        self.earlier: tuple[str, ...] = ()
        """Ids of runs that are over and whose processes nobody has swept yet."""
        self._lock: int | None = None

    def __repr__(self) -> str:
        return f"<RuntimeDirectory {self.path} of {self.app}{' locked' if self._lock is not None else ''}>"

    def __enter__(self) -> Self:
        """Make, verify and lock the directory, and remove what a killed predecessor left.

        Raises:
            AlreadyRunning: another supervisor holds the lock, here or under the same name elsewhere.
            UnsafeDirectory: not ours, not private, or not makeable.
        """
        _make_private(base_directory())
        elsewhere = self.path != self._link
        if elsewhere or self._link.is_symlink():
            other = _running(self._link)
            if other is not None:
                raise AlreadyRunning(self.app, other)
        earlier = read_record(self._link).runs
        if elsewhere:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        elif self._link.is_symlink():
            self._link.unlink()  # of a run that had a directory of its own choice and was killed
        self._lock = _take(self.path, self.app)
        self.earlier = tuple(dict.fromkeys((*read_record(self.path).runs, *earlier)))
        for left in self.path.iterdir():
            if stat.S_ISSOCK(left.lstat().st_mode):
                left.unlink()
        shutil.rmtree(self.path / RETAINED, ignore_errors=True)
        if self.path != self._link:
            _point(self._link, self.path)
        return self

    def intact(self) -> bool:
        """Tell whether the directory is still there, with our lock and the control socket in it."""
        return self._holds() and (self.path / CONTROL_SOCKET).exists()

    def _holds(self) -> bool:
        """Tell whether the file that is there is the one that we have locked."""
        assert self._lock is not None
        try:
            return os.path.samestat(os.fstat(self._lock), os.stat(self.path / _LOCK))
        except OSError:
            return False

    def restore(self) -> None:
        """Make what is missing again, except sockets.

        Raises:
            AlreadyRunning: another supervisor has taken the place meanwhile.
            UnsafeDirectory: not ours, not private, or not makeable.
            OSError: the lock cannot be made.
        """
        _make_private(base_directory())
        if self.path != self._link:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        _make_private(self.path)
        if not self._holds():
            fresh = _take(self.path, self.app)
            assert self._lock is not None
            os.close(self._lock)
            self._lock = fresh
        if self.path != self._link and not self._link.is_symlink():
            _point(self._link, self.path)

    def record(self, run_id: str, config: str) -> None:
        """Write down who we are, for the commands and for a successor; called again when `earlier` has changed."""
        try:
            write_record(self.path, Record(config, (run_id, *self.earlier)))
        except OSError as error:
            log.warning("%s: %s: if we are killed, a successor will not know us", self.path, error.strerror)

    def forget(self, address: str) -> None:
        """Remove the socket of a life that is over, in case it could not do so itself."""
        with contextlib.suppress(OSError):
            if self._holds():
                os.unlink(address.removeprefix("unix://"))

    def __exit__(self, *_: object) -> None:
        """Remove everything this supervisor made, and give the lock up; nothing, if the place is another's by now."""
        if self._holds():
            self._tidy()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _tidy(self) -> None:
        for left in self.path.iterdir():
            if left.name == _LOCK or stat.S_ISSOCK(left.lstat().st_mode):
                left.unlink()
        shutil.rmtree(self.path / RETAINED, ignore_errors=True)
        if self.earlier:
            with contextlib.suppress(OSError):
                write_record(self.path, Record(runs=self.earlier))  # the next run may have the time for them
        else:
            remove_record(self.path)
        if self.path != self._link and self._link.is_symlink():
            self._link.unlink()
        with contextlib.suppress(OSError):
            self.path.rmdir()


def base_directory() -> Path:
    """Return the default place of runtime directories of this user."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and Path(runtime).is_absolute():
        return Path(runtime) / "smartipc"
    return Path(tempfile.gettempdir()) / f"smartipc-{os.geteuid()}"


def running_apps() -> list[RunningApp]:
    """Return this user's apps whose supervisor lives, by name."""
    found = []
    with contextlib.suppress(OSError):
        for entry in sorted(base_directory().iterdir()):
            pid = _running(entry)
            if pid is not None:
                found.append(RunningApp(entry.name, str(entry.resolve()), pid, read_record(entry).config))
    return found


def _make_private(path: Path) -> None:
    """Make a 0700 directory, or verify that one is; never loosen or tighten what we did not make."""
    with contextlib.suppress(FileExistsError):
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            raise
        except OSError as error:
            raise UnsafeDirectory(str(path), f"cannot be made: {error.strerror}") from error
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        is_link = error.errno in (errno.ELOOP, errno.ENOTDIR) and path.is_symlink()
        reason = "is a symbolic link; remove it" if is_link else f"cannot be opened: {error.strerror}"
        raise UnsafeDirectory(str(path), reason) from error
    try:
        status = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if status.st_uid != os.geteuid():
        raise UnsafeDirectory(str(path), f"belongs to user {status.st_uid}; choose another with supervisor.runtime_dir")
    if status.st_mode & 0o077:
        raise UnsafeDirectory(str(path), f"is open to others; run: chmod 700 {path}")


def _take(directory: Path, app: str) -> int:
    """Make the directory, and lock it; return the descriptor that holds the lock."""
    looks = _LOOKS
    while True:
        _make_private(directory)
        try:
            descriptor = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:  # a predecessor that ends has removed the directory since
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), os.stat(directory / _LOCK)):
                break
            os.close(descriptor)  # its file was replaced: this lock would keep nobody out
        except FileNotFoundError:  # likewise, by nothing yet
            os.close(descriptor)
        except BlockingIOError:
            pid = _pid_in(descriptor)
            os.close(descriptor)
            looks -= 1
            if not looks:
                raise AlreadyRunning(app, pid) from None
            time.sleep(_LOOK)  # a command that only looks holds the lock, too, for a moment
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def _running(directory: Path) -> int | None:
    try:
        descriptor = os.open(directory / _LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _pid_in(descriptor)
    finally:
        os.close(descriptor)
    return None


def _pid_in(descriptor: int) -> int:
    text = os.pread(descriptor, 32, 0).strip()
    return int(text) if text.isdigit() else 0


def _point(link: Path, target: Path) -> None:
    """Leave a link to the directory under the app's name, replacing a stale one."""
    with contextlib.suppress(FileNotFoundError):
        if link.is_symlink():
            link.unlink()
        elif link.is_dir():
            shutil.rmtree(link)  # of a run in the default place that was killed
    link.symlink_to(target)
