"""kill -9 to the first words of the replacement: a command, a preloaded function worker, and one with a warm spare.

The replacement says its pid as the first thing that its own code does, so nothing is asked of the supervisor meanwhile.
The backoff is set to a tenth of a millisecond; rounds of the three are interleaved, with a rest between them, in which
the next spare becomes warm. Run: python benchmarks/restart.py
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BIN = Path(sys.executable).parent
CONFIG = """
app: restart
python_path: [.]
supervisor: {log: {level: error}}
defaults: {restart: {delay: 0.0001, max_delay: 0.0001, jitter: 0, max_restarts: 10000}}
workers:
  command: {command: [sh, -c, "echo command $$$$ > $WORDS; exec sleep 1000"]}
  function: {target: "idle:worker", preload: [idle]}
  spare: {target: "idle:worker", preload: [idle], spares: 2}
"""
WORKER = """
import os

async def worker(ipc):
    words = os.open(os.environ["WORDS"], os.O_WRONLY)
    os.write(words, f"{ipc.worker} {os.getpid()}\\n".encode())
    await ipc.serve()
"""
NAMES = ("command", "function", "spare")
PATIENCE = 30.0


class Words:
    """The FIFO that every life writes to."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        self._rest = b""

    def next(self) -> tuple[str, int]:
        """Return the name and pid of the next life that speaks."""
        while b"\n" not in self._rest:
            if not select.select([self._fd], [], [], PATIENCE)[0]:
                raise TimeoutError(f"no word within {PATIENCE:g} s")
            self._rest += os.read(self._fd, 4096)
        line, _, self._rest = self._rest.partition(b"\n")
        name, pid = line.split()
        return name.decode(), int(pid)

    def close(self) -> None:
        os.close(self._fd)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--rest", type=float, default=0.5, help="seconds between two kills")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures: dict[str, list[float]] = {name: [] for name in NAMES}
    with tempfile.TemporaryDirectory(prefix="b-") as folder:
        Path(folder, "idle.py").write_text(WORKER)
        config = Path(folder, "restart.yaml")
        config.write_text(CONFIG)
        words = Words(Path(folder, "words"))
        env = {**os.environ, "XDG_RUNTIME_DIR": folder, "XDG_STATE_HOME": folder, "WORDS": f"{folder}/words"}
        supervisor = subprocess.Popen([BIN / "smartipc-supervise", config], env=env)
        try:
            pids = dict(words.next() for _ in NAMES)
            for _ in range(options.rounds):
                for name in NAMES:
                    time.sleep(options.rest)
                    begun = time.perf_counter()
                    os.kill(pids[name], signal.SIGKILL)
                    who, pids[name] = words.next()
                    figures[name].append(time.perf_counter() - begun)
                    assert who == name
        finally:
            supervisor.send_signal(signal.SIGTERM)
            supervisor.wait()
            words.close()
    medians = {name: statistics.median(values) for name, values in figures.items()}
    if options.json:
        print(json.dumps(medians))
        return
    for name, value in medians.items():
        print(f"{name:10} {value * 1000:7.2f} ms from kill -9 to the first words of the replacement")


if __name__ == "__main__":
    main()
