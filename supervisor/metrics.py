"""What the supervisor knows of itself and its instances, as Prometheus text. Reads views; changes nothing.

Label values are names of the configuration only, so their number is bounded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, get_args

import psutil
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from smartipc import __version__
from smartipc.ipc.control import AppStatus, State, WorkerStatus
from smartipc.supervisor.status import app_status

if TYPE_CHECKING:
    from smartipc.supervisor.runner import App

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_STATES: tuple[State, ...] = get_args(State)
_EACH = ("instance", "worker")
_GAUGES: tuple[tuple[str, str, str], ...] = (
    ("uptime_seconds", "Seconds since the current life began.", "uptime"),
    ("memory_bytes", "Resident memory.", "memory"),
    ("cpu_percent", "Share of one core since the last look, in percent.", "cpu"),
    ("heartbeat_age_seconds", "Seconds since the last heartbeat.", "heartbeat_age"),
    ("next_restart_seconds", "Seconds until the next automatic restart.", "next_restart_in"),
)


def metrics_text(app: App) -> str:
    """Return the metrics of this moment in the text exposition format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(app))
    return generate_latest(registry).decode()


class _Families(Collector):
    """All families of one app."""

    def __init__(self, app: App) -> None:
        self._app = app

    def collect(self) -> Iterable[Metric]:
        """Yield them."""
        status = app_status(self._app)
        yield from self._of_the_supervisor(status)
        yield from _of_the_instances(status.workers)

    def _of_the_supervisor(self, status: AppStatus) -> Iterator[Metric]:
        info = GaugeMetricFamily(
            "smartipc_app_info", "The app and the version that runs it.", labels=("app", "version")
        )
        info.add_metric((status.app, __version__), 1)
        yield info
        process = psutil.Process(status.pid)
        yield GaugeMetricFamily(
            "smartipc_supervisor_memory_bytes", "Resident memory of the supervisor.", process.memory_info().rss
        )
        yield CounterMetricFamily(
            "smartipc_supervisor_cpu_seconds", "CPU time of the supervisor.", sum(process.cpu_times()[:2])
        )
        yield GaugeMetricFamily("smartipc_supervisor_open_files", "Its open descriptors.", process.num_fds())
        yield CounterMetricFamily("smartipc_events", "Events so far, over all lives of the app.", self._app.events.seq)


def _of_the_instances(workers: list[WorkerStatus]) -> Iterator[Metric]:
    state = GaugeMetricFamily("smartipc_instance_state", "1 for the state it is in.", labels=(*_EACH, "state"))
    ready = GaugeMetricFamily("smartipc_instance_ready", "Whether requests are routed to it.", labels=_EACH)
    restarts = CounterMetricFamily("smartipc_instance_restarts", "Automatic restarts.", labels=_EACH)
    generation = GaugeMetricFamily("smartipc_instance_generation", "Lives of the slot so far.", labels=_EACH)
    for one in workers:
        labels = (one.instance, one.worker)
        for name in _STATES:
            state.add_metric((*labels, name), one.state == name)
        ready.add_metric(labels, one.ready)
        restarts.add_metric(labels, one.restarts)
        generation.add_metric(labels, one.generation)
    yield from (state, ready, restarts, generation)
    for suffix, said, attribute in _GAUGES:
        family = GaugeMetricFamily(f"smartipc_instance_{suffix}", said, labels=_EACH)
        for one in workers:
            value = getattr(one, attribute)
            if value is not None:
                family.add_metric((one.instance, one.worker), value)
        yield family
