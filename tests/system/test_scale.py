"""Many workers, mass death, many restarts, at a size that fits a test; benchmarks/steady.py goes further."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from kit import App, wait_for

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]
DEFAULTS = "defaults: {restart: {delay: 1ms, max_delay: 1ms, jitter: 0, max_restarts: 100000}, start_timeout: 120s}\n"
KINDS = {"command": 'command: [sleep, "1000"]', "function": 'target: "w:w"'}


@pytest.fixture
def run(app: Callable[..., App], folder: Path) -> Callable[..., App]:
    (folder / "w.py").write_text("async def w(ipc):\n    await ipc.serve()\n")
    return lambda kind, count: app(
        f"python_path: [.]\n{DEFAULTS}workers:\n  w: {{{KINDS[kind]}, instances: {count}}}\n"
    )


def all_ready(one: App, count: int, generation: int) -> dict[str, dict]:
    def look() -> dict[str, dict] | None:
        rows = one.status()
        fine = len(rows) == count and all(
            row["state"] == "ready" and row["generation"] >= generation for row in rows.values()
        )
        return rows if fine else None

    return wait_for(look, "all are ready", 90)


@pytest.mark.parametrize(("kind", "count"), [("command", 100), ("function", 30)])
def test_a_mass_death_is_answered_once_each(run: Callable[..., App], kind: str, count: int) -> None:
    one = run(kind, count)
    rows = all_ready(one, count, 1)
    for row in rows.values():
        os.kill(row["pid"], signal.SIGKILL)
    again = all_ready(one, count, 2)
    assert {row["restarts"] for row in again.values()} == {1}
    assert not {row["pid"] for row in again.values()} & {row["pid"] for row in rows.values()}
    left = [child for child in psutil.Process(one.pid).children() if child.status() == psutil.STATUS_ZOMBIE]
    assert left == []


@pytest.mark.parametrize(("kind", "rounds"), [("command", 150), ("function", 40)])
def test_restarts_leave_nothing_behind(run: Callable[..., App], kind: str, rounds: int) -> None:
    one = run(kind, 1)
    facts = psutil.Process(one.pid)
    row = one.wait_state("w:0", "ready")
    warm: tuple[int, int, int] | None = None
    for number in range(rounds):
        os.kill(row["pid"], signal.SIGKILL)
        row = one.wait_state("w:0", "ready", generation=row["generation"] + 1)
        if number == rounds // 4:
            warm = facts.num_fds(), facts.num_threads(), facts.memory_info().rss
    assert warm is not None
    wait_for(lambda: facts.num_fds() <= warm[0], f"descriptors are as before: {warm[0]}", 5)
    assert facts.num_threads() <= warm[1]
    assert facts.memory_info().rss - warm[2] < 4 * 2**20
