"""Looking closer and disturbing on purpose: what `smartipc why` tells and `smartipc chaos` does.

Nothing here decides anything: `why` puts together what the core, the probes, the event log and the output know, and
`chaos` does to a process what a bad day would do, so that everything after it is the ordinary course of things.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from smartipc.ipc import control, inspection
from smartipc.ipc.contracts import Method
from smartipc.ipc.control import OrderOutcome
from smartipc.ipc.inspection import Disturbance, Why, WhyReport, WhyRequest
from smartipc.ipc.wire import codec
from smartipc.supervisor.core.ordering import Ordering
from smartipc.supervisor.core.slot import InstanceView
from smartipc.supervisor.core.stacks import dump, essence
from smartipc.supervisor.core.states import LIVING
from smartipc.supervisor.events import iso
from smartipc.supervisor.steering import resolve

if TYPE_CHECKING:
    from smartipc.supervisor.host.life import Life
    from smartipc.supervisor.runner import App

_WELL = ("ready", "exited", "scheduled")
_MOST = 1000
"""Events or lines in one answer."""


class Inspection:
    """Explain and disturb.

    Args:
        app: the running app.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    def __repr__(self) -> str:
        return f"<Inspection of {self._app!r}>"

    def methods(self) -> tuple[tuple[Method[Any, Any], Callable[[Any], Awaitable[Any]]], ...]:
        """Return what the control socket serves."""
        return ((inspection.cli_why, self.why), (inspection.cli_chaos, self.disturb))

    async def why(self, request: WhyRequest) -> WhyReport:
        """Explain instances.

        Raises:
            NoSuchWorker: a name is neither worker, instance, group nor "all".
        """
        app = self._app
        names = resolve(app.core.spec, request.names)
        views = {view.instance: view for view in app.core.snapshot()}
        ordering = Ordering(app.core.spec)
        states = {name: view.state for name, view in views.items()}

        def explain(view: InstanceView, *, whole: bool) -> Why:
            blocking: tuple[str, ...] = ()
            if view.state == "waiting":
                blocking = ordering.blocking(app.core.spec.worker(view.worker), states)
            return self._one(
                view,
                [explain(views[name], whole=False) for name in blocking if name in views],
                events=min(request.events, _MOST) if whole else 1,
                lines=min(request.lines, _MOST) if whole else 0,
            )

        asked = [views[name] for name in names if name in views]
        found = [explain(view, whole=True) for view in asked if not (request.wrong and view.state in _WELL)]
        return WhyReport(app.core.spec.app, app.core.app_state, found, self._holding())

    def _one(self, view: InstanceView, waits_for: list[Why], *, events: int, lines: int) -> Why:
        app, now = self._app, time.monotonic()
        recent = app.events.about(view.instance, max(events, 1))
        turns = [event for event in recent if event["event"] == "instance.state" and event["to"] == view.state]
        said = app.said.get((view.instance, view.generation))
        later = view.next_restart_at
        written = app.stacks.get(view.instance, ())
        return Why(
            instance=view.instance,
            state=view.state,
            seconds=round(max(0.0, now - view.since), 3) if turns else 0.0,
            cause=turns[-1]["cause"] if turns else "",
            generation=view.generation,
            pid=view.pid,
            restarts=view.restarts,
            next_restart_in=max(0.0, round(later - now, 3)) if later is not None else None,
            next_run_in=app.timetable.next_in(view.instance) if view.state != "stopped" else None,
            status=said.status if said is not None else None,
            check=app.probing.last.get(view.instance),
            last_exit=view.last_exit,
            last_exit_at=iso(ended) if (ended := app.exit_times.get(view.instance)) is not None else None,
            waits_for=waits_for,
            events=[_short(event) for event in recent[-events:]] if events else [],
            lines=_without_stacks(app.output.tail(view.instance, lines=_MOST))[-lines:] if lines else [],
            stacks=list(written),
            hung_in=list(essence(written)),
        )

    def _holding(self) -> list[str]:
        """Return who holds the shutdown up, one sentence each."""
        app, now = self._app, time.monotonic()
        if app.core.app_state != "stopping":
            return []
        found = []
        for view in app.core.snapshot():
            if view.state == "stopping":
                grace = app.worker_of(view.instance).stop.timeout  # it may be on its way out of the configuration
                left = max(0.0, grace - (now - view.since))
                found.append(f"{view.instance} was told to stop {now - view.since:.1f} s ago, killed in {left:.1f} s")
            elif view.state in LIVING:
                found.append(f"{view.instance} is {view.state}: what depends on it stops first")
        found += [f"{name}: its after_stop hook runs" for name in app.hooks.cleaning_up]
        return found

    async def disturb(self, request: Disturbance) -> OrderOutcome:
        """Kill, stop or hang the processes of instances, as if by accident.

        Raises:
            NoSuchWorker: as why.
        """
        app = self._app
        results = {}
        for name in resolve(app.core.spec, request.names):
            view = app.core.view(name)
            life = app.host.lives.get((name, view.generation))
            if life is None:
                results[name] = f"it is {view.state}"
                continue
            self._hit(request.kind, life)
            results[name] = ""
        return OrderOutcome(results)

    def _hit(self, kind: str, life: Life) -> None:
        link = self._app.links.get((life.instance, life.generation))
        if kind == "hang" and link is not None and not link.closed:
            link.notify(control.hang.name, codec.encode(None))
            return
        with suppress(ProcessLookupError):
            os.killpg(life.group, signal.SIGKILL if kind == "kill" else signal.SIGSTOP)


def _without_stacks(lines: list[control.LogLine]) -> list[control.LogLine]:
    while True:
        first, end = dump([line.message for line in lines])
        if first == end:
            return lines
        lines = lines[:first] + lines[end:]


def _short(event: dict[str, Any]) -> dict[str, Any]:
    """Return an event without the stacks in it, which are told apart."""
    return {name: value for name, value in event.items() if name != "stacks"}
