"""16 workers with heavy imports, from the start to all of them running: smartipc beside bare multiprocessing.

smartipc is the whole product: supervisor, bootstrap, sockets, directory. The peers start a process that imports the
same modules and says so through a pipe. Rounds are interleaved, figures are medians. Run: python benchmarks/spawn.py
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

COUNT = 16
HEAVY = (
    "asyncio",
    "json",
    "email",
    "http.client",
    "xml.dom.minidom",
    "sqlite3",
    "decimal",
    "msgspec",
    "psutil",
    "rich.console",
)
BIN = Path(sys.executable).parent


def child(pipe: Connection) -> None:
    for name in HEAVY:
        __import__(name)
    pipe.send_bytes(b"up")
    pipe.recv_bytes()


def peer(method: str, *, preload: bool) -> float:
    """Start COUNT processes and return seconds until the last one is up."""
    context = multiprocessing.get_context(method)
    if preload:
        context.set_forkserver_preload(list(HEAVY))
    ends = []
    begun = time.perf_counter()
    for _ in range(COUNT):
        ours, theirs = context.Pipe()
        process = context.Process(target=child, args=(theirs,))
        process.start()
        ends.append((process, ours))
    for _, ours in ends:
        ours.recv_bytes()
    took = time.perf_counter() - begun
    for process, ours in ends:
        ours.send_bytes(b"end")
        process.join()
    return took


CONFIG = """
app: spawn
python_path: [.]
workers:
  first: {{target: "heavy:worker", preload: [heavy]}}
  rest: {{target: "heavy:worker", instances: {count}, depends_on: {{first: ready}}, preload: [heavy]}}
"""
HEAVY_MODULE = "".join(f"import {name}\n" for name in HEAVY) + "async def worker(ipc):\n    await ipc.serve()\n"


def smartipc() -> float:
    """Return seconds from the first spawn order of the 16 to the last one ready, from the event log."""
    with tempfile.TemporaryDirectory(prefix="b-") as folder:
        Path(folder, "heavy.py").write_text(HEAVY_MODULE)
        config = Path(folder, "spawn.yaml")
        config.write_text(CONFIG.format(count=COUNT))
        env = {**os.environ, "XDG_RUNTIME_DIR": folder}
        supervisor = subprocess.Popen([BIN / "smartipc-supervise", config], env=env, stderr=subprocess.DEVNULL)
        ctl = [str(BIN / "smartipc"), "--config", str(config)]
        last = ""
        while f"rest:{COUNT - 1}" not in last or last.count('"to":"ready"') < COUNT + 1:
            done = subprocess.run([*ctl, "events", "--json"], env=env, capture_output=True, text=True, check=False)
            last = done.stdout
        events = [json.loads(line) for line in last.splitlines()]
        supervisor.send_signal(signal.SIGTERM)
        supervisor.wait()
    begun = min(_at(one) for one in events if one["to"] == "starting" and one["instance"].startswith("rest"))
    return max(_at(one) for one in events if one["to"] == "ready") - begun


def _at(event: dict[str, str]) -> float:
    from datetime import datetime

    return datetime.fromisoformat(event["at"]).timestamp()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    cases = {
        "multiprocessing forkserver, preload": lambda: peer("forkserver", preload=True),
        "smartipc, preload": smartipc,
        "multiprocessing fork": lambda: peer("fork", preload=False),
        "multiprocessing spawn": lambda: peer("spawn", preload=False),
    }
    peer("forkserver", preload=True)  # the fork server itself is started once
    figures: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(options.rounds):
        for name, measure in cases.items():
            figures[name].append(measure())
    medians = {name: statistics.median(values) for name, values in figures.items()}
    if options.json:
        print(json.dumps(medians))
        return
    base = medians["multiprocessing forkserver, preload"]
    for name, value in medians.items():
        print(f"{name:38} {value * 1000:8.1f} ms   {value / base:5.2f} x")


if __name__ == "__main__":
    main()
