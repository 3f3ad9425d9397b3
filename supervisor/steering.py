"""Orders that change what runs: reload, reset, scale, apply, signal; and the graph that they are given by.

Shared by the control socket, SIGHUP and the embedded Supervisor. What an order means is the core's business.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from smartipc.ipc import steering
from smartipc.ipc.contracts import Method
from smartipc.ipc.control import Names, OrderOutcome
from smartipc.ipc.errors import ConfigError, LocalProtocolError, NoSuchWorker
from smartipc.supervisor.configuration import load
from smartipc.supervisor.core import plan
from smartipc.supervisor.core.facts import ApplyOrdered, Fact, ReloadOrdered, ResetOrdered, ScaleOrdered
from smartipc.supervisor.core.ordering import Ordering
from smartipc.supervisor.core.spec import AppSpec
from smartipc.supervisor.core.strategy import Groups

if TYPE_CHECKING:
    from smartipc.supervisor.runner import App

log = logging.getLogger("smartipc.supervisor")
MOST_INSTANCES = 10_000


class Steering:
    """The orders of one app.

    Args:
        app: the running app.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._turn = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<Steering of {self._app!r}>"

    def methods(self) -> tuple[tuple[Method[Any, Any], Callable[[Any], Awaitable[Any]]], ...]:
        """Return what the control socket serves."""
        return (
            (steering.cli_reload, lambda names: self.order(names, ReloadOrdered)),
            (steering.cli_reset, lambda names: self.order(names, ResetOrdered)),
            (steering.cli_scale, lambda request: self.scale(request.counts, wait=request.wait)),
            (steering.cli_apply, self.apply),
            (steering.cli_signal, self.signal),
            (steering.cli_graph, self.graph),
        )

    async def order(self, names: Names, fact: Callable[[tuple[str, ...], int], Fact]) -> OrderOutcome:
        """Give an order for some instances; "" for done, else the reason of the failure. Cancelling it recalls nothing.

        Raises:
            NoSuchWorker: a name is neither worker, instance, group nor "all".
        """
        instances = resolve(self._app.spec, names.names)
        answer = self._app.order(lambda order: fact(instances, order))
        if not names.wait:
            return OrderOutcome(dict.fromkeys(instances, ""))
        return OrderOutcome(dict(await answer))

    async def scale(self, counts: Mapping[str, int], *, wait: bool = True) -> OrderOutcome:
        """Change numbers of instances; the results are of those that came or went.

        Raises:
            NoSuchWorker: there is no worker of that name.
            LocalProtocolError: a number is not within 1 to 10000.
        """
        known = [worker.name for worker in self._app.spec.workers]
        for name, count in counts.items():
            if name not in known:
                raise NoSuchWorker(name, known)
            if not 1 <= count <= MOST_INSTANCES:
                raise LocalProtocolError(f"{name}: the number of instances must be 1 to {MOST_INSTANCES}, got {count}")
        answer = self._app.order(lambda order: ScaleOrdered(tuple(counts.items()), order))
        return OrderOutcome(dict(await answer) if wait else {})

    async def apply(self, request: steering.ApplyRequest) -> steering.ApplyOutcome:
        """Read a file and go over to it, all of it or nothing. Cancelling it recalls nothing."""
        path = request.path or self._app.spec.config_path
        try:
            spec = await asyncio.to_thread(load, path)
        except ConfigError as error:
            return steering.ApplyOutcome([], [str(problem) for problem in error.problems])
        return await self.adopt(spec, dry_run=request.dry_run, wait=request.wait)

    async def adopt(self, spec: AppSpec, *, dry_run: bool = False, wait: bool = True) -> steering.ApplyOutcome:
        """Go over to another spec, all of it or nothing. Cancelling it recalls nothing."""
        core = self._app.core
        changes = plan.diff(core.spec, spec)
        steps = [steering.PlanStep(step.kind, step.name, step.what) for step in changes.steps]
        if changes.refused or dry_run:
            return steering.ApplyOutcome(steps, list(changes.refused), {}, core.config_generation)
        going = asyncio.ensure_future(self._go_over(spec))
        self._app.keep(going)
        if not wait:
            await asyncio.sleep(0)  # it has begun, unless something is to be prepared first
            return steering.ApplyOutcome(steps, [], {}, core.config_generation)
        problems, results = await asyncio.shield(going)
        return steering.ApplyOutcome(steps, problems, results, core.config_generation)

    async def _go_over(self, spec: AppSpec) -> tuple[list[str], dict[str, str]]:
        """Prepare what must be there before the first new process is, then give the order."""
        async with self._turn:  # what is applied last is prepared last
            try:
                await self._app.host.prepare(spec)
            except OSError as error:
                log.error("the configuration cannot be applied: no fork server: %s", error)
                return [f"no fork server can be started: {error}"], {}
            answer = self._app.order(lambda order: ApplyOrdered(spec, order))
        return [], dict(await answer)

    async def signal(self, request: steering.SignalRequest) -> OrderOutcome:
        """Send a signal to the process groups of instances.

        Raises:
            NoSuchWorker: as order.
            LocalProtocolError: there is no such signal.
        """
        name = request.signal.upper()
        name = name if name.startswith("SIG") else f"SIG{name}"
        try:
            number = signal.Signals[name]
        except KeyError:
            raise LocalProtocolError(f"there is no signal {request.signal!r}") from None
        results = {}
        for instance in resolve(self._app.spec, request.names):
            life = self._app.host.lives.get((instance, self._app.core.view(instance).generation))
            if life is not None:
                self._app.host.signal(life, number)
            results[instance] = "" if life is not None else f"it is {self._app.core.view(instance).state}"
        return OrderOutcome(results)

    async def graph(self, _nothing: None = None) -> steering.Graph:
        """Return dependencies and groups."""
        spec = self._app.spec
        groups = Groups(spec)
        states: dict[str, Counter[str]] = {worker.name: Counter() for worker in spec.workers}
        for view in self._app.core.snapshot():
            if view.worker in states:
                states[view.worker][view.state] += 1

        def parent(name: str) -> str | None:
            group = groups.parent(name)
            return group.name if group is not None else None

        workers = [
            steering.GraphWorker(
                name, one.instances, dict(one.depends_on), parent(name), one.significant, dict(states[name])
            )
            for name, one in ((name, spec.worker(name)) for name in Ordering(spec).order)
        ]
        return steering.Graph(
            spec.app,
            workers,
            [steering.GraphGroup(one.name, list(one.members), one.strategy, parent(one.name)) for one in spec.groups],
        )


def resolve(spec: AppSpec, names: Iterable[str]) -> tuple[str, ...]:
    """Turn workers, instances, groups and "all" into instance names.

    Raises:
        NoSuchWorker: a name is none of them.
    """
    groups = Groups(spec)
    members = {group.name: groups.workers(group.name) for group in spec.groups}
    found: dict[str, None] = {}
    for name in names:
        matching = [
            instance
            for worker in spec.workers
            for instance in worker.names
            if name in ("all", worker.name, instance) or worker.name in members.get(name, ())
        ]
        if not matching:
            raise NoSuchWorker(name, [worker.name for worker in spec.workers])
        found.update(dict.fromkeys(matching))
    return tuple(found)
