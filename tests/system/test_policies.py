"""The restart table, dependencies that go and come back, and a supervisor that sleeps, with real processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from kit import App, marked, wait_for

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


AT_ONCE = "restart: {delay: 0.0001, max_delay: 0.0001, jitter: 0, max_restarts: 1000}"


def states_of(one: App, instance: str) -> list[tuple[int, str]]:
    events = [event for event in one.events() if event["event"] == "instance.state"]
    assert [event["at"] for event in events] == sorted(event["at"] for event in events)
    return [(event["generation"], event["to"]) for event in events if event["instance"] == instance]


def test_a_restart_without_delay_is_told_as_any_other(app: Callable[..., App], folder: Path) -> None:
    script = 'echo "$SMARTIPC_GENERATION" >> generations; exec sleep 1000'
    one = app(f"workers:\n  w: {{command: [sh, -c, '{script}'], {AT_ONCE}}}\n")
    for generation in range(1, 11):
        row = one.wait_state("w:0", "ready", generation=generation)
        os.kill(row["pid"], signal.SIGKILL)
    row = one.wait_state("w:0", "ready", generation=11)
    assert (row["restarts"], row["last_exit"]["signal"]) == (10, "SIGKILL")
    wait_for(lambda: (folder / "generations").read_text().split() == [str(n) for n in range(1, 12)], "all were told")
    life = ["starting", "running", "ready", "backoff"]
    assert states_of(one, "w:0") == [(n, state) for n in range(1, 12) for state in life][:-1]


def test_many_that_die_at_once_are_all_back_and_none_is_doubled(app: Callable[..., App], folder: Path) -> None:
    one = app(f"workers:\n  w: {{command: [sleep, '1000'], instances: 30, {AT_ONCE}}}\n")
    rows = [one.wait_state(f"w:{n}", "ready") for n in range(30)]
    for row in rows:
        os.kill(row["pid"], signal.SIGKILL)
    again = [one.wait_state(f"w:{n}", "ready", generation=2) for n in range(30)]
    assert [row["generation"] for row in again] == [2] * 30
    assert len({row["pid"] for row in again} | {row["pid"] for row in rows}) == 60
    assert len([child for child in marked(one.mark) if child.name() == "sleep"]) == 30


def test_a_successor_that_cannot_be_launched_is_a_failed_try(app: Callable[..., App], folder: Path) -> None:
    program = folder / "program"
    program.write_text("#!/bin/sh\nexec sleep 1000\n")
    program.chmod(0o755)
    one = app(f"workers:\n  w: {{command: [./program], {AT_ONCE.replace('1000', '1')}}}\n")
    row = one.wait_state("w:0", "ready")
    program.rename(folder / "gone")
    os.kill(row["pid"], signal.SIGKILL)
    row = one.wait_state("w:0", "failed")
    assert row["last_exit"]["reason"] == "cannot run './program': No such file or directory"
    assert states_of(one, "w:0")[-3:] == [(1, "backoff"), (2, "starting"), (2, "failed")]


def test_hooks_come_before_a_successor_that_is_due_at_once(app: Callable[..., App], folder: Path) -> None:
    tell = [f"[sh, -c, 'sleep 0.05; echo {what} >> told']" for what in ("before", "after")]
    hooks = f"hooks: {{before_start: [{tell[0]}], after_stop: [{tell[1]}]}}"
    one = app(f"workers:\n  w: {{command: [sh, -c, 'echo run >> told; exec sleep 1000'], {hooks}, {AT_ONCE}}}\n")
    for generation in (1, 2):
        row = one.wait_state("w:0", "ready", generation=generation)
        wait_for(lambda: (folder / "told").read_text().count("run") == generation, "its code runs")  # noqa: B023
        os.kill(row["pid"], signal.SIGKILL)
    one.wait_state("w:0", "ready", generation=3)
    wait_for(lambda: (folder / "told").read_text().count("run") == 3, "the third runs")
    assert (folder / "told").read_text().split() == ["before", "run", *(["after", "before", "run"] * 2)]


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
