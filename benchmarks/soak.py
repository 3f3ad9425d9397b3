"""A soak: workers that all talk to all, in every pattern at once, while one is killed -9 every second.

What must hold, and is checked from outside: no wrong, duplicated (not idempotent) or lost (idempotent, retried)
result; each publisher's messages in order and without a hole; memory and descriptors flat; nothing left behind at the
end. Exits with 1 and says what was wrong otherwise. Run: python benchmarks/soak.py --minutes 10
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from smartipc.ipc import control
from smartipc.ipc.drivers.base import QuietHost
from smartipc.ipc.drivers.blocking import Link
from smartipc.ipc.errors import ConnectFailed, ConnectionLost
from smartipc.ipc.protocol.connection import Connection
from smartipc.ipc.protocol.handshake import Identity
from smartipc.ipc.transports.unix import UnixSocketTransport
from smartipc.ipc.wire import codec

BIN = Path(sys.executable).parent
HERE = Path(__file__).parent
MAKER = re.compile(r"smartipc-([0-9]+)-")
"""In the names of shared memory: the process that made it; other apps of this machine have some, too."""
CONFIG = """
app: soak
python_path: [{here}]
workers:
  peer:
    target: "soak_peer:peer"
    instances: {workers}
    preload: [soak_peer]
    restart: {{delay: 20ms, max_delay: 20ms, max_restarts: 1000000, window: 1s}}
    stop: {{timeout: 10s}}
"""
SETTLE = 0.25
"""Share of the run after which memory and descriptors are compared: caches and pools are filled by then."""
MORE_MEMORY = 1.5
MORE_DESCRIPTORS = 64


class Soak:
    """One run."""

    def __init__(self, folder: Path, workers: int, seconds: float) -> None:
        self.folder = folder
        self.workers = workers
        self.seconds = seconds
        self.config = folder / "soak.yaml"
        self.config.write_text(CONFIG.format(here=HERE, workers=workers))
        files = {f"SOAK_{name.upper()}": str(folder / name) for name in ("wrong", "ledger", "answered")}
        for path in files.values():
            Path(path).touch()
        self.env = {**os.environ, "XDG_RUNTIME_DIR": str(folder), "XDG_STATE_HOME": str(folder), **files}
        self.env.pop("SMARTIPC_APP", None)
        self.samples: list[tuple[float, float, int]] = []
        self.kills = 0
        self.pids: set[int] = set()

    def status(self) -> list[dict[str, Any]]:
        """Ask over the control socket, as the command does, without starting a process on the busy machine."""
        try:
            sock = UnixSocketTransport(str(self.folder / "smartipc" / "soak" / "control.sock")).dial()
        except (ConnectFailed, BlockingIOError):
            return []
        link = Link(sock, Connection("client", Identity("soak")), QuietHost())
        try:
            reply = link.call(control.cli_status.name, codec.encode(None), timeout=10)
        except ConnectionLost:
            return []
        finally:
            link.close()
        workers: list[dict[str, Any]] = codec.plain(reply)["workers"]
        return workers

    def run(self) -> list[str]:
        """Run it and return what was wrong."""
        with (self.folder / "log").open("wb") as log:
            supervisor = subprocess.Popen(
                [BIN / "smartipc-supervise", self.config], env=self.env, stdout=log, stderr=log, cwd=self.folder
            )
        try:
            self.wait_ready(supervisor)
            self.torment(supervisor)
            self.wait_ready(supervisor)
            self.totals = self.sum_up()
            supervisor.send_signal(signal.SIGTERM)
            code = supervisor.wait(60)
        finally:
            if supervisor.poll() is None:
                supervisor.kill()
                supervisor.wait()
        return [*self.judge(), *([f"the supervisor ended with {code}"] if code else []), *self.left_behind()]

    def wait_ready(self, supervisor: subprocess.Popen[bytes]) -> None:
        until = time.monotonic() + 60
        while sum(row["ready"] for row in self.status()) < self.workers:
            if supervisor.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"not ready: {(self.folder / 'log').read_text()[-3000:]}")
            time.sleep(0.1)

    def torment(self, supervisor: subprocess.Popen[bytes]) -> None:
        """Kill one random worker every second; look at memory and descriptors."""
        chance = random.Random(1)
        begun = time.monotonic()
        while (passed := time.monotonic() - begun) < self.seconds:
            rows = [row for row in self.status() if row["pid"]]
            self.pids.update(row["pid"] for row in rows)
            victim = chance.choice(rows)
            try:
                os.kill(victim["pid"], signal.SIGKILL)
                self.kills += 1
            except ProcessLookupError:
                pass
            self.sample(passed, supervisor.pid)
            time.sleep(max(0.0, 1 - (time.monotonic() - begun - passed)))

    def sample(self, at: float, pid: int) -> None:
        process = psutil.Process(pid)
        memory = [process.memory_info().rss]
        descriptors = [process.num_fds()]
        for child in process.children(recursive=True):
            try:
                memory.append(child.memory_info().rss)
                descriptors.append(child.num_fds())
            except psutil.Error:
                continue
        self.samples.append((at, max(memory) / 2**20, max(descriptors)))

    def sum_up(self) -> Counter[str]:
        totals: Counter[str] = Counter()
        for row in self.status():
            totals.update(json.loads(row["status"] or "{}"))
        return totals

    def judge(self) -> list[str]:
        wrong = (self.folder / "wrong").read_text().splitlines()
        carried = Counter((self.folder / "ledger").read_text().split())
        wrong += [f"deposit {ident} was carried out {n} times" for ident, n in carried.items() if n > 1]
        for line in (self.folder / "answered").read_text().splitlines():
            ident, outcome = line.split()
            if outcome == "yes" and ident not in carried:
                wrong.append(f"deposit {ident} was answered and never carried out")
            if outcome == "no" and ident in carried:
                wrong.append(f"deposit {ident} was carried out, its caller was told that it was not")
        settled = [one for one in self.samples if one[0] >= self.seconds * SETTLE]
        half = len(settled) // 2
        if half:
            early = statistics.median(one[1] for one in settled[:half])
            late = statistics.median(one[1] for one in settled[half:])
            if late > early * MORE_MEMORY:
                wrong.append(f"the largest process grew from {early:.0f} to {late:.0f} MiB")
            first = statistics.median(one[2] for one in settled[:half])
            last = statistics.median(one[2] for one in settled[half:])
            if last > first + MORE_DESCRIPTORS:
                wrong.append(f"descriptors grew from {first} to {last}")
        wrong += [
            f"in the log: {line}" for line in (self.folder / "log").read_text().splitlines() if "Traceback" in line
        ]
        return wrong

    def left_behind(self) -> list[str]:
        left = [p.pid for p in psutil.process_iter() if _carries(p, str(self.folder))]
        names = os.listdir("/dev/shm") if os.path.isdir("/dev/shm") else []
        segments = [name for name in names if (made := MAKER.search(name)) and int(made[1]) in self.pids]
        sockets = [str(path) for path in self.folder.rglob("*") if path.is_socket()]
        return [f"left behind: {left} {segments} {sockets}"] if left or segments or sockets else []


def _carries(process: psutil.Process, mark: str) -> bool:
    try:
        return process.pid != os.getpid() and process.environ().get("XDG_RUNTIME_DIR") == mark
    except psutil.Error:
        return False


def main() -> int:
    """Run the soak and print what it came to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--keep", action="store_true", help="keep the log and ledgers")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    soak = Soak(folder, options.workers, options.minutes * 60)
    wrong = soak.run()
    memory = [
        f"{at:.0f} s: {mib:.0f} MiB, {fds} fds" for at, mib, fds in soak.samples[:: max(1, len(soak.samples) // 6)]
    ]
    print(f"{options.workers} workers, {options.minutes:g} minutes, {soak.kills} killed -9")
    print("counted by the last lives: " + ", ".join(f"{n} {what}" for what, n in sorted(soak.totals.items())))
    print("largest process: " + "; ".join(memory))
    for line in wrong[:50]:
        print("WRONG", line)
    if options.keep or wrong:
        print(f"kept: {folder}")
    else:
        subprocess.run(["rm", "-rf", folder], check=True)
    print("nothing was wrong" if not wrong else f"{len(wrong)} things were wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
