"""When something runs out: the supervisor lives, says what is wrong, and recovers when the cause is gone."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from kit import App, marked, wait_for

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

TARGETS = """
async def w(ipc):
    ipc.handler("ping")(lambda word: word)
    await ipc.serve()
"""
HASTY = "restart: {delay: 50ms, max_delay: 200ms, max_restarts: 100000, window: 1h}"


@pytest.fixture
def run(app: Callable[..., App], folder: Path) -> Callable[[str], App]:
    (folder / "targets.py").write_text(TARGETS)
    return lambda workers: app(f"app: t\npython_path: [.]\ndefaults: {{{HASTY}}}\nworkers:\n{workers}")


def allow(pid: int, descriptors: int | None) -> None:
    """Limit the descriptors of a process to what it has and some more, or no longer."""
    _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir(f"/proc/{pid}/fd")))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (hard if descriptors is None else highest + 1 + descriptors, hard))


@pytest.mark.parametrize("room", range(8))
@pytest.mark.parametrize(
    "kind", ["{command: [sleep, '1000'], ", "{target: 'targets:w', ", "{target: 'targets:w', start_method: spawn, "]
)
def test_without_descriptors_starts_fail_and_are_tried_again(run: Callable[[str], App], kind: str, room: int) -> None:
    one = run(f"  w: {kind}instances: 1}}\n")
    first = one.wait_state("w:0", "ready")
    allow(one.pid, room)
    scaled = one.ctl("scale", "w=4", "--no-wait")
    assert scaled.returncode == 0, scaled.stderr
    wait_for(lambda: "Too many open files" in one.err.read_text(), "it says what is missing")
    status = one.ctl("status", "w:0")
    assert status.returncode == 0, "commands are let in all the same"
    assert one.status()["w:0"]["pid"] == first["pid"]
    allow(one.pid, None)
    for slot in range(4):
        one.wait_state(f"w:{slot}", "ready")
    assert one.status()["w:0"]["restarts"] == 0
    assert "Traceback" not in one.err.read_text()
    lives = {row["pid"] for row in one.status().values()}
    known = {process.pid for process in marked(one.mark) if "sleep" in process.cmdline()[:1]}
    assert known <= lives, "nothing runs that nobody looks after"
    os.kill(one.pid, signal.SIGTERM)
    assert one.wait_ended() == 0


def test_ours_are_raised_and_children_keep_what_they_had(run: Callable[[str], App], folder: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard // 2, hard))
    try:
        one = run(
            "  c: {command: [sleep, '1000']}\n  f: {target: 'targets:w'}\n  g: {target: 'targets:w', spares: 1}\n"
            "  own: {command: [sleep, '1000'], limits: {open_files: 99}}\n"
        )
        rows = {name: one.wait_state(f"{name}:0", "ready") for name in ("c", "f", "g", "own")}
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert resource.prlimit(one.pid, resource.RLIMIT_NOFILE) == (hard, hard)
    given = {name: psutil.Process(row["pid"]).rlimit(psutil.RLIMIT_NOFILE)[0] for name, row in rows.items()}
    assert given == {"c": hard // 2, "f": hard // 2, "g": hard // 2, "own": 99}


CALLER = """
import asyncio

async def caller(ipc):
    ok = bad = 0
    ipc.handler("counts")(lambda _: [ok, bad])
    await ipc.ready()
    while not ipc.stopping:
        try:
            await ipc.request("w.ping", 1, timeout=10)
            ok += 1
        except Exception as error:
            bad += 1
            print(repr(error), flush=True)
        await asyncio.sleep(0.01)
"""


def test_a_runtime_directory_that_is_deleted_is_made_again(run: Callable[[str], App], folder: Path) -> None:
    (folder / "calling.py").write_text(CALLER)
    one = run(
        "  w: {target: 'targets:w', instances: 2, ready: ipc}\n  c: {command: [sleep, '1000']}\n"
        "  load: {target: 'calling:caller', ready: ipc}\n"
    )
    for name in ("w:0", "w:1", "c:0", "load:0"):
        one.wait_state(name, "ready")
    command = one.status()["c:0"]["pid"]
    shutil.rmtree(folder / "r")
    (folder / "r").mkdir(mode=0o700)
    wait_for(lambda: "made again" in one.err.read_text(), "it is noticed")
    again = subprocess.run(one.process.args, env=one.env, capture_output=True, text=True, timeout=20, check=False)  # type: ignore[union-attr]
    assert again.returncode == 3, "there is no second one"
    for name in ("w:0", "w:1", "load:0"):
        one.wait_state(name, "ready", generation=2)
    wait_for(lambda: {row["state"] for row in one.status().values()} == {"ready"}, "all is as it was")
    rows = one.status()
    assert rows["c:0"]["pid"] == command
    assert {row["restarts"] for row in rows.values()} == {0}
    assert one.ctl("request", "w.ping", "7").stdout == "7\n"
    before = one.ctl("request", "load.counts").stdout
    wait_for(lambda: one.ctl("request", "load.counts").stdout != before, "it goes on calling")
    os.kill(rows["w:0"]["pid"], signal.SIGKILL)
    one.wait_state("w:0", "ready", generation=3)
    assert "Error" not in one.out.read_text(), "no call has failed"
    os.kill(one.pid, signal.SIGTERM)
    assert one.wait_ended() == 0
    assert list((folder / "r").rglob("*.sock")) == []


def test_whoever_took_the_place_meanwhile_keeps_it(run: Callable[[str], App], folder: Path) -> None:
    one = run("  c: {command: [sleep, '1000']}\n")
    one.wait_state("c:0", "ready")
    os.kill(one.pid, signal.SIGSTOP)
    shutil.rmtree(folder / "r")
    (folder / "r").mkdir(mode=0o700)
    two = App(folder, one.config).start()
    try:
        two.wait_state("c:0", "ready")
        os.kill(one.pid, signal.SIGCONT)
        assert one.wait_ended() == 1
        assert f"process {two.pid}" in one.err.read_text()
        assert two.status()["c:0"]["restarts"] == 0
        assert two.ctl("status").returncode == 0
    finally:
        os.kill(one.pid, signal.SIGCONT) if one.process.poll() is None else None  # type: ignore[union-attr]
        two.stop()


def test_a_supervisor_that_was_stopped_for_long_restarts_nobody(run: Callable[[str], App]) -> None:
    one = run("  w: {target: 'targets:w', instances: 3, heartbeat: {interval: 100ms, timeout: 500ms}}\n")
    pids = [one.wait_state(f"w:{slot}", "ready")["pid"] for slot in range(3)]
    os.kill(one.pid, signal.SIGSTOP)
    wait_for(lambda: psutil.Process(one.pid).status() == psutil.STATUS_STOPPED, "it stands still")
    time.sleep(1.5)  # three times the timeout of the heartbeats; nothing tells of a stopped supervisor
    os.kill(one.pid, signal.SIGCONT)
    rows = [one.wait_state(f"w:{slot}", "ready") for slot in range(3)]
    assert [row["pid"] for row in rows] == pids
    assert "instance.hang" not in one.err.read_text()
