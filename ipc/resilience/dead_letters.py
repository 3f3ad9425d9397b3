"""One-way messages that nobody could handle, kept in SQLite until a person looks: who, what, why, how often tried.

Workers write, the supervisor reads; each opens the file for itself, and SQLite lets them take turns. Writing is for
failures only and never raises: a full disk must not make a failed message a failed worker. Nothing is sent from here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
import time
from pathlib import Path
from typing import Literal

import msgspec

log = logging.getLogger("smartipc.dead_letters")

Kind = Literal["notify", "message"]
KEPT = 10_000
"""Letters that are kept; the oldest make room."""
NAME = "dead-letters.sqlite"
"""File name in the state directory."""
_BUSY = 2.0
"""Seconds to wait for another process's turn."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS letters (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at REAL NOT NULL,
    address TEXT NOT NULL,
    kind TEXT NOT NULL,
    sender TEXT NOT NULL,
    worker TEXT NOT NULL,
    pattern TEXT NOT NULL,
    reason TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    payload BLOB NOT NULL
)
"""
_COLUMNS = "id, at, address, kind, sender, worker, pattern, reason, attempts, payload"


class DeadLetter(msgspec.Struct, frozen=True):
    """One message. `at` is epoch seconds, `payload` as it was encoded.

    `address` is "worker.method" for a "notify" and the topic for a "message"; `worker` and `pattern` say which
    subscription of which worker a message was for.
    """

    id: int
    at: float
    address: str
    kind: Kind
    sender: str
    worker: str
    pattern: str
    reason: str
    attempts: int
    payload: bytes


class DeadLetters:
    """The letters of an app.

    Args:
        path: the file; made with its folder when the first letter is written.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._database: sqlite3.Connection | None = None
        self._pid = 0

    def __repr__(self) -> str:
        return f"<DeadLetters in {self._path}>"

    def add(
        self,
        kind: Kind,
        address: str,
        payload: bytes,
        *,
        sender: str,
        reason: str,
        attempts: int,
        worker: str = "",
        pattern: str = "",
    ) -> None:
        """Keep a message; a failure to do so is logged."""
        row = (time.time(), address, kind, sender, worker, pattern, reason[:2000], attempts, payload)
        try:
            with self._lock:
                database = self._open()
                cursor = database.execute(
                    "INSERT INTO letters (at, address, kind, sender, worker, pattern, reason, attempts, payload)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    row,
                )
                database.execute("DELETE FROM letters WHERE id <= ?", ((cursor.lastrowid or 0) - KEPT,))
        except (sqlite3.Error, OSError) as error:
            log.warning("dead_letter.lost: %s on %s (%s): %s", kind, address, reason, error)

    def read(self, ids: list[int] | None = None) -> list[DeadLetter]:
        """Return the letters, oldest first; those of `ids`, or all.

        Raises:
            sqlite3.Error: the file cannot be read.
        """
        if not Path(self._path).exists():
            return []
        with self._lock:
            rows = self._open().execute(f"SELECT {_COLUMNS} FROM letters ORDER BY id").fetchall()  # noqa: S608 - constant
        letters = [DeadLetter(*row) for row in rows]
        return letters if ids is None else [one for one in letters if one.id in set(ids)]

    def remove(self, ids: list[int]) -> int:
        """Remove letters and return how many there were.

        Raises:
            sqlite3.Error: the file cannot be written.
        """
        if not Path(self._path).exists():
            return 0
        with self._lock:
            database = self._open()
            return sum(database.execute("DELETE FROM letters WHERE id = ?", (one,)).rowcount for one in ids)

    def close(self) -> None:
        """Close the file, if this process has opened it."""
        with self._lock:
            if self._database is not None and self._pid == os.getpid():
                self._database.close()
            self._database = None

    def _open(self) -> sqlite3.Connection:
        if self._database is not None and self._pid == os.getpid():
            return self._database
        path = Path(self._path)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):  # payloads are nobody else's business
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        database = sqlite3.connect(path, timeout=_BUSY, isolation_level=None, check_same_thread=False)
        try:
            _prepare(database)
        except sqlite3.Error:
            database.close()
            raise
        self._database = database
        self._pid = os.getpid()
        return database


def _prepare(database: sqlite3.Connection) -> None:
    """Choose the journal and make the table; two processes that do so at once are not made to wait by SQLite itself."""
    until = time.monotonic() + _BUSY
    while True:
        try:
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=NORMAL")
            database.execute(_SCHEMA)
        except sqlite3.OperationalError:
            if time.monotonic() > until:
                raise
            time.sleep(0.01)
        else:
            return
