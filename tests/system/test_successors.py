"""Successors are launched before anything else is done about an end; told in order, once each, and failing well."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kit import App, transitions, wait_for

pytestmark = pytest.mark.system
RESTART = "restart: {policy: always, delay: 1ms, max_restarts: 50}"
LIFE = [("stopped", "starting"), ("starting", "running"), ("running", "ready")]
NEXT = [("ready", "backoff"), ("backoff", "starting"), *LIFE[1:]]


def kill(row: dict[str, Any]) -> None:
    os.kill(row["pid"], signal.SIGKILL)


def test_many_that_end_at_once_are_each_replaced_once_and_told_in_order(app: Callable[..., App]) -> None:
    one = app(f"app: t\nworkers: {{many: {{command: [sleep, '1000'], instances: 20, {RESTART}}}}}\n")
    rows = [one.wait_state(f"many:{slot}", "ready") for slot in range(20)]
    for row in rows:
        kill(row)
    after = [one.wait_state(f"many:{slot}", "ready", generation=2) for slot in range(20)]
    assert {(row["generation"], row["restarts"]) for row in after} == {(2, 1)}
    assert len({row["pid"] for row in (*rows, *after)}) == 40
    events = one.events()
    for slot in range(20):
        assert list(transitions(events, f"many:{slot}")) == LIFE + NEXT
    assert [event["seq"] for event in events] == list(range(events[0]["seq"], events[0]["seq"] + len(events)))
    assert [event["at"] for event in events] == sorted(event["at"] for event in events)


def test_a_program_that_is_gone_is_tried_again_until_it_is_back(app: Callable[..., App], folder: Path) -> None:
    program, away = folder / "program", folder / "away"
    program.write_text("#!/bin/sh\nexec sleep 1000\n")
    program.chmod(0o755)
    one = app(f"app: t\nworkers: {{one: {{command: ['{program}'], {RESTART}}}}}\n")
    row = one.wait_state("one:0", "ready")
    program.rename(away)
    kill(row)
    row = one.wait_state("one:0", "backoff", generation=3)
    assert "No such file or directory" in row["last_exit"]["reason"]
    away.rename(program)
    one.wait_state("one:0", "ready", generation=4)
    told = list(transitions(one.events(), "one:0"))
    tries = len(told) - len(LIFE + NEXT)
    assert told == LIFE + NEXT[:1] + [("backoff", "starting"), ("starting", "backoff")] * (tries // 2) + NEXT[1:]


def test_hooks_come_before_the_successor(app: Callable[..., App], folder: Path) -> None:
    said = folder / "said"
    said.touch()
    script = f"echo life >>{said}; exec sleep 1000"
    hooks = f"before_start: [[sh, -c, 'echo before >>{said}']]"
    one = app(f"app: t\nworkers: {{one: {{command: [sh, -c, '{script}'], hooks: {{{hooks}}}, {RESTART}}}}}\n")
    for life in range(1, 4):
        row = one.wait_state("one:0", "ready", generation=life)
        told = ["before", "life"] * life
        wait_for(lambda told=told: said.read_text().split() == told, f"{told}")
        kill(row)
