"""The restart table, dependencies that go and come back, and a supervisor that sleeps, with real processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from kit import App, wait_for

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

ONCE = "delay: 1ms, max_restarts: 1"


def wait_for_beats(one: App) -> None:
    """Wait until every instance has sent a heartbeat since this call."""
    begun = time.monotonic()

    def all_beat() -> bool:
        rows = one.status().values()
        return bool(rows) and all(row["heartbeat_age"] < time.monotonic() - begun for row in rows)

    wait_for(all_beat, "fresh heartbeats")


def test_which_ends_are_followed_by_another_life(app: Callable[..., App]) -> None:
    table = {
        "always-well": ("exit 0", f"{{policy: always, {ONCE}}}", "failed", 1, 0),
        "always-ill": ("exit 1", f"{{policy: always, {ONCE}}}", "failed", 1, 1),
        "always-prevented": ("exit 7", f"{{policy: always, prevent_codes: [7], {ONCE}}}", "failed", 0, 7),
        "failure-well": ("exit 0", f"{{{ONCE}}}", "exited", 0, 0),
        "failure-well-enough": ("exit 3", f"{{success_codes: [0, 3], {ONCE}}}", "exited", 0, 3),
        "failure-ill": ("exit 1", f"{{{ONCE}}}", "failed", 1, 1),
        "failure-killed": ("kill -9 $$$$", f"{{{ONCE}}}", "failed", 1, "SIGKILL"),
        "failure-prevented": ("exit 3", f"{{success_codes: [3], prevent_codes: [3], {ONCE}}}", "failed", 0, 3),
        "never-well": ("exit 0", "never", "exited", 0, 0),
        "never-ill": ("exit 1", "never", "failed", 0, 1),
    }
    lines = [f"  {name}: {{command: [sh, -c, '{does}'], restart: {how}}}" for name, (does, how, *_) in table.items()]
    one = app("\n".join(["workers:", *lines]))
    for name, (_does, _how, state, restarts, end) in table.items():
        row = one.wait_state(f"{name}:0", state)
        last = row["last_exit"]
        assert (name, row["restarts"], last["signal"] or last["code"]) == (name, restarts, end)


def test_one_whose_dependency_is_gone_waits_and_resumes(app: Callable[..., App]) -> None:
    one = app("""
workers:
  db: {command: [sleep, "100"]}
  web: {command: [sleep, "100"], depends_on: [db], restart: {delay: 1ms}}
""")
    web = one.wait_state("web:0", "ready")
    assert one.ctl("stop", "db").returncode == 0
    assert one.status()["web:0"]["pid"] == web["pid"], "only starts wait"
    os.kill(web["pid"], signal.SIGKILL)
    assert one.wait_state("web:0", "waiting")["waiting_for"] == ["db"]
    assert one.ctl("start", "db").returncode == 0
    assert one.wait_state("web:0", "ready", generation=2)["restarts"] == 1


def test_a_supervisor_that_slept_kills_nobody(app: Callable[..., App], folder: Path) -> None:
    (folder / "w.py").write_text("async def w(ipc):\n    await ipc.serve()\n")
    one = app("""
python_path: [.]
workers:
  w: {target: "w:w", instances: 2, heartbeat: {interval: 200ms, timeout: 700ms}}
""")
    pids = [one.wait_state(f"w:{slot}", "ready")["pid"] for slot in range(2)]
    for _ in range(2):
        os.kill(one.pid, signal.SIGSTOP)
        time.sleep(1.5)  # twice what counts as a hang: this is what is tried, not waited for
        os.kill(one.pid, signal.SIGCONT)
        wait_for_beats(one)
    assert [row["pid"] for row in one.status().values()] == pids
    assert [event for event in one.events() if event["event"] == "instance.hang"] == []
