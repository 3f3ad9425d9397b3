"""Probers: for each life with a probe a task that asks, again and again, and turns the answers into facts.

What an answer means is the core's business (health.py); how a port or a page is asked, host/checks.py's.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

from smartipc.ipc import control
from smartipc.ipc.drivers.aio import Link
from smartipc.ipc.drivers.base import QuietHost, RemoteFault
from smartipc.ipc.errors import SmartIpcError
from smartipc.ipc.protocol.connection import Connection
from smartipc.ipc.protocol.handshake import Identity
from smartipc.ipc.transports.unix import UnixSocketTransport
from smartipc.ipc.wire import codec
from smartipc.supervisor.core.exits import describe
from smartipc.supervisor.core.facts import BecameReady, Probed
from smartipc.supervisor.core.health import Health
from smartipc.supervisor.core.orders import Announce
from smartipc.supervisor.core.process_spec import ProbeSpec
from smartipc.supervisor.host import checks
from smartipc.supervisor.host.launch import LaunchError
from smartipc.supervisor.host.runs import Runs
from smartipc.supervisor.operator import GENERATION

if TYPE_CHECKING:
    from smartipc.supervisor.runner import App

_FIRST = 0.05
"""Seconds to the second check of a start; doubled up to the interval, so that readiness is noticed soon."""


class Probing:
    """All probers of an app.

    Args:
        app: the running app.
        runs: runs the programs of exec probes.
    """

    def __init__(self, app: App, runs: Runs) -> None:
        self._app = app
        self._runs = runs
        self._tasks: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._links: dict[tuple[str, int], Link] = {}
        self.last: dict[str, str] = {}
        """For each instance with a failing probe: what was wrong at the last check."""

    def __repr__(self) -> str:
        return f"<Probing of {len(self._tasks)} lives>"

    def follow(self, order: Announce) -> None:
        """Begin and end probers with the states of their instances."""
        key = order.instance, order.generation
        worker = self._app.worker_of(order.instance)
        match order.to_state:
            case "running" if worker.ready_probe is not None:
                self._begin(key, self._until_ready(key, worker.ready_probe))
            case "ready" if order.from_state != "degraded":
                self._end(key)
                if worker.liveness is not None:
                    self._begin(key, self._watch(key, worker.liveness))
            case "running" | "ready" | "degraded":
                return
            case _:
                self._end(key)
                self.last.pop(order.instance, None)

    def _begin(self, key: tuple[str, int], work: object) -> None:
        self._tasks[key] = asyncio.get_running_loop().create_task(work)  # type: ignore[arg-type]

    def _end(self, key: tuple[str, int]) -> None:
        task = self._tasks.pop(key, None)
        if task is not None and task is not asyncio.current_task():
            task.cancel()
        link = self._links.pop(key, None)
        if link is not None:
            link.close("no longer probed")

    def close(self) -> None:
        """End all."""
        for key in list(self._tasks):
            self._end(key)

    async def _until_ready(self, key: tuple[str, int], probe: ProbeSpec) -> None:
        health = Health(successes=probe.successes, sick=True)
        pause = _FIRST
        while health.take(ok=not await self._check(key, probe)) != "recover":
            await asyncio.sleep(pause)
            pause = min(2 * pause, probe.interval)
        self._app.feed(BecameReady(*key))

    async def _watch(self, key: tuple[str, int], probe: ProbeSpec) -> None:
        # Spread over the first interval, so that a pool is not asked in one instant; never sooner than half of it.
        await asyncio.sleep(probe.interval * random.uniform(0.5, 1.0))  # noqa: S311 - only spreads load
        while True:
            failure = await self._check(key, probe)
            self._app.feed(Probed(*key, failure))
            await asyncio.sleep(probe.interval)

    async def _check(self, key: tuple[str, int], probe: ProbeSpec) -> str:
        """Ask once; return "" or what was wrong."""
        try:
            async with asyncio.timeout(probe.timeout):
                failure = await self._ask(key, probe)
        except TimeoutError:
            failure = f"{probe.words}: no answer within {probe.timeout:g} s"
        if failure:
            self.last[key[0]] = failure
        else:
            self.last.pop(key[0], None)
        return failure

    async def _ask(self, key: tuple[str, int], probe: ProbeSpec) -> str:
        if probe.http is not None:
            return await checks.http(probe.http)
        if probe.tcp is not None:
            return await checks.tcp(*probe.tcp)
        if probe.exec is not None:
            return await self._exec(key, probe.exec, probe)
        assert probe.request is not None
        return await self._request(key, probe.request, probe.timeout)

    async def _exec(self, key: tuple[str, int], argv: tuple[str, ...], probe: ProbeSpec) -> str:
        worker = self._app.worker_of(key[0])
        env = self._app.spawning.environment(worker, *key)
        said: list[bytes] = []
        try:
            facts = await self._runs.run(
                argv, env, worker.cwd, lambda lines: said.extend(lines[-1:]), timeout=probe.timeout
            )
        except LaunchError as error:
            return f"{probe.words}: {error}"
        last = f": {said[-1].decode('utf-8', 'backslashreplace')}" if said else ""
        return "" if facts.code == 0 else f"{probe.words}: {describe(facts)}{last}"

    async def _request(self, key: tuple[str, int], method: str, timeout: float) -> str:
        """Ask that very instance over a link of our own: it may be out of routing."""
        try:
            link = self._links.get(key)
            if link is None or link.closed:
                path = self._app.address(*key).removeprefix("unix://")
                identity = Identity(control.SUPERVISOR, self._app.pid, generation=GENERATION, app=self._app.spec.app)
                link = Link(UnixSocketTransport(path).dial(), Connection("client", identity), QuietHost())
                self._links[key] = link
            await link.opened()
            await link.call(method, codec.encode(None), timeout=timeout)
        except RemoteFault as fault:
            return f"request {method}: {fault.error(method=method, instance=key[0])}"
        except (SmartIpcError, OSError) as error:  # nobody listens, its queue is full, or we lack a descriptor
            return f"request {method}: {error}"
        return ""
