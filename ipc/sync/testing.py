"""A stage for handles without a supervisor: a directory that tests and benchmarks change by hand. Public kit.

Workers run in threads or forked children of the program that owns the stage. Nothing here is used in a real app.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec

from smartipc.ipc import control
from smartipc.ipc.contracts import Method
from smartipc.ipc.control import Entry, ExitFacts, Launch, Subscription
from smartipc.ipc.routing.directory import Directory
from smartipc.ipc.sync.handle import SmartIpc

P = TypeVar("P")
R = TypeVar("R")


class Stage:
    """Plays the supervisor for any number of handles in this process.

    Args:
        folder: where the sockets are; keep it short.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.notified: list[tuple[str, str, Any]] = []
        """(instance, method, payload) of everything that handles told, but for beats."""
        self.turns = 0
        self._entries: dict[str, Entry] = {}
        self._subscriptions: dict[tuple[str, int, int], Subscription] = {}
        self._directories: list[Directory] = []
        self._revision = 0
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        return f"<Stage {', '.join(f'{one.instance} {one.state}' for one in self._entries.values())}>"

    def add(
        self, worker: str, slot: int = 0, *, state: control.State = "running", generation: int = 1, **more: Any
    ) -> Launch:
        """List a life of an instance (a new generation replaces the old) and return its launch facts."""
        instance = f"{worker}:{slot}"
        address = f"unix://{self.folder}/{worker}.{slot}.{generation}.sock"
        with self._lock:
            before = self._entries.get(instance)
            entry = Entry(instance, worker, slot, generation, os.getpid(), state, address)
            if before is not None:
                facts = before.last_exit, before.last_exit_generation
                entry = msgspec.structs.replace(entry, last_exit=facts[0], last_exit_generation=facts[1])
            self._entries[instance] = entry
            self.tell()
        return Launch("test", worker, slot, generation, "test:target", "run", address=address, **more)

    def set(
        self, instance: str, state: control.State, last_exit: ExitFacts | None = None, *, pid: int | None = None
    ) -> None:
        """Change the state of an instance; with `last_exit` its current life has ended so, `pid` is where it lives."""
        with self._lock:
            entry = msgspec.structs.replace(self._entries[instance], state=state)
            if pid is not None:
                entry = msgspec.structs.replace(entry, pid=pid)
            if last_exit is not None:
                entry = msgspec.structs.replace(entry, last_exit=last_exit, last_exit_generation=entry.generation)
                self._forget(instance)
            self._entries[instance] = entry
            self.tell()

    def _forget(self, instance: str) -> None:
        for key in [key for key in self._subscriptions if key[0] == instance]:
            del self._subscriptions[key]

    def tell(self) -> None:
        """Send the whole directory to everybody."""
        with self._lock:
            self._revision += 1
            update = control.Directory(
                self._revision, tuple(self._entries.values()), tuple(self._subscriptions.values()), full=True
            )
            for directory in self._directories:
                directory.apply(update)

    def directory(self) -> Directory:
        """Return one more directory that is kept current."""
        with self._lock:
            directory = Directory()
            self._directories.append(directory)
            self.tell()
            return directory

    def handle(self, launch: Launch) -> SmartIpc:
        """Return a handle of the calling thread, opened; end it with `_close(grace)`."""
        ipc = SmartIpc(launch, self.directory(), StagePort(self, launch))
        ipc._open()
        return ipc

    @contextmanager
    def running(self, launch: Launch, target: Callable[[SmartIpc], object]) -> Iterator[SmartIpc]:
        """Run `target(ipc)` in a thread for the duration of the block; it is told to stop at the end.

        Raises:
            BaseException: whatever the target raised.
        """
        opened: Future[SmartIpc] = Future()
        ended: Future[None] = Future()

        def life() -> None:
            try:
                ipc = self.handle(launch)
                opened.set_result(ipc)
                try:
                    target(ipc)
                finally:
                    ipc._close(5.0)
            except BaseException as error:
                (ended if opened.done() else opened).set_exception(error)
            else:
                ended.set_result(None)

        thread = threading.Thread(target=life, name=f"stage-{launch.worker}:{launch.slot}")
        thread.start()
        try:
            ipc = opened.result()
            try:
                yield ipc
            finally:
                ipc._begin_stop("end of the block")
                ended.result(30)
        finally:
            thread.join()

    def told(self, launch: Launch, method: Method[Any, Any], payload: Any) -> None:
        """Take what a handle notifies."""
        instance = f"{launch.worker}:{launch.slot}"
        self.notified.append((instance, method.name, payload))
        if method.name == control.ready.name:
            self.set(instance, "ready")

    def asked(self, launch: Launch, method: Method[Any, Any], payload: Any) -> None:
        """Take what a handle asks."""
        instance = f"{launch.worker}:{launch.slot}"
        key = (instance, launch.generation, payload.number)
        with self._lock:
            if method.name == control.subscribe.name:
                self._subscriptions[key] = payload.subscription(instance, launch.generation)
            else:
                self._subscriptions.pop(key, None)
            self.tell()


class StagePort:
    """A ControlPort that ends at the stage."""

    def __init__(self, stage: Stage, launch: Launch) -> None:
        self._stage = stage
        self._launch = launch

    def notify(self, method: Method[P, Any], payload: P) -> None:
        """Tell the stage."""
        self._stage.told(self._launch, method, payload)

    def call(self, method: Method[P, R], payload: P) -> Future[R]:
        """Ask the stage; it answers at once."""
        future: Future[R] = Future()
        self._stage.asked(self._launch, method, payload)
        future.set_result(None)  # type: ignore[arg-type]
        return future

    def turned(self) -> None:
        """Count."""
        self._stage.turns += 1
