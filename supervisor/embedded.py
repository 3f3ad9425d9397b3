"""A supervisor inside a program or a test: the same app as `smartipc-supervise` runs, in the caller's event loop.

Only the front is here: what the orders mean is the core's business, and the app itself is runner.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from smartipc.ipc.control import AppStatus, Names, State, WorkerStatus
from smartipc.ipc.errors import ConfigError, LocalProtocolError, OrderFailed
from smartipc.ipc.handle import SmartIpc
from smartipc.ipc.steering import ApplyOutcome
from smartipc.supervisor.configuration import load
from smartipc.supervisor.configuration.load import load_mapping
from smartipc.supervisor.core.facts import (
    Fact,
    ReloadOrdered,
    RestartOrdered,
    ShutdownOrdered,
    StartOrdered,
    StopOrdered,
)
from smartipc.supervisor.core.spec import AppSpec
from smartipc.supervisor.host.rundir import RuntimeDirectory
from smartipc.supervisor.runner import App
from smartipc.supervisor.status import app_status
from smartipc.supervisor.steering import resolve
from smartipc.supervisor.web.server import services

_numbers = itertools.count(1)
_POLL = 3600.0


class Supervisor:
    """Run an app within a program: `async with Supervisor("workers.yaml") as supervisor:`.

    Entering starts every worker, in order, and does not wait for them (see `wait`); leaving ends the app in order. No
    signal handlers are installed and the program's logging is left alone: the logger is "smartipc". Lines that the
    workers print go to the program's stdout and stderr.

    Args:
        config: a file, or what it would hold as plain data (paths relative to the working directory), or a spec. Data
            and specs without `supervisor.runtime_dir` get private directories, removed at the end; data without `app`
            get a name of their own.

    Raises:
        ConfigError: every problem of the configuration.
        AlreadyRunning: on entering; an app of this name runs already.
        UnsafeDirectory: on entering; the runtime directory cannot be used.
    """

    def __init__(self, config: str | Path | Mapping[str, Any] | AppSpec) -> None:
        self._spec, self._private = _read(config)
        self._stack = contextlib.AsyncExitStack()
        self._app: App | None = None
        self._running: asyncio.Task[int] | None = None

    def __repr__(self) -> str:
        return (
            f"<Supervisor of {self._spec.app}: {self._app.core.app_state if self._app is not None else 'not entered'}>"
        )

    async def __aenter__(self) -> Self:
        """Start the app; returns when its workers are being started."""
        async with contextlib.AsyncExitStack() as stack:
            spec = self._spec
            if self._private:
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="smartipc-"))
                own = replace(spec.supervisor, runtime_dir=f"{folder}/run", state_dir=f"{folder}/state")
                spec = replace(spec, supervisor=own)
            directory = stack.enter_context(RuntimeDirectory(spec.app, spec.supervisor.runtime_dir))
            self._app = app = App(spec, directory)
            begun = asyncio.get_running_loop().create_future()

            @contextlib.asynccontextmanager
            async def entered(_app: App) -> AsyncIterator[None]:
                begun.set_result(None)
                yield

            running = app.run([*services(spec), entered])
            self._running = asyncio.create_task(running, name=f"smartipc supervisor of {spec.app}")
            await asyncio.wait({begun, self._running}, return_when=asyncio.FIRST_COMPLETED)
            if not begun.done():
                await self._running  # raises why it could not begin
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the app in order; a cancelled exit skips the grace and waits all the same."""
        async with self._stack:
            try:
                await self.shutdown()
            except asyncio.CancelledError:
                self._running_app().feed(ShutdownOrdered("cancelled", fast=True))
                await asyncio.wait({self._task()})
                raise

    # what runs

    @property
    def ipc(self) -> SmartIpc:
        """A handle like that of a worker: request, broadcast, publish, subscribe."""
        return self._running_app().operator.ipc

    def status(self) -> AppStatus:
        """Return what `smartipc status --json` prints."""
        return app_status(self._running_app())

    def instances(self, name: str) -> list[WorkerStatus]:
        """Return the status rows of a worker, an instance, a group or "all".

        Raises:
            NoSuchWorker: it is none of them.
        """
        wanted = set(resolve(self._running_app().spec, [name]))
        return [row for row in self.status().workers if row.instance in wanted]

    async def wait(self, name: str, *states: State) -> list[WorkerStatus]:
        """Wait until every instance that `name` means is in one of `states` (default "ready"), and return their rows.

        Cancelling it, as `asyncio.timeout` does, changes nothing.

        Raises:
            NoSuchWorker: there is none of that name.
            OrderFailed: an instance has failed, or the app has ended, and that was not what was waited for.
        """
        app, wanted = self._running_app(), set(states or ("ready",))
        while True:
            seq = app.events.seq
            views = [app.core.view(instance) for instance in resolve(app.spec, [name])]
            if all(view.state in wanted for view in views):
                return self.instances(name)
            lost = [view for view in views if view.state == "failed" and "failed" not in wanted]
            if lost:
                raise OrderFailed({view.instance: _last_words(self, view.instance) for view in lost})
            if self._task().done():
                raise OrderFailed({view.instance: f"the app has ended, it is {view.state}" for view in views})
            changed = asyncio.ensure_future(app.events.wait(seq, _POLL))
            try:
                await asyncio.wait({changed, self._task()}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                changed.cancel()

    async def events(self, since: int | None = None) -> AsyncIterator[dict[str, Any]]:
        """Yield events as `smartipc events --json` prints them, and then the new ones; ends with the app.

        Leaving or cancelling it changes nothing.

        Args:
            since: only those with seq > `since`; None: those of this app, from its start.
        """
        app, seq = self._running_app(), since
        while True:
            over = self._task().done()
            waiting = asyncio.ensure_future(app.events.wait(seq, 0.0 if over else _POLL))
            try:
                await asyncio.wait({waiting, self._task()}, return_when=asyncio.FIRST_COMPLETED)
                found = waiting.result() if waiting.done() else app.events.since(seq)
            finally:
                waiting.cancel()
            for event in found.events:
                seq = event["seq"]
                yield event
            if over:
                return

    # orders

    async def start(self, *names: str) -> None:
        """Start instances, with what they depend on; returns when they are ready. Names as in `wait`.

        Cancelling it, as any order, only ends the waiting: what was ordered is done.

        Raises:
            NoSuchWorker: there is none of that name.
            OrderFailed: `results` says what went wrong, by instance.
        """
        await self._order(names, StartOrdered)

    async def stop(self, *names: str) -> None:
        """Stop instances and keep them stopped; returns when they are gone. Errors and cancelling as start."""
        await self._order(names, StopOrdered)

    async def restart(self, *names: str) -> None:
        """Give instances a fresh life; returns when they are ready. Errors and cancelling as start."""
        await self._order(names, RestartOrdered)

    async def reload(self, *names: str) -> None:
        """Replace instances one by one, each ready before the old one drains. Errors and cancelling as start."""
        await self._order(names, ReloadOrdered)

    async def scale(self, counts: Mapping[str, int]) -> None:
        """Give workers another number of instances; returns when it is so. Cancelling as start.

        Raises:
            NoSuchWorker: there is no such worker.
            LocalProtocolError: a number is not within 1 to 10000.
            OrderFailed: as start.
        """
        outcome = await self._running_app().steering.scale(counts)
        _check(outcome.results)

    async def apply(self, config: str | Path | Mapping[str, Any] | AppSpec, *, dry_run: bool = False) -> ApplyOutcome:
        """Go over to another configuration of the same app, all of it or nothing; returns the plan when it is done.

        Cancelling as start.

        Raises:
            ConfigError: the configuration is wrong, or something in it cannot change while the app runs.
            OrderFailed: as start.
        """
        app = self._running_app()
        spec, private = _read(config, app=app.spec.app)
        if private:
            ours = app.spec.supervisor
            own = replace(spec.supervisor, runtime_dir=ours.runtime_dir, state_dir=ours.state_dir)
            spec = replace(spec, supervisor=own)
        outcome = await app.steering.adopt(spec, dry_run=dry_run)
        if outcome.problems:
            raise ConfigError(outcome.problems)
        _check(outcome.results)
        return outcome

    async def shutdown(self) -> int:
        """End the app in order and return its exit code; at once if it has ended. Cancelling it recalls nothing."""
        if not self._task().done():
            self._running_app().feed(ShutdownOrdered("the program ends it"))
        return await self.ended()

    async def ended(self) -> int:
        """Wait for the end of the app and return its exit code. Cancelling it changes nothing."""
        return await asyncio.shield(self._task())

    async def _order(self, names: tuple[str, ...], fact: Callable[[tuple[str, ...], int], Fact]) -> None:
        outcome = await self._running_app().steering.order(Names(list(names)), fact)
        _check(outcome.results)

    def _running_app(self) -> App:
        if self._app is None:
            raise LocalProtocolError("the supervisor has not been entered: use `async with`")
        return self._app

    def _task(self) -> asyncio.Task[int]:
        if self._running is None:
            raise LocalProtocolError("the supervisor has not been entered: use `async with`")
        return self._running


def _read(config: str | Path | Mapping[str, Any] | AppSpec, app: str = "") -> tuple[AppSpec, bool]:
    """Return the spec, and whether it wants private directories."""
    if isinstance(config, AppSpec):
        return config, config.supervisor.runtime_dir is None
    if isinstance(config, Mapping):
        name = app or f"embedded-{os.getpid()}-{next(_numbers)}"
        spec = load_mapping({"app": name, **config}, Path.cwd())
        return spec, spec.supervisor.runtime_dir is None
    return load(config), False


def _check(results: Mapping[str, str]) -> None:
    failed = {name: reason for name, reason in results.items() if reason}
    if failed:
        raise OrderFailed(failed)


def _last_words(supervisor: Supervisor, instance: str) -> str:
    last = supervisor.instances(instance)[0].last_exit
    return f"failed: {last.reason}" if last is not None else "failed"
