"""Every row of the speed table that concerns messages, against its peers, with the ratio next to the target.

    python benchmarks/messages.py [--rows blocking,async,...] [--rounds 5] [--scale 1.0] [--only NAME,...] [--json FILE]

Each contender runs in a process of its own; they take turns in rounds and the figures are medians over the rounds. The
latency rows are pinned to one CPU, so that they show the code path and not the wake-up of another core. A peer that is
not installed is reported as missing: `make bench-peers` brings them.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import broker_peers as broker
import python_peers as python
import smartipc_peers as ours
from harness import Row, Target, race, show
from node_peer import node_ipc

ROWS = (
    Row(
        "blocking",
        "blocking request, 64 B, one CPU, p50",
        "us",
        3000,
        {
            "Unix socket, bare": python.bare_latency,
            "multiprocessing.Pipe": python.pipe_latency,
            "node-ipc": node_ipc("latency"),
            "pyzmq": python.zmq_latency,
            "rpyc": python.rpyc_latency,
            "grpcio": python.grpc_latency,
            "smartipc blocking": ours.blocking_latency,
        },
        (Target("smartipc blocking", "multiprocessing.Pipe", 0.75),),
        one_cpu=True,
        slow={"grpcio": 0.2, "rpyc": 0.5},
    ),
    Row(
        "async",
        "async request, 64 B, one CPU, p50",
        "us",
        3000,
        {
            "pyzmq": python.zmq_latency,
            "asyncio streams + JSON": python.streams_latency,
            "xoscar": python.xoscar_latency,
            "grpc.aio": python.grpc_aio_latency,
            "smartipc async": ours.async_latency,
        },
        (Target("smartipc async", "pyzmq", 0.6),),
        one_cpu=True,
        slow={"grpc.aio": 0.2, "xoscar": 0.3},
    ),
    Row(
        "requests",
        "requests/s, 64 B, 64 outstanding",
        "1/s",
        32_000,
        {
            "node-ipc": node_ipc("requests"),
            "redis": broker.redis_requests,
            "pyzmq": python.zmq_requests,
            "nats": broker.nats_requests,
            "grpc.aio": python.grpc_aio_requests,
            "multiprocessing.Pipe": python.pipe_requests,
            "smartipc async": ours.async_requests,
            "smartipc async map": ours.async_map,
            "smartipc blocking map": ours.blocking_map,
        },
        (
            Target("smartipc async map", "node-ipc", 1.0),
            Target("smartipc async map", "pyzmq", 3.0),
            Target("smartipc async", "node-ipc", 1.0),
            Target("smartipc async", "pyzmq", 3.0),
        ),
        slow={"grpc.aio": 0.1, "nats": 0.5},
    ),
    Row(
        "messages",
        "one-way messages/s, 64 B",
        "1/s",
        200_000,
        {
            "pyzmq": python.zmq_messages,
            "node-ipc": node_ipc("messages"),
            "zenoh": broker.zenoh_deliveries(1),
            "multiprocessing.Pipe": python.pipe_messages,
            "smartipc async publish": ours.async_publish(1),
            "smartipc async notify": ours.async_notify,
            "smartipc blocking publish": ours.blocking_publish,
            "smartipc blocking notify": ours.blocking_notify,
        },
        (
            Target("smartipc async notify", "pyzmq", 1.5),
            Target("smartipc async publish", "pyzmq", 1.5),
        ),
        slow={"smartipc blocking publish": 0.3, "smartipc blocking notify": 0.3, "multiprocessing.Pipe": 0.3},
    ),
    *(
        Row(
            f"fanout{processes}",
            f"fan-out to {processes} processes, deliveries/s, 64 B",
            "1/s",
            200_000 // processes,
            {
                "pyzmq": python.zmq_fanout(processes),
                "zenoh": broker.zenoh_deliveries(processes),
                "smartipc async": ours.async_publish(processes),
            },
            (Target("smartipc async", "pyzmq", 1.0),),
        )
        for processes in (4, 16)
    ),
    Row(
        "pool",
        "pool of 4, no-op calls/s",
        "1/s",
        100_000,
        {
            "mpire": python.mpire_pool,
            "multiprocessing.Pool.apply_async": python.multiprocessing_pool,
            "ProcessPoolExecutor": python.executor_pool,
            "smartipc async": ours.async_pool,
            "smartipc blocking": ours.blocking_pool,
        },
        (
            Target("smartipc async", "mpire", 1.0),
            Target("smartipc async", "ProcessPoolExecutor", 10.0),
            Target("smartipc blocking", "mpire", 1.0),
        ),
        slow={"ProcessPoolExecutor": 0.05, "multiprocessing.Pool.apply_async": 0.2},
    ),
)


def main() -> None:
    """Measure, print, and write a file for report.py."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="", help=", ".join(row.name for row in ROWS))
    parser.add_argument("--only", default="", help="contenders whose name contains one of these")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of operations")
    parser.add_argument("--json", default="", help="file for the figures")
    options = parser.parse_args()
    wanted = [name for name in options.rows.split(",") if name]
    only = [name for name in options.only.split(",") if name]
    results = []
    gc.freeze()
    for row in ROWS:
        if wanted and row.name not in wanted:
            continue
        scaled = Row(**{**vars(row), "number": max(64, int(row.number * options.scale) // 64 * 64)})
        results.append(race(scaled, options.rounds, only))
        show(results[-1])
    if options.json:
        machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "system": platform.system()}
        Path(options.json).write_text(json.dumps({"machine": machine, "rows": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
