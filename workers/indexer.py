"""The default app of config/workers.yaml: index a directory tree, each file's SHA-256, into SQLite.

    scanner ──hash_file──> hasher (pool)
       └─────record──────> catalog ──> index.db
    reporter <──progress (topic)── scanner          every worker <──wait_sealed── catalog

It is written to be copied: contracts on top, four worker functions, nothing but the public handle. Any worker may be
killed at any moment: every method is idempotent, the catalog's state is in the database, and each worker finds out by
itself when the run is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import sqlite3
import stat
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from smartipc.ipc.contracts import Method, Topic
from smartipc.ipc.errors import CallError, ConnectionLost, Overloaded, RequestTimeout, WorkerDied
from smartipc.ipc.handle import SmartIpc
from smartipc.ipc.hearing import Messages

# Contracts


class HashFile(msgspec.Struct, frozen=True):
    """A file to hash. `raw` is its real name where that is no valid UTF-8; `path` is then an escaped form of it."""

    path: str
    raw: bytes = b""


class Digest(msgspec.Struct, frozen=True):
    """What a file holds; an empty `sha256` means that it could not be read, and was skipped."""

    path: str
    size: int
    sha256: str


class Begin(msgspec.Struct, frozen=True):
    """A run over `root`; `run` is the same for every life of the workers of one supervisor."""

    run: str
    root: str


class Seal(msgspec.Struct, frozen=True):
    """Every file of the run is recorded; `skipped` entries were not."""

    run: str
    skipped: int


class Summary(msgspec.Struct, frozen=True):
    """What a run has come to."""

    sealed: bool
    files: int = 0
    size: int = 0
    groups: int = 0
    skipped: int = 0
    seconds: float = 0.0


class Progress(msgspec.Struct, frozen=True):
    """How far the scanner is."""

    found: int
    recorded: int
    skipped: int


hash_file = Method("hasher.hash_file", HashFile, Digest, idempotent=True, timeout=3600)
begin = Method("catalog.begin", Begin, Summary, idempotent=True)
record = Method("catalog.record", list[Digest], int, idempotent=True)
seal = Method("catalog.seal", Seal, Summary, idempotent=True, timeout=120)
wait_sealed = Method("catalog.wait_sealed", type(None), Summary, idempotent=True)
finish = Method("catalog.finish", type(None), Summary, idempotent=True)
progress = Topic("index.progress", Progress)

RECORDS = 256
"""Rows per transaction."""
LOOK_AHEAD = 64
"""Files under way to the hashers."""
POLL = 5.0
"""Seconds that one wait_sealed takes at most."""
_CHUNK = 1024 * 1024
_PAUSE = 0.1

Req = TypeVar("Req")
Rep = TypeVar("Rep")


async def surely(ipc: SmartIpc, method: Method[Req, Rep], payload: Req) -> Rep:
    """Ask until there is an answer: a lost or restarting worker is asked again.

    Raises:
        WorkerDied: with processed "no", once that worker will not come back.
    """
    while True:
        try:
            return await ipc.request(method, payload)
        except (WorkerDied, ConnectionLost, RequestTimeout, Overloaded) as error:
            if ipc.stopping or _is_over(error):
                raise
        await asyncio.sleep(_PAUSE)


def _is_over(error: CallError) -> bool:
    return isinstance(error, WorkerDied) and error.processed == "no"


async def until_sealed(ipc: SmartIpc) -> Summary | None:
    """Wait until every file is recorded; None if this worker is told to stop, or the catalog has ended already."""
    while not ipc.stopping:
        waiting = asyncio.ensure_future(surely(ipc, wait_sealed, None))
        stopped = asyncio.ensure_future(ipc.stopped())
        await asyncio.wait({waiting, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not waiting.done():
            waiting.cancel()
            return None
        try:
            summary = waiting.result()
        except (WorkerDied, ConnectionLost, RequestTimeout):
            return None
        if summary.sealed:
            return summary
    return None


# Hashing


def shown(raw: bytes) -> str:
    r"""Return a file name as text; bytes that are no UTF-8 become \xNN."""
    return raw.decode("utf-8", "backslashreplace")


def digest_of(request: HashFile) -> Digest:
    """Hash a regular file; whatever cannot be read, or is no regular file (any more), comes back as skipped."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # never blocks on a FIFO, never follows a link
    try:
        descriptor = os.open(request.raw or request.path, flags)
    except OSError:
        return Digest(request.path, 0, "")
    with open(descriptor, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return Digest(request.path, 0, "")
        sha, size, buffer = hashlib.sha256(), 0, bytearray(_CHUNK)
        view = memoryview(buffer)
        try:
            while count := file.readinto(buffer):
                sha.update(view[:count])
                size += count
        except OSError:
            return Digest(request.path, 0, "")
    return Digest(request.path, size, sha.hexdigest())


async def hasher(ipc: SmartIpc) -> None:
    """Hash files for the scanner; one of a pool."""

    @ipc.handler(hash_file)
    async def _(request: HashFile) -> Digest:
        # In a thread: a huge file must not stop the loop, whose turning is this worker's heartbeat.
        return await asyncio.to_thread(digest_of, request)

    await ipc.ready()
    await until_sealed(ipc)


# Scanning


@dataclass(slots=True)
class Walk:
    """A walk through a tree, directory by directory. Links are never followed, special files never opened."""

    root: bytes
    without: frozenset[bytes] = frozenset()
    found: int = 0
    skipped: int = 0
    waiting: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.waiting.append(self.root)

    def next_directory(self) -> list[HashFile] | None:
        """Return the files of one more directory, or None at the end."""
        if not self.waiting:
            return None
        folder = self.waiting.pop()
        try:
            with os.scandir(folder) as entries:
                files = list(self._sorted_out(entries))
        except OSError:
            self.skipped += 1
            return []
        self.found += len(files)
        return files

    def _sorted_out(self, entries: Iterator[os.DirEntry[bytes]]) -> Iterator[HashFile]:
        for entry in entries:
            if entry.path in self.without:
                continue
            try:
                if entry.is_dir(follow_symlinks=False):
                    self.waiting.append(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    name = shown(entry.path)
                    yield HashFile(name, b"" if name.encode() == entry.path and "\\" not in name else entry.path)
                else:
                    self.skipped += 1
            except OSError:
                self.skipped += 1


class Remaining:
    """The files of a walk that have no digest yet; drawn again after a call was lost for good."""

    def __init__(self, walk: Walk) -> None:
        self._walk = walk
        self._under_way: dict[str, HashFile] = {}

    async def __aiter__(self) -> AsyncIterator[HashFile]:
        for file in tuple(self._under_way.values()):
            yield file
        while (files := await asyncio.to_thread(self._walk.next_directory)) is not None:
            for file in files:
                self._under_way[file.path] = file
            for file in files:
                yield file

    def done(self, path: str) -> bool:
        """Note a digest; return whether it was still wanted."""
        return self._under_way.pop(path, None) is not None


async def scanner(ipc: SmartIpc, root: str, database: str) -> None:
    """Walk the tree, have every file hashed, record the digests."""
    run = os.environ["SMARTIPC_RUN_ID"]
    top = os.path.abspath(root)  # noqa: ASYNC240 - arithmetic on strings, and the working directory
    try:
        summary = await surely(ipc, begin, Begin(run, shown(os.fsencode(top))))
    except WorkerDied as error:
        if _is_over(error):
            return  # this is a second life, and the catalog has ended with the run
        raise
    if summary.sealed:
        return
    walk = Walk(os.fsencode(top), database_files(database))
    remaining = Remaining(walk)
    rows: list[Digest] = []
    recorded = unreadable = 0

    async def keep() -> None:
        nonlocal recorded, rows
        batch, rows = rows, []
        await surely(ipc, record, batch)
        recorded += len(batch)
        ipc.progress(recorded, walk.found if not walk.waiting else None)
        ipc.publish_nowait(progress, Progress(walk.found, recorded, walk.skipped + unreadable))

    while True:
        try:
            async for digest in ipc.map(hash_file, remaining, concurrency=LOOK_AHEAD, ordered=False):
                if not remaining.done(digest.path):
                    continue
                if digest.sha256:
                    rows.append(digest)
                else:
                    unreadable += 1
                if len(rows) >= RECORDS:
                    await keep()
            break
        except (WorkerDied, ConnectionLost, RequestTimeout) as error:
            if ipc.stopping or _is_over(error):
                raise
            await asyncio.sleep(_PAUSE)
    await keep()
    await surely(ipc, seal, Seal(run, walk.skipped + unreadable))


# The catalog


def database_files(database: str) -> frozenset[bytes]:
    """Return the paths that belong to the database itself."""
    path = os.fsencode(os.path.abspath(database))
    return frozenset(path + suffix for suffix in (b"", b"-wal", b"-shm", b"-journal"))


class Catalog:
    """The database. Every method may be repeated."""

    def __init__(self, database: str) -> None:
        self._db = sqlite3.connect(database, isolation_level=None)
        self._db.execute("PRAGMA busy_timeout = 10000")
        self._db.execute("CREATE TABLE IF NOT EXISTS files(path TEXT PRIMARY KEY, size INTEGER, sha256 TEXT)")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS run(id TEXT PRIMARY KEY, root TEXT, begun REAL, took REAL,"
            " skipped INTEGER, sealed INTEGER, finished INTEGER)"
        )
        self._db.execute("CREATE TABLE IF NOT EXISTS seen(path TEXT PRIMARY KEY)")

    def begin(self, run: str, root: str) -> Summary:
        """Start a run, unless it has begun already; whatever an earlier one left unfinished is forgotten."""
        with closing(self._db.cursor()) as cursor:
            cursor.execute("BEGIN IMMEDIATE")
            if not self.is_of(run):
                cursor.execute("DELETE FROM run")
                cursor.execute("DELETE FROM seen")
                cursor.execute("INSERT INTO run VALUES (?, ?, ?, 0, 0, 0, 0)", (run, root, time.time()))
            cursor.execute("COMMIT")
        return self.summary()

    def record(self, digests: list[Digest]) -> int:
        """Add or update files, in one transaction."""
        self._db.execute("BEGIN IMMEDIATE")
        self._db.executemany(
            "INSERT INTO files VALUES (?, ?, ?) ON CONFLICT(path) DO UPDATE SET size = excluded.size,"
            " sha256 = excluded.sha256",
            [(one.path, one.size, one.sha256) for one in digests],
        )
        self._db.executemany("INSERT OR IGNORE INTO seen VALUES (?)", [(one.path,) for one in digests])
        self._db.execute("COMMIT")
        return len(digests)

    def seal(self, run: str, skipped: int) -> Summary:
        """End the run: remove files of its root that are no longer there."""
        if self.summary().sealed:
            return self.summary()
        self._db.execute("BEGIN IMMEDIATE")
        (root,) = self._db.execute("SELECT root FROM run WHERE id = ?", (run,)).fetchone()
        below = root.rstrip("/") + "/"
        self._db.execute(
            "DELETE FROM files WHERE substr(path, 1, ?) = ? AND path NOT IN (SELECT path FROM seen)",
            (len(below), below),
        )
        self._db.execute(
            "UPDATE run SET sealed = 1, skipped = ?, took = ? - begun WHERE id = ?", (skipped, time.time(), run)
        )
        self._db.execute("COMMIT")
        return self.summary()

    def finish(self) -> None:
        """Note that the result of the run has been shown."""
        self._db.execute("UPDATE run SET finished = 1")

    def finished(self, run: str) -> bool:
        """Tell whether this run's result has been shown."""
        row = self._db.execute("SELECT finished FROM run WHERE id = ?", (run,)).fetchone()
        return row is not None and bool(row[0])

    def is_of(self, run: str) -> bool:
        """Tell whether the database is in this run."""
        return self._db.execute("SELECT 1 FROM run WHERE id = ?", (run,)).fetchone() is not None

    def summary(self) -> Summary:
        """Return the state of the run, its totals once it is sealed."""
        row = self._db.execute("SELECT sealed, skipped, took FROM run").fetchone()
        if row is None or not row[0]:
            return Summary(sealed=False)
        of_run = "FROM files WHERE path IN (SELECT path FROM seen)"
        files, size = self._db.execute(f"SELECT count(*), coalesce(sum(size), 0) {of_run}").fetchone()
        groups = f"SELECT count(*) FROM (SELECT 1 {of_run} GROUP BY sha256 HAVING count(*) > 1)"  # noqa: S608 - no words of others
        return Summary(True, files, size, self._db.execute(groups).fetchone()[0], row[1], row[2])

    def close(self) -> None:
        """Close the database."""
        self._db.close()


async def catalog(ipc: SmartIpc, database: str) -> None:
    """Own the database; ends when the result has been shown."""
    run = os.environ["SMARTIPC_RUN_ID"]
    store = Catalog(database)  # closed with the process: handlers may still answer after this function has returned
    sealed, finished = asyncio.Event(), asyncio.Event()
    if store.finished(run):
        return
    if store.is_of(run):  # an earlier life of this worker may have sealed it already
        _note(store.summary(), sealed)

    @ipc.handler(begin)
    def _begin(request: Begin) -> Summary:
        return _note(store.begin(request.run, request.root), sealed)

    @ipc.handler(record)
    def _record(digests: list[Digest]) -> int:
        return store.record(digests)

    @ipc.handler(seal)
    def _seal(request: Seal) -> Summary:
        return _note(store.seal(request.run, request.skipped), sealed)

    @ipc.handler(wait_sealed)
    async def _wait_sealed(_: None) -> Summary:
        try:
            await asyncio.wait_for(sealed.wait(), POLL)
        except TimeoutError:
            return Summary(sealed=False)
        return store.summary()

    @ipc.handler(finish)
    def _finish(_: None) -> Summary:
        store.finish()
        finished.set()
        return store.summary()

    await ipc.ready()
    stopped = asyncio.ensure_future(ipc.stopped())
    shown_ = asyncio.ensure_future(finished.wait())
    await asyncio.wait({stopped, shown_}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    shown_.cancel()


def _note(summary: Summary, sealed: asyncio.Event) -> Summary:
    if summary.sealed:
        sealed.set()
    return summary


# Showing


def last_line(summary: Summary) -> str:
    """Return the app's last line of output."""
    return (
        f"indexed {summary.files} files, {summary.size} bytes, {summary.groups} duplicate groups, "
        f"{summary.skipped} skipped in {summary.seconds:.2f} s"
    )


async def reporter(ipc: SmartIpc, every: float = 2.0) -> None:
    """Show progress, live on a terminal and as plain lines elsewhere, and the result at the end."""
    async with ipc.subscribe(progress) as messages:
        showing = asyncio.ensure_future(_show_live(messages) if sys.stdout.isatty() else _show_lines(messages, every))
        summary = await until_sealed(ipc)
        showing.cancel()
        await asyncio.gather(showing, return_exceptions=True)
    if summary is None:
        return
    sys.stdout.write(last_line(summary) + "\n")
    sys.stdout.flush()
    with contextlib.suppress(WorkerDied):  # it has ended already: another life of this worker was faster
        await surely(ipc, finish, None)


async def _show_lines(messages: Messages[Progress], every: float) -> None:
    next_at = time.monotonic() + every
    async for message in messages:
        if time.monotonic() >= next_at:
            now = message.payload
            sys.stdout.write(f"{now.recorded} of {now.found} files found so far, {now.skipped} skipped\n")
            next_at = time.monotonic() + every


async def _show_live(messages: Messages[Progress]) -> None:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("indexing"), BarColumn(), MofNCompleteColumn(), TextColumn("files"), TimeElapsedColumn())
    with Bar(*columns, transient=True) as bar:
        task = bar.add_task("index", total=None)
        async for message in messages:
            now = message.payload
            bar.update(task, completed=now.recorded, total=now.found)
