"""A supervisor over time: idle cost, mass death, a thousand restarts. Run: python benchmarks/steady.py.

Prints, for 200 commands and for 200 beating function workers: time until all are ready, memory of the supervisor, its
share of a core while idle; then 150 of them are killed in one instant, and one worker a thousand times in a row.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

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
app: steady
python_path: [.]
defaults: {{restart: {{delay: 1ms, max_delay: 1ms, jitter: 0, max_restarts: 1000000}}, start_timeout: 120s}}
workers:
  w: {{{worker}, instances: {count}}}
"""
KINDS = {"commands": 'command: [sleep, "100000"]', "functions": 'target: "idle:worker", preload: [idle]'}


class Supervisor:
    """A supervisor of one pool, in a directory of its own."""

    def __init__(self, folder: str, kind: str, count: int) -> None:
        Path(folder, "idle.py").write_text("async def worker(ipc):\n    await ipc.serve()\n")
        config = Path(folder, "steady.yaml")
        config.write_text(CONFIG.format(worker=KINDS[kind], count=count))
        env = {**os.environ, "XDG_RUNTIME_DIR": folder, "XDG_STATE_HOME": folder}
        self.begun = time.monotonic()
        command = [BIN / "smartipc-supervise", config]
        self.process = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        self.facts = psutil.Process(self.process.pid)
        self.states: dict[str, tuple[int, str]] = {}
        self.pids: dict[str, int] = {}
        self._seq = 0
        self._link = self._connect(f"{folder}/smartipc/steady/control.sock")

    @staticmethod
    def _connect(path: str) -> Link:
        while True:
            try:
                return Link(UnixSocketTransport(path).dial(), Connection("client", Identity("bench")), QuietHost())
            except (ConnectFailed, BlockingIOError):
                time.sleep(0.005)

    def rows(self) -> list[dict[str, object]]:
        """Return the status of all instances; it costs the supervisor a look at each process."""
        return list(codec.plain(self._link.call(control.cli_status.name, codec.encode(None), timeout=60))["workers"])

    def wait(self, wanted: Callable[[dict[str, tuple[int, str]]], bool]) -> None:
        """Follow the events until generation and state of the instances are as wanted."""
        while not wanted(self.states):
            request = codec.encode(control.EventsRequest(self._seq, 5.0))
            found = codec.plain(self._link.call(control.cli_events.name, request, timeout=60))
            self._seq = found["last"]
            for event in found["events"]:
                if event["event"] == "instance.state":
                    self.states[event["instance"]] = event["generation"], event["to"]
                    self.pids[event["instance"]] = event["pid"]

    def wait_ready(self, count: int, victims: int = 0) -> None:
        """Wait until all are ready, the first so many in their second life."""
        wanted = {f"w:{slot}": (2 if slot < victims else 1, "ready") for slot in range(count)}
        self.wait(lambda states: states == wanted)

    def end(self) -> None:
        """Stop it."""
        self._link.close()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()

    def kept(self) -> dict[str, float]:
        """Return what must not grow."""
        return {
            "descriptors": self.facts.num_fds(),
            "threads": self.facts.num_threads(),
            "rss MiB": round(self.facts.memory_info().rss / 2**20, 1),
        }


def pool(kind: str, count: int, victims: int, idle: float) -> dict[str, float]:
    """Start many, let them idle, kill most of them at once."""
    with tempfile.TemporaryDirectory(prefix="b-") as folder:
        one = Supervisor(folder, kind, count)
        one.wait_ready(count)
        figures = {"all ready s": round(time.monotonic() - one.begun, 2)}
        time.sleep(2)
        before = one.facts.cpu_times()
        time.sleep(idle)
        after = one.facts.cpu_times()
        used = after.user + after.system - before.user - before.system
        figures["idle % of a core"] = round(100 * used / idle, 3)
        figures["rss MiB"] = one.kept()["rss MiB"]
        begun = time.monotonic()
        for slot in range(victims):
            os.kill(one.pids[f"w:{slot}"], signal.SIGKILL)
        one.wait_ready(count, victims)
        figures[f"{victims} killed, all ready s"] = round(time.monotonic() - begun, 2)
        figures["restarts of each"] = max(int(str(row["restarts"])) for row in one.rows())
        figures["zombies"] = sum(one.status() == psutil.STATUS_ZOMBIE for one in one.facts.children())
        one.end()
    return figures


def restarts(kind: str, rounds: int) -> dict[str, dict[str, float]]:
    """Kill one worker again and again; return what is kept before and after."""
    with tempfile.TemporaryDirectory(prefix="b-") as folder:
        one = Supervisor(folder, kind, 1)
        one.wait_ready(1)
        figures: dict[str, dict[str, float]] = {}
        for number in range(rounds):
            if number == rounds // 10:
                figures["after a tenth"] = one.kept()
            os.kill(one.pids["w:0"], signal.SIGKILL)
            one.wait(lambda states: states["w:0"] == (number + 2, "ready"))  # noqa: B023
        figures["after all"] = one.kept()
        one.end()
    return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--victims", type=int, default=150)
    parser.add_argument("--idle", type=float, default=30.0, help="seconds")
    parser.add_argument("--restarts", type=int, default=1000)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found: dict[str, object] = {}
    for kind in options.kinds:
        found[f"{options.count} {kind}"] = pool(kind, options.count, options.victims, options.idle)
        if options.restarts:
            found[f"{options.restarts} restarts of {kind[:-1]}"] = restarts(kind, options.restarts)
    if options.json:
        print(json.dumps(found))
        return
    for name, figures in found.items():
        print(name)
        for key, value in dict(figures).items():  # type: ignore[call-overload]
            print(f"  {key:28} {value}")


if __name__ == "__main__":
    main()
