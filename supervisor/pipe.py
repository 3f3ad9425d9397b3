"""The supervisor's end of one child-process pipe: answers `launch`, turns what the worker says into facts."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from smartipc.ipc import control
from smartipc.ipc.control import HeartbeatPlan, Launch
from smartipc.ipc.drivers.aio import Link
from smartipc.ipc.drivers.base import QuietHost
from smartipc.ipc.errors import NoSuchMethod, PermissionDenied, SmartIpcError
from smartipc.ipc.protocol.events import NotifyReceived, RequestReceived
from smartipc.ipc.trust.allow import permits
from smartipc.ipc.wire import codec
from smartipc.ipc.wire.faults import fault_of
from smartipc.supervisor.core.facts import Beat, BecameReady, Measured, Started
from smartipc.supervisor.core.spec import BreakerSpec, WorkerSpec
from smartipc.supervisor.host import limits

if TYPE_CHECKING:
    from smartipc.supervisor.host.life import Life
    from smartipc.supervisor.runner import App

log = logging.getLogger("smartipc.supervisor")


class WorkerPipe(QuietHost):
    """Hear one life.

    Args:
        app: the running app.
        life: whose pipe it is; possession of the other end is its credential.
        worker: its configuration.
    """

    def __init__(self, app: App, life: Life, worker: WorkerSpec) -> None:
        self._app = app
        self._life = life
        self._worker = worker
        self._beat = Beat(life.instance, life.generation)
        self._counts = worker.recycle is not None and worker.recycle.requests is not None

    def __repr__(self) -> str:
        return f"<WorkerPipe of {self._life.instance} generation {self._life.generation}>"

    def on_notify(self, link: Link, event: NotifyReceived) -> None:
        """Turn it into a fact or a note."""
        if event.method == control.beat.name:
            # Straight to the core: two hundred of these a second must cost next to nothing, and never order anything.
            self._app.core.handle(self._beat, time.monotonic())
            if self._counts:
                requests = codec.decode(event.payload, control.Beat, method=event.method).requests
                self._app.feed(Measured(self._life.instance, self._life.generation, requests=requests))
            return
        try:
            self._on_notify(event)
        except SmartIpcError as error:
            log.warning(
                "%s said what cannot be understood: %s",
                self._life.instance,
                error,
                extra={"instance": self._life.instance},
            )

    def _on_notify(self, event: NotifyReceived) -> None:
        app, life = self._app, self._life
        key = (life.instance, life.generation)
        match event.method:
            case control.started.name:
                started = codec.decode(event.payload, control.Started, method=event.method)
                app.feed(Started(*key, watched=started.heartbeat_source != "off"))
            case control.ready.name if self._worker.ready not in ("ipc", "started"):
                return  # a log line, a probe or sd_notify decides
            case control.ready.name:
                app.feed(BecameReady(*key))
            case control.acknowledge.name:
                app.book.acknowledged(key, codec.decode(event.payload, control.Acknowledge).revision)
            case control.status_text.name:
                if key in app.said:
                    app.said[key].status = codec.decode(event.payload, control.StatusText).text
            case control.progress.name:
                if key in app.said:
                    app.said[key].progress = codec.decode(event.payload, control.Progress)
            case control.traffic.name:
                if key in app.said:
                    app.said[key].traffic = codec.decode(event.payload, control.Traffic)
            case control.ending.name:
                life.ending = codec.decode(event.payload, control.Ending, method=event.method)
            case _:
                log.warning("%s: unknown notice %r", life.instance, event.method, extra={"instance": life.instance})

    def on_request(self, link: Link, event: RequestReceived) -> None:
        """Launch, subscribe, unsubscribe."""
        try:
            match event.method:
                case control.launch.name:
                    link.reply(event.id, codec.encode(self._launch()))
                case control.subscribe.name:
                    request = codec.decode(event.payload, control.SubscribeRequest, method=event.method)
                    self._subscribe(link, event.id, request)
                case control.unsubscribe.name:
                    number = codec.decode(event.payload, control.UnsubscribeRequest, method=event.method).number
                    self._app.book.unsubscribe((self._life.instance, self._life.generation, number))
                    self._app.listing.tell_soon()
                    link.reply(event.id, codec.EMPTY)
                case _:
                    link.fail(event.id, fault_of(NoSuchMethod(event.method)))
        except SmartIpcError as error:
            link.fail(event.id, fault_of(error))

    def _subscribe(self, link: Link, ident: int, request: control.SubscribeRequest) -> None:
        life = self._life
        allow = allow_of(self._worker)
        if allow is not None and not permits(allow, "subscribe", request.pattern):
            link.fail(ident, fault_of(PermissionDenied(method=request.pattern, instance=life.instance)))
            return
        self._app.book.subscribe(request.subscription(life.instance, life.generation))
        self._app.listing.tell_soon(then=lambda: link.reply(ident, codec.EMPTY))

    def _launch(self) -> Launch:
        app, life, worker = self._app, self._life, self._worker
        slot = int(life.instance.rpartition(":")[2])
        try:
            limits.apply(life.pid, limits.for_child(worker.limits), slot)
        except OSError as error:
            life.ending = control.Ending(1, f"limits: {error.strerror}")
            app.host.kill(life)
        env: dict[str, Any] = app.spawning.environment(worker, life.instance, life.generation)
        assert worker.target is not None
        return Launch(
            app=app.spec.app,
            worker=worker.name,
            slot=slot,
            generation=life.generation,
            target=worker.target,
            run_id=app.run_id,
            args=list(worker.args),
            kwargs=dict(worker.kwargs),
            env=env,
            umask=worker.umask,
            cwd=worker.cwd,
            python_path=list(app.spec.python_path),
            address=app.address(life.instance, life.generation),
            grace=worker.stop.timeout,
            heartbeat=HeartbeatPlan(worker.heartbeat.interval, worker.heartbeat.source),
            stop_signal=worker.stop.signal,
            log_level=app.spec.supervisor.log.level,
            counts_requests=self._counts,
            concurrency_running=worker.concurrency.running,
            concurrency_waiting=worker.concurrency.waiting,
            trust=app.spec.supervisor.trust,
            directory=app.book.join((life.instance, life.generation)),
            retained=app.retained,
            dead_letters=app.dead_letters,
            allow=allow_of(worker),
            breaker=_plan(worker.breaker),
            breakers={one.name: _plan(one.breaker) for one in app.spec.workers if one.own_breaker},
            rate_limit=worker.rate_limit,
        )


def allow_of(worker: WorkerSpec) -> control.Allow | None:
    """Return what a worker may say and hear as its peers are told; None for everything."""
    allow = worker.allow
    return control.Allow(allow.request, allow.publish, allow.subscribe) if allow is not None else None


def _plan(breaker: BreakerSpec | None) -> control.BreakerPlan | None:
    return control.BreakerPlan(breaker.failures, breaker.of, breaker.open) if breaker is not None else None
