"""What a life waits for: `before_start`, whose failure is a failed start, and the fork server; and `after_stop`.

A successor is not started before the `after_stop` of its predecessor is over. Hooks run as their worker's user, in its
directory and environment, and write where it writes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from smartipc.ipc.control import ExitFacts
from smartipc.supervisor.core.exits import describe
from smartipc.supervisor.core.facts import Extended
from smartipc.supervisor.core.orders import Spawn
from smartipc.supervisor.core.spec import WorkerSpec
from smartipc.supervisor.host.launch import LaunchError, find_user
from smartipc.supervisor.host.runs import Runs

if TYPE_CHECKING:
    from smartipc.supervisor.runner import App

log = logging.getLogger("smartipc.supervisor")


class HookFailed(Exception):  # noqa: N818 - what happened
    """A hook did not succeed; the text says which and how."""


class Hooks:
    """Run the hooks of all workers.

    Args:
        app: the running app.
        runs: runs the programs.
    """

    def __init__(self, app: App, runs: Runs) -> None:
        self._app = app
        self._runs = runs
        self._before: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._after: dict[tuple[str, int], asyncio.Task[None]] = {}

    def __repr__(self) -> str:
        return f"<Hooks {len(self._before)} before, {len(self._after)} after>"

    def holds(self, worker: WorkerSpec, order: Spawn) -> bool:
        """Tell whether something must come before a life that is to be spawned."""
        ready = self._app.host.ready_for(worker, warm=order.warm)
        return not ready or bool(worker.hooks.before_start) or any(key[0] == order.instance for key in self._after)

    def hold(self, worker: WorkerSpec, order: Spawn, spawn: Callable[[Spawn], None]) -> bool:
        """Spawn later, when what must come first is over; return False if nothing must."""
        if not self.holds(worker, order):
            return False
        earlier = {task for key, task in self._after.items() if key[0] == order.instance}
        key = order.instance, order.generation
        task = asyncio.get_running_loop().create_task(self._prepare(worker, order, earlier, spawn))
        self._before[key] = task
        task.add_done_callback(lambda _done: self._before.pop(key, None))
        return True

    async def _prepare(
        self, worker: WorkerSpec, order: Spawn, earlier: set[asyncio.Task[None]], spawn: Callable[[Spawn], None]
    ) -> None:
        if earlier:
            await asyncio.wait(earlier)
        env = self._app.spawning.environment(worker, order.instance, order.generation)
        try:
            for argv in worker.hooks.before_start:
                await self._run(worker, order.instance, argv, env, worker.start_timeout)
        except HookFailed as error:
            self._app.spawning.failed(order.instance, order.generation, f"before_start: {error}")
            return
        try:
            await self._wait_for_the_fork_server(worker, order)
        except OSError as error:
            self._app.spawning.failed(order.instance, order.generation, f"cannot start: {error}")
            return
        spawn(order)

    async def _wait_for_the_fork_server(self, worker: WorkerSpec, order: Spawn) -> None:
        """Wait until it has imported what is preloaded: once, for all, so it is no part of anybody's start."""
        if self._app.host.ready_for(worker, warm=order.warm):
            return
        prepared = asyncio.ensure_future(self._app.host.prepared())
        try:
            while not prepared.done():
                self._app.feed(Extended(order.instance, order.generation, worker.start_timeout))
                await asyncio.wait({prepared}, timeout=worker.start_timeout / 2)
            await prepared
        finally:
            prepared.cancel()

    def withdraw(self, instance: str, generation: int) -> bool:
        """Give up a life that has not been spawned yet; return whether there was one."""
        task = self._before.pop((instance, generation), None)
        if task is None:
            return False
        task.cancel()
        self._app.spawning.failed(instance, generation, "stopped before it was started")
        return True

    def after(self, worker: WorkerSpec, instance: str, generation: int, facts: ExitFacts) -> None:
        """Begin the `after_stop` hooks of a life that is over."""
        if worker.hooks.after_stop:
            key = instance, generation
            task = self._after[key] = asyncio.get_running_loop().create_task(self._clean_up(worker, *key, facts))
            task.add_done_callback(lambda _done: self._after.pop(key, None))

    async def _clean_up(self, worker: WorkerSpec, instance: str, generation: int, facts: ExitFacts) -> None:
        env = self._app.spawning.environment(worker, instance, generation)
        env["SMARTIPC_EXIT_CODE"] = "" if facts.code is None else str(facts.code)
        env["SMARTIPC_EXIT_SIGNAL"] = facts.signal or ""
        for argv in worker.hooks.after_stop:
            try:
                await self._run(worker, instance, argv, env, worker.stop.timeout)
            except HookFailed as error:
                log.warning("%s: after_stop: %s", instance, error, extra={"instance": instance})

    @property
    def cleaning_up(self) -> list[str]:
        """Instances whose `after_stop` runs."""
        return list(dict.fromkeys(instance for instance, _ in self._after))

    async def finish(self) -> None:
        """Wait for what still runs after the last life; each hook has its own time limit."""
        if self._after:
            await asyncio.wait(self._after.values())

    async def _run(
        self, worker: WorkerSpec, instance: str, argv: tuple[str, ...], env: dict[str, str], timeout: float
    ) -> None:
        said = " ".join(argv)
        try:
            facts = await self._runs.run(
                argv,
                env,
                worker.cwd,
                lambda lines: self._app.output.lines(instance, "stdout", lines),
                timeout=timeout,
                user=find_user(worker.user) if worker.user is not None else None,
            )
        except (LaunchError, LookupError) as error:
            raise HookFailed(str(error)) from error
        except TimeoutError:
            raise HookFailed(f"{said}: not over within {timeout:g} s") from None
        if facts.code != 0:
            raise HookFailed(f"{said}: {describe(facts)}")
