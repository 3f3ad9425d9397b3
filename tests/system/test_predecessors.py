"""Supervisor and guardian killed in the same instant: the next start ends what is left, and touches nobody else's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from kit import App, alive, marked, wait_for

from smartipc.supervisor.host.record import RECORD, Record, read_record

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

CONFIG = """
app: twice
workers:
  c:
    command: [sh, -c, "setsid sh -c 'trap \\"\\" TERM; while :; do sleep 0.1; done' & exec sleep 4711"]
    stop: {timeout: 300ms}
"""


def kill_both(one: App) -> None:
    """Kill the supervisor and its guardian as one: neither sees the other die."""
    both = [
        one.pid,
        *(child.pid for child in psutil.Process(one.pid).children() if "guardian.py" in child.cmdline()[-1]),
    ]
    assert len(both) == 2
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in both:
            os.kill(pid, number)
    one.wait_ended()


def escaped(one: App) -> list[int]:
    """Return what has left its group."""
    return [process.pid for process in marked(one.mark) if "trap" in " ".join(process.cmdline())]


def test_what_both_left_is_ended_before_anything_starts(app: Callable[..., App]) -> None:
    one = app(CONFIG)
    one.wait_state("c:0", "ready")
    (left,) = wait_for(lambda: escaped(one), "a child in a session of its own")
    kill_both(one)
    assert alive(left), "nobody was there to end it"
    born = time.time()
    one.start()
    row = one.wait_state("c:0", "ready")
    assert not alive(left)
    assert psutil.Process(row["pid"]).create_time() >= born + 0.3, "it had its grace before anything started"
    (swept,) = [event for event in one.events() if event["event"] == "app.swept"]
    assert f"({left})" in swept["cause"]
    assert "left by an earlier run" in one.err.read_text()
    (record,) = (one.folder / "r").rglob(RECORD)
    assert len(read_record(record.parent).runs) == 1
    one.stop()
    assert not record.exists()


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_a_stopped_worker_function_is_ended_too(app: Callable[..., App], folder: Path, method: str) -> None:
    (folder / "targets.py").write_text("async def w(ipc):\n    await ipc.serve()\n")
    one = app(
        f"python_path: [.]\nworkers:\n  w: {{target: 'targets:w', start_method: {method}, stop: {{timeout: 1s}}}}\n"
    )
    pid = one.wait_state("w:0", "ready")["pid"]
    os.kill(pid, signal.SIGSTOP)
    kill_both(one)
    one.start()
    one.wait_state("w:0", "ready")
    assert not alive(pid)


@pytest.fixture
def strangers() -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    """Start processes that carry a run id."""
    made = []

    def start(run: str) -> subprocess.Popen[bytes]:
        env = {**os.environ, "SMARTIPC_RUN_ID": run, "SMARTIPC_APP": "twice"}
        made.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"], env=env))
        return made[-1]

    yield start
    for process in made:
        process.kill()
        process.wait()


def test_others_are_not_touched(
    app: Callable[..., App], folder: Path, strangers: Callable[[str], subprocess.Popen[bytes]]
) -> None:
    other = App(folder / "other", CONFIG) if (folder / "other").mkdir() is None else None
    assert other is not None
    other.start()
    try:
        theirs = other.wait_state("c:0", "ready")["pid"]
        one = app(CONFIG)
        one.wait_state("c:0", "ready")
        (record,) = (folder / "r").rglob(RECORD)
        over, unknown = strangers(read_record(record.parent).runs[0]), strangers("0123456789abcdef")
        kill_both(one)
        one.start()
        one.wait_state("c:0", "ready")
        assert over.wait(10) == -signal.SIGTERM
        assert unknown.poll() is None
        assert alive(theirs)
        assert other.status()["c:0"]["restarts"] == 0
    finally:
        other.stop()


def test_told_to_stop_meanwhile_it_leaves_them_to_the_next(app: Callable[..., App]) -> None:
    one = app(CONFIG.replace("300ms", "60s"))
    one.wait_state("c:0", "ready")
    (left,) = wait_for(lambda: escaped(one), "a child in a session of its own")
    kill_both(one)
    one.start()
    wait_for(lambda: "left by an earlier run" in one.err.read_text(), "it looks")
    os.kill(one.pid, signal.SIGTERM)
    assert one.wait_ended(10) == 0
    assert alive(left)
    one.config.write_text(CONFIG)
    one.start()
    one.wait_state("c:0", "ready")
    assert not alive(left)


def test_a_damaged_record_is_no_record(tmp_path: Path) -> None:
    assert read_record(tmp_path) == Record()
    (tmp_path / RECORD).write_text('{"runs": 3')
    assert read_record(tmp_path) == Record()
