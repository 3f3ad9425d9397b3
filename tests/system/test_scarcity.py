"""When something runs out: the supervisor lives, says what is wrong, and recovers when the cause is gone."""

from __future__ import annotations

import os
import resource
import signal
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
