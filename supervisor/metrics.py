"""What the supervisor knows of itself and its instances, as Prometheus text. Reads views; changes nothing.

Label values are names of the configuration only, so their number is bounded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import TYPE_CHECKING, get_args

import psutil
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
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

_TRAFFIC: tuple[tuple[type[CounterMetricFamily | GaugeMetricFamily], str, str, str], ...] = (
    (GaugeMetricFamily, "connections", "Open connections.", "connections"),
    (CounterMetricFamily, "requests_sent", "Requests to others.", "requests_sent"),
    (CounterMetricFamily, "requests_received", "Requests of others.", "requests_received"),
    (CounterMetricFamily, "notifies_received", "One-way messages of others.", "notifies_received"),
    (CounterMetricFamily, "messages_received", "Published messages that came.", "messages_received"),
    (CounterMetricFamily, "messages_dropped", "Messages that open subscriptions have lost.", "messages_dropped"),
    (CounterMetricFamily, "late_replies", "Answers to requests that had been given up.", "late_replies"),
    (CounterMetricFamily, "received_bytes", "Bytes read from other processes.", "bytes_received"),
    (GaugeMetricFamily, "streams_open", "Streams and channels.", "streams"),
    (GaugeMetricFamily, "buffers_lent", "Big buffers that others hold.", "buffers_lent"),
    (GaugeMetricFamily, "buffers_borrowed", "Big buffers of others.", "buffers_borrowed"),
    (GaugeMetricFamily, "buffer_pool_bytes", "Shared memory, in use or kept warm.", "pool_bytes"),
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
        yield from _of_their_traffic(status.workers, self._app)

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


def _of_their_traffic(workers: list[WorkerStatus], app: App) -> Iterator[Metric]:
    """Yield what workers report of their messages, every few seconds; a new life begins at zero."""
    told = [
        ((one.instance, one.worker), said.traffic)
        for one in workers
        if (said := app.said.get((one.instance, one.generation))) is not None and said.traffic is not None
    ]
    for kind, suffix, said_of_it, attribute in _TRAFFIC:
        family = kind(f"smartipc_{suffix}", said_of_it, labels=_EACH)
        for labels, traffic in told:
            family.add_metric(labels, getattr(traffic, attribute))
        yield family
    errors = CounterMetricFamily("smartipc_request_errors", "Requests that failed, by error.", labels=(*_EACH, "error"))
    seconds = HistogramMetricFamily("smartipc_request_seconds", "Round trip of every 16th request.", labels=_EACH)
    for labels, traffic in told:
        for name, count in traffic.errors.items():
            errors.add_metric((*labels, name), count)
        counts = accumulate(count for _bound, count in traffic.round_trips)
        buckets = [
            ("+Inf" if bound == float("inf") else str(bound), count)
            for (bound, _count), count in zip(traffic.round_trips, counts, strict=True)
        ]
        seconds.add_metric(labels, buckets, traffic.round_trip_seconds)
    yield errors
    yield seconds


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
