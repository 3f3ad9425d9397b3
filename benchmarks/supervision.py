"""smartipc beside supervisord, circus, pm2 and runit: restart, start of many children, memory and idle cost, together.

Every contender supervises the same plain command. Restart: kill -9 of a child to the first words of its replacement,
rounds interleaved over all contenders, the waits that they configure at their smallest. Start: from the launch of the
supervisor to the first words of the last of N children. Memory and CPU: all processes that are the supervisor's own,
with N children at rest. Run: python benchmarks/supervision.py; `make bench-peers` brings the peers, runit is the
system's package.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

BIN = Path(sys.executable).parent
NODE = Path(os.environ.get("SMARTIPC_BENCH_NODE", "~/.cache/smartipc-bench-node")).expanduser()
PATIENCE = 60.0


class Missing(Exception):  # noqa: N818 - a reason to leave a contender out
    """A contender is not installed."""


@dataclass
class Words:
    """A FIFO into which every child writes its pid as its first words."""

    path: Path
    _fd: int = -1
    _rest: bytes = b""

    def open(self) -> None:
        os.mkfifo(self.path)
        self._fd = os.open(self.path, os.O_RDWR | os.O_NONBLOCK)

    def pids(self, number: int) -> list[int]:
        """Wait for `number` children to speak."""
        found: list[int] = []
        until = time.monotonic() + PATIENCE
        while len(found) < number:
            if not select.select([self._fd], [], [], max(0.0, until - time.monotonic()))[0]:
                raise TimeoutError(f"{len(found)} of {number} children within {PATIENCE:g} s ({self.path})")
            *lines, self._rest = (self._rest + os.read(self._fd, 65536)).split(b"\n")
            found += [int(line) for line in lines]
        return found

    def close(self) -> None:
        os.close(self._fd)


@dataclass
class Contender:
    """One supervisor: how to write its configuration, and start it in the foreground or as a daemon."""

    name: str
    launch: Callable[[Path, Path, int], list[str]]
    """(folder, script, children) -> command line; raises Missing."""
    environment: Callable[[Path], dict[str, str]] = lambda _folder: {}
    daemon: Callable[[Path], int] | None = None
    """Where the supervisor is another process than the one launched: find its pid."""
    end: Callable[[Path], list[str]] | None = None
    figures: dict[str, object] = field(default_factory=dict)


def _smartipc(folder: Path, script: Path, children: int) -> list[str]:
    (folder / "app.yaml").write_text(
        f"supervisor: {{runtime_dir: {folder}/r, state_dir: {folder}/s, log: {{level: error}}}}\n"
        "workers:\n"
        f"  child: {{command: [{script}], instances: {children}, "
        "restart: {delay: 0.0001, max_delay: 0.0001, jitter: 0, max_restarts: 1000000}}\n"
    )
    return [str(BIN / "smartipc-supervise"), str(folder / "app.yaml")]


def _supervisord(folder: Path, script: Path, children: int) -> list[str]:
    if not (BIN / "supervisord").exists():
        raise Missing("pip install supervisor")
    (folder / "supervisord.conf").write_text(
        f"[supervisord]\nnodaemon=true\nlogfile=/dev/null\nlogfile_maxbytes=0\npidfile={folder}/pid\nloglevel=error\n"
        f"[program:child]\ncommand={script}\nprocess_name=%(program_name)s_%(process_num)d\nnumprocs={children}\n"
        "autorestart=true\nstartsecs=0\nstdout_logfile=NONE\nstderr_logfile=NONE\n"
    )
    return [str(BIN / "supervisord"), "-c", str(folder / "supervisord.conf")]


def _circus(folder: Path, script: Path, children: int) -> list[str]:
    if not (BIN / "circusd").exists():
        raise Missing("pip install circus")
    (folder / "circus.ini").write_text(
        f"[circus]\nendpoint = ipc://{folder}/e\npubsub_endpoint = ipc://{folder}/p\nloglevel = error\n"
        f"[watcher:child]\ncmd = {script}\nnumprocesses = {children}\nwarmup_delay = 0\nmax_retry = -1\n"
    )
    return [str(BIN / "circusd"), str(folder / "circus.ini")]


def _pm2(folder: Path, script: Path, children: int) -> list[str]:
    pm2 = NODE / "node_modules" / ".bin" / "pm2"
    if shutil.which("node") is None or not pm2.exists():
        raise Missing(f"npm install --prefix {NODE} pm2")
    apps = [
        {"name": f"c{n}", "script": str(script), "interpreter": "none", "restart_delay": 0, "max_restarts": 1000000,
         "min_uptime": 0, "out_file": "/dev/null", "error_file": "/dev/null"}
        for n in range(children)
    ]  # fmt: skip
    (folder / "eco.config.json").write_text(json.dumps({"apps": apps}))
    return [str(pm2), "start", str(folder / "eco.config.json"), "--silent"]


def _pm2_home(folder: Path) -> dict[str, str]:
    return {"PM2_HOME": str(folder / "pm2")}


def _pm2_daemon(folder: Path) -> int:
    return int((folder / "pm2" / "pm2.pid").read_text())


def _pm2_end(_folder: Path) -> list[str]:
    return [str(NODE / "node_modules" / ".bin" / "pm2"), "kill", "--silent"]


def _runit(folder: Path, script: Path, children: int) -> list[str]:
    runsvdir = shutil.which("runsvdir")
    if runsvdir is None:
        raise Missing("apt-get install runit")
    for n in range(children):
        service = folder / "services" / f"c{n}"
        service.mkdir(parents=True)
        shutil.copy(script, service / "run")
    return [runsvdir, "-P", str(folder / "services")]


CONTENDERS = (
    Contender("smartipc", _smartipc),
    Contender("runit", _runit),
    Contender("pm2", _pm2, _pm2_home, _pm2_daemon, _pm2_end),
    Contender("supervisord", _supervisord),
    Contender("circus", _circus),
)


class Running:
    """A contender at work."""

    def __init__(self, contender: Contender, folder: Path, children: int) -> None:
        self.contender = contender
        self.folder = folder
        folder.mkdir()
        self.words = Words(folder / "words")
        script = folder / "child"
        script.write_text(f"#!/bin/sh\necho $$ > {self.words.path}\nexec sleep 1000\n")
        script.chmod(0o755)
        command = contender.launch(folder, script, children)
        self.words.open()
        self._env = {**os.environ, **contender.environment(folder)}
        begun = time.perf_counter()
        self._process = subprocess.Popen(
            command, env=self._env, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.children = self.words.pids(children)
        self.took = time.perf_counter() - begun
        if contender.daemon is not None:
            self._process.wait(PATIENCE)

    def restart(self) -> float:
        """Kill a child -9 and return seconds until its replacement speaks."""
        victim = self.children.pop(0)
        begun = time.perf_counter()
        os.kill(victim, signal.SIGKILL)
        self.children += self.words.pids(1)
        return time.perf_counter() - begun

    def own(self) -> list[psutil.Process]:
        """Return the supervisor's processes: itself and below, without the children and what they run."""
        pid = self.contender.daemon(self.folder) if self.contender.daemon else self._process.pid
        top = psutil.Process(pid)
        return [top, *(one for one in top.children(recursive=True) if one.pid not in self.children)]

    def memory(self) -> float:
        """Return MiB, private and shared pages counted once each (PSS)."""
        return sum(one.memory_full_info().pss for one in self.own()) / 2**20

    def idle(self, seconds: float) -> float:
        """Return percent of one core over `seconds` at rest."""
        before = sum(sum(one.cpu_times()[:2]) for one in self.own())
        time.sleep(seconds)
        return 100 * (sum(sum(one.cpu_times()[:2]) for one in self.own()) - before) / seconds

    def end(self) -> None:
        if self.contender.end is not None:
            subprocess.run(self.contender.end(self.folder), env=self._env, capture_output=True, timeout=60, check=False)
        else:
            # runsvdir leaves its services alone on TERM, and ends them on HUP.
            self._process.send_signal(signal.SIGHUP if self.contender.name == "runit" else signal.SIGTERM)
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for pid in self.children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.words.close()


@contextlib.contextmanager
def running(contender: Contender, top: Path, children: int, label: str) -> Iterator[Running]:
    """Run a contender while entered."""
    one = Running(contender, top / f"{contender.name}-{label}", children)
    try:
        yield one
    finally:
        one.end()


def restarts(contenders: list[Contender], top: Path, rounds: int) -> None:
    """Measure restarts, interleaved."""
    with contextlib.ExitStack() as stack:
        works = [stack.enter_context(running(one, top, 1, "restart")) for one in contenders]
        taken: dict[str, list[float]] = {one.name: [] for one in contenders}
        for _ in range(rounds):
            for work in works:
                taken[work.contender.name].append(work.restart())
                time.sleep(0.05)  # runit waits a second after a life of less than one: see below
                if work.contender.name == "runit":
                    time.sleep(1.0)
    for one in contenders:
        one.figures["restart_ms"] = round(1000 * statistics.median(taken[one.name]), 2)


def crowds(contenders: list[Contender], top: Path, rounds: int, children: int, idle: float) -> None:
    """Measure the start of many, interleaved, and in the last round memory and idle CPU."""
    starts: dict[str, list[float]] = {one.name: [] for one in contenders}
    for number in range(rounds):
        for one in contenders:
            with running(one, top, children, f"crowd{number}") as work:
                starts[one.name].append(work.took)
                if number == rounds - 1:
                    one.figures["memory_mib"] = round(work.memory(), 1)
                    time.sleep(2.0)
                    one.figures["idle_percent"] = round(work.idle(idle), 3)
    for one in contenders:
        one.figures["start_s"] = round(statistics.median(starts[one.name]), 3)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="of restarts")
    parser.add_argument("--starts", type=int, default=3, help="rounds of starts")
    parser.add_argument("--children", type=int, default=200)
    parser.add_argument("--idle", type=float, default=30.0, help="seconds of rest that are measured")
    parser.add_argument("--only", nargs="*", help="names of contenders")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        top = Path(folder)
        there: list[Contender] = []
        missing: dict[str, str] = {}
        for one in CONTENDERS:
            if options.only and one.name not in options.only:
                continue
            try:
                (top / "probe").mkdir()
                one.launch(top / "probe", top / "probe" / "child", 0)
                there.append(one)
            except Missing as reason:
                missing[one.name] = str(reason)
            finally:
                shutil.rmtree(top / "probe")
        restarts(there, top, options.rounds)
        crowds(there, top, options.starts, options.children, options.idle)
    if options.json:
        print(json.dumps({"figures": {one.name: one.figures for one in there}, "missing": missing}))
        return
    print(f"| | kill -9 to replacement | start of {options.children} | memory with them | idle |")
    print("|---|---|---|---|---|")
    for one in there:
        figures = one.figures
        print(
            f"| {one.name} | {figures['restart_ms']} ms | {figures['start_s']} s | {figures['memory_mib']} MiB "
            f"| {figures['idle_percent']} % |"
        )
    for name, reason in missing.items():
        print(f"{name} is missing: {reason}")


if __name__ == "__main__":
    main()
