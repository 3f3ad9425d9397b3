"""Groups with real processes: what is stopped and restarted together, read from the events."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest
from kit import App, wait_for

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

SLEEP = "{command: [sleep, '1000'], restart: {delay: 50ms, jitter: 0}"


def start(app: Callable[..., App], group: str, *, more: str = "") -> App:
    workers = "\n".join(
        f"  {name}: {SLEEP}{extra}}}" for name, extra in (("a", ""), ("b", ""), ("c", ""), ("lone", ""))
    )
    one = app(f"app: t\nworkers:\n{workers}\n{more}groups:\n  g: {{members: [a, b, c], {group}}}\n")
    for name in ("a", "b", "c", "lone"):
        one.wait_state(f"{name}:0", "ready")
    return one


def kill(one: App, name: str) -> None:
    os.kill(one.status()[f"{name}:0"]["pid"], signal.SIGKILL)


def generations(one: App) -> dict[str, int]:
    return {instance[0]: row["generation"] for instance, row in one.status().items()}


def moves(one: App, state: str) -> list[str]:
    return [event["instance"] for event in one.events() if event["to"] == state]


def test_rest_for_one(app: Callable[..., App]) -> None:
    one = start(app, "strategy: rest-for-one")
    kill(one, "b")
    one.wait_state("b:0", "ready", generation=2)
    one.wait_state("c:0", "ready", generation=2)
    assert generations(one) == {"a": 1, "b": 2, "c": 2, "l": 1}
    assert moves(one, "stopping") == ["c:0"]
    assert moves(one, "starting")[-2:] == ["b:0", "c:0"]


def test_one_for_all(app: Callable[..., App]) -> None:
    one = start(app, "strategy: one-for-all")
    kill(one, "b")
    for name in "abc":
        one.wait_state(f"{name}:0", "ready", generation=2)
    assert generations(one) == {"a": 2, "b": 2, "c": 2, "l": 1}
    assert moves(one, "stopping") == ["c:0", "a:0"]
    assert moves(one, "starting")[-3:] == ["a:0", "b:0", "c:0"]


def test_a_spent_group_ends_the_app_if_it_says_so(app: Callable[..., App]) -> None:
    one = start(app, "max_restarts: 1, on_failed: shutdown")
    kill(one, "a")
    one.wait_state("a:0", "ready", generation=2)
    kill(one, "b")
    assert one.wait_ended() == 1
    assert "restart budget of group g spent: 1 in 60 s" in one.err.read_text()


def test_a_significant_end_ends_its_group_and_the_idle_app(app: Callable[..., App]) -> None:
    one = app(
        "app: t\nsupervisor: {on_idle: exit}\nworkers:\n"
        "  helper: {command: [sleep, '1000']}\n"
        "  job: {command: [sleep, '0.3'], significant: true}\n"
        "groups:\n  g: {members: [helper, job], auto_shutdown: all-significant}\n"
    )
    assert one.wait_ended() == 0
    assert wait_for(lambda: "job:0 has ended, group g ends with it" in one.err.read_text(), "the reason is logged")
