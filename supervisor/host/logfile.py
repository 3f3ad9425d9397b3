"""Log files of workers: appended to, rotated by size, one object per path however many lives write to it.

A full disk loses lines, says so once per episode, and stops nobody.
"""

from __future__ import annotations

import contextlib
import logging
import os

log = logging.getLogger("smartipc.supervisor")


class LogFile:
    """One file with its backups `path.1` (newest) to `path.N`.

    Args:
        path: absolute path; its directory must exist.
        max_bytes: size at which it is rotated; 0 for never.
        backups: old files kept; 0 empties the file instead.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: str, max_bytes: int, backups: int) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._backups = backups
        self._failing = False
        self._descriptor = self._open()
        self._size = os.fstat(self._descriptor).st_size

    def __repr__(self) -> str:
        return f"<LogFile {self.path}, {self._size} bytes>"

    def write(self, data: bytes) -> None:
        """Append whole lines; never splits them over two files."""
        if self._max_bytes and self._size and self._size + len(data) > self._max_bytes:
            self._rotate()
        try:
            written = os.write(self._descriptor, data)
        except OSError as error:
            if not self._failing:
                log.warning("log file %s: %s; lines are lost until it can be written again", self.path, error.strerror)
            self._failing = True
            return
        self._failing = False
        self._size += written

    def _rotate(self) -> None:
        try:
            if self._backups:
                for number in range(self._backups - 1, 0, -1):
                    with contextlib.suppress(FileNotFoundError):
                        os.replace(f"{self.path}.{number}", f"{self.path}.{number + 1}")
                os.replace(self.path, f"{self.path}.1")
                fresh = self._open()
                os.close(self._descriptor)
                self._descriptor = fresh
            else:
                os.ftruncate(self._descriptor, 0)
        except OSError as error:
            log.warning("log file %s cannot be rotated: %s", self.path, error.strerror)
        self._size = os.fstat(self._descriptor).st_size

    def _open(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def close(self) -> None:
        """Let go of it."""
        os.close(self._descriptor)


class LogFiles:
    """All open log files of an app, shared by path and counted."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[LogFile, int]] = {}

    def __repr__(self) -> str:
        return f"<LogFiles {', '.join(self._open)}>"

    def open(self, path: str, max_bytes: int, backups: int) -> LogFile:
        """Return the file of that path, opening it for the first who asks.

        Raises:
            OSError: it cannot be opened.
        """
        file, users = self._open.get(path) or (LogFile(path, max_bytes, backups), 0)
        self._open[path] = file, users + 1
        return file

    def release(self, file: LogFile) -> None:
        """Close it when nobody uses it any more."""
        _, users = self._open[file.path]
        if users > 1:
            self._open[file.path] = file, users - 1
        else:
            del self._open[file.path]
            file.close()
