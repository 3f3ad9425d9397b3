"""`watch`: restart workers when files change, for development.

Files are looked at twice a second rather than waited for: that works on every platform and on shared and mounted
directories, where change notices do not arrive, and needs no library. A scan yields to the loop as it goes.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from smartipc.supervisor.core.facts import RestartOrdered
from smartipc.supervisor.core.spec import WorkerSpec

if TYPE_CHECKING:
    from smartipc.supervisor.runner import App

log = logging.getLogger("smartipc.supervisor")
PERIOD = 0.5
"""Seconds between two looks. A change acts once a look finds nothing new any more."""
MOST = 20_000
"""Files looked at; more is a directory that nobody meant to watch."""
_IGNORED = frozenset({"__pycache__", "node_modules"})
_ENDINGS = (".pyc", ".pyo", ".swp", "~")
_BATCH = 200

Seen = dict[str, tuple[int, int]]
"""For each file its change time in nanoseconds and its size."""


class Watching:
    """Watch for all workers that want it.

    Args:
        app: the running app.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._tasks: dict[str, tuple[tuple[str, ...], asyncio.Task[None]]] = {}

    def __repr__(self) -> str:
        return f"<Watching for {', '.join(self._tasks)}>"

    def apply(self, workers: Iterable[WorkerSpec]) -> None:
        """Watch for exactly these workers."""
        wanted = {worker.name: worker.watch for worker in workers if worker.watch}
        for name in [name for name, (paths, _) in self._tasks.items() if wanted.get(name) != paths]:
            self._tasks.pop(name)[1].cancel()
        for name, paths in wanted.items():
            if name not in self._tasks:
                self._tasks[name] = paths, asyncio.get_running_loop().create_task(self._watch(name, paths))

    def close(self) -> None:
        """Stop watching."""
        self.apply(())

    async def _watch(self, name: str, paths: tuple[str, ...]) -> None:
        seen = await scan(paths)
        if len(seen) >= MOST:
            log.warning("%s: watch: only the first %d files are looked at", name, MOST)
        acted = seen
        while True:
            await asyncio.sleep(PERIOD)
            before, seen = seen, await scan(paths)
            if seen == before and seen != acted:
                self._restart(name, changed(acted, seen))
                acted = seen

    def _restart(self, name: str, what: str) -> None:
        """Restart what runs or tries to; what was stopped is not revived by a file."""
        views = [view for view in self._app.core.snapshot() if view.worker == name]
        names = tuple(view.instance for view in views if view.state not in ("stopped", "scheduled", "stopping"))
        log.info("%s: %s changed, %s", name, what, "restarting" if names else "but it is down")
        if names:
            self._app.feed(RestartOrdered(names))


async def scan(paths: Iterable[str]) -> Seen:
    """Return what is there now, without hidden files, caches and editors' leavings."""
    found: Seen = {}
    for path in _files(paths):
        try:
            status = os.stat(path)
        except OSError:
            continue
        found[path] = status.st_mtime_ns, status.st_size
        if len(found) >= MOST:
            break
        if len(found) % _BATCH == 0:
            await asyncio.sleep(0)
    return found


def _files(paths: Iterable[str]) -> Iterator[str]:
    for top in paths:
        if not os.path.isdir(top):
            yield top
            continue
        for folder, folders, names in os.walk(top):
            folders[:] = sorted(name for name in folders if name not in _IGNORED and not name.startswith("."))
            for name in sorted(names):
                if not name.startswith(".") and not name.endswith(_ENDINGS):
                    yield os.path.join(folder, name)


def changed(before: Seen, after: Seen) -> str:
    """Return what differs, for a person: the first path, and how many more."""
    paths = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return f"{paths[0]}{more}" if paths else "nothing"
