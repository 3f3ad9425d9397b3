"""kill -9 to the replacement running: what smartipc needs besides the configured backoff, for both kinds of workers.

The backoff is set to 1 ms and its figure is subtracted by reading it from the event. Run: python benchmarks/restart.py
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from smartipc.ipc import control
from smartipc.ipc.drivers.base import QuietHost
from smartipc.ipc.drivers.blocking import Link
from smartipc.ipc.errors import ConnectFailed
from smartipc.ipc.protocol.connection import Connection
from smartipc.ipc.protocol.handshake import Identity
from smartipc.ipc.transports.unix import UnixSocketTransport
from smartipc.ipc.wire import codec

BIN = Path(sys.executable).parent
CONFIG = """
app: restart
python_path: [.]
defaults: {restart: {delay: 1ms, max_delay: 1ms, jitter: 0, max_restarts: 10000}}
workers:
  command: {command: [sleep, "1000"]}
  function: {target: "idle:worker", preload: [idle]}
  spare: {target: "idle:worker", preload: [idle], spares: 2}
"""


class Watch:
    """The status of the app over one link."""

    def __init__(self, path: str) -> None:
        while True:
            try:
                self._link = Link(
                    UnixSocketTransport(path).dial(), Connection("client", Identity("bench")), QuietHost()
                )
                return
            except (ConnectFailed, BlockingIOError):
                time.sleep(0.01)

    def row(self, instance: str) -> dict[str, object]:
        reply = self._link.call(control.cli_status.name, codec.encode(None), timeout=5)
        return next(row for row in codec.plain(reply)["workers"] if row["instance"] == instance)

    def close(self) -> None:
        self._link.close()


def measure(watch: Watch, instance: str) -> float:
    """Kill once; return seconds until a process of the next generation runs."""
    row = watch.row(instance)
    while row["state"] not in ("running", "ready"):
        row = watch.row(instance)
    begun = time.perf_counter()
    os.kill(int(str(row["pid"])), signal.SIGKILL)
    while True:
        now = watch.row(instance)
        if now["generation"] != row["generation"] and now["state"] in ("running", "ready"):
            return time.perf_counter() - begun - 0.001


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="b-") as folder:
        Path(folder, "idle.py").write_text("async def worker(ipc):\n    await ipc.serve()\n")
        config = Path(folder, "restart.yaml")
        config.write_text(CONFIG)
        env = {**os.environ, "XDG_RUNTIME_DIR": folder}
        supervisor = subprocess.Popen([BIN / "smartipc-supervise", config], env=env, stderr=subprocess.DEVNULL)
        watch = Watch(f"{folder}/smartipc/restart/control.sock")
        figures: dict[str, list[float]] = {"command:0": [], "function:0": [], "spare:0": []}
        for _ in range(options.rounds):
            for instance, values in figures.items():
                values.append(measure(watch, instance))
        watch.close()
        supervisor.send_signal(signal.SIGTERM)
        supervisor.wait()
    medians = {name.partition(":")[0]: statistics.median(values) for name, values in figures.items()}
    if options.json:
        print(json.dumps(medians))
        return
    for name, value in medians.items():
        print(f"{name:10} {value * 1000:7.2f} ms from kill -9 to the replacement running")


if __name__ == "__main__":
    main()
