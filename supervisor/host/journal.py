"""The event log's file, `events.jsonl` in the app's state directory: one JSON object a line, one older file beside it.

It is a convenience, not a database: lines are not forced to the disk, a torn last line is ignored, and a directory
that cannot be written costs a warning and nothing else.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from smartipc.supervisor.host.logfile import LogFile

log = logging.getLogger("smartipc.supervisor")
NAME = "events.jsonl"
MAX_BYTES = 16 * 1024 * 1024
_READ = 4 * 1024 * 1024
"""Bytes read of the end of a file: more than ten thousand events."""


def state_directory(app: str, chosen: str | None) -> Path:
    """Return where an app keeps what outlives its supervisor."""
    if chosen is not None:
        return Path(chosen)
    home = os.environ.get("XDG_STATE_HOME")
    base = Path(home) if home and Path(home).is_absolute() else Path.home() / ".local" / "state"
    return base / "smartipc" / app


class Journal:
    """One app's file.

    Raises:
        OSError: it cannot be opened; see `open_journal`.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = directory / NAME
        self._file = LogFile(str(self._path), MAX_BYTES, 1)
        self._end_torn_line()

    def __repr__(self) -> str:
        return f"<Journal {self._path}>"

    def _end_torn_line(self) -> None:
        """Begin on a fresh line, should a predecessor have been killed in the middle of one."""
        with self._path.open("rb") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    self._file.write(b"\n")

    def read(self, most: int) -> list[dict[str, Any]]:
        """Return the newest events, at most so many, oldest first; lines that are none are left out.

        Only the ends of the files are read, so that a long history does not slow a start down.
        """
        found = deque(itertools.chain.from_iterable(map(_events, self._files())), maxlen=most)
        return list(found)

    def _files(self) -> list[Path]:
        return [Path(f"{self._path}.1"), self._path]

    def append(self, event: dict[str, Any]) -> None:
        """Write one event."""
        self._file.write(msgspec.json.encode(event) + b"\n")

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


def open_journal(directory: Path) -> Journal | None:
    """Open it, or warn and go on without."""
    try:
        return Journal(directory)
    except OSError as error:
        log.warning("events are not kept: %s: %s; see supervisor.state_dir", directory, error.strerror)
        return None


def _events(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _READ))
            if size > _READ:
                file.readline()  # the rest of a line
            for line in file:
                try:
                    event = msgspec.json.decode(line)
                except msgspec.DecodeError:
                    continue
                if isinstance(event, dict) and isinstance(event.get("seq"), int):
                    yield event
    except FileNotFoundError:
        return
