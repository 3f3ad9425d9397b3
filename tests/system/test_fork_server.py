"""The fork server: it imports beside the supervisor's own work, and that of a program around it is not ours."""

from __future__ import annotations

import asyncio
import importlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path

import psutil
import pytest
from kit import App

from smartipc import Supervisor

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

HEAVY = """
import os, pathlib, time
gate = pathlib.Path(os.environ["GATE"])
while not gate.exists():
    time.sleep(0.01)
imported_by = os.getpid()
async def worker(ipc):
    ipc.set_status("preloaded" if imported_by != os.getpid() else "imported late")
    await ipc.serve()
"""
CONFIG = """
python_path: [.]
defaults: {restart: {delay: 1ms, jitter: 0}}
workers:
  h: {target: "heavy:worker", preload: [heavy], start_timeout: 300ms, instances: 2}
  c: {command: [sleep, "1000"]}
"""


@pytest.fixture
def gate(folder: Path) -> Path:
    """Return the file without which nothing is imported."""
    (folder / "heavy.py").write_text(HEAVY)
    return folder / "gate"


@pytest.fixture
def run(app: Callable[..., App], gate: Path) -> Callable[[], App]:
    return lambda: app(CONFIG, GATE=str(gate))


def test_all_else_goes_on_while_it_imports(run: Callable[[], App], gate: Path) -> None:
    one = run()
    first = one.wait_state("c:0", "ready")
    assert {row["state"] for name, row in one.status().items() if name != "c:0"} == {"starting"}
    os.kill(first["pid"], signal.SIGKILL)
    one.wait_state("c:0", "ready", generation=2)
    assert one.ctl("stop", "h:1").returncode == 0
    begun = time.monotonic()
    while time.monotonic() - begun < 0.8:  # far beyond the start timeout, which is for what each does by itself
        assert one.status()["h:0"]["state"] == "starting"
    gate.touch()
    row = one.wait_state("h:0", "ready")
    assert (row["generation"], row["restarts"], row["status"]) == (1, 0, "preloaded")
    assert one.ctl("start", "h:1").returncode == 0
    assert one.status()["h:1"]["status"] == "preloaded"


def test_all_else_goes_on_while_it_is_started_again(run: Callable[[], App], gate: Path) -> None:
    gate.touch()
    one = run()
    row = one.wait_state("h:0", "ready")
    gate.unlink()
    server = psutil.Process(row["pid"]).ppid()
    assert server != one.pid
    os.kill(server, signal.SIGKILL)
    os.kill(row["pid"], signal.SIGKILL)
    one.wait_state("h:0", "starting", generation=2)
    os.kill(one.status()["c:0"]["pid"], signal.SIGKILL)
    one.wait_state("c:0", "ready", generation=2)
    assert one.status()["h:1"]["generation"] == 1, "whoever lives is left alone"
    gate.touch()
    assert one.wait_state("h:0", "ready", generation=2)["status"] == "preloaded"


def test_the_app_ends_at_once_while_it_imports(run: Callable[[], App]) -> None:
    one = run()
    one.wait_state("c:0", "ready")
    assert one.process is not None
    one.process.terminate()
    assert one.wait_ended(5) == 0
    one.wait_gone()


def test_a_module_that_kills_it_is_a_failed_start(app: Callable[..., App], folder: Path) -> None:
    (folder / "heavy.py").write_text("import os\nos._exit(3)\n")
    one = app(CONFIG.replace("jitter: 0", "jitter: 0, max_restarts: 2"))
    row = one.wait_state("h:0", "failed")
    assert row["last_exit"]["reason"] == "cannot start: the fork server has died of what it was to import"
    assert row["restarts"] == 2
    one.wait_state("c:0", "ready")
    (folder / "heavy.py").write_text("async def worker(ipc):\n    await ipc.serve()\n")
    assert one.ctl("start", "h").returncode == 0


def test_a_program_keeps_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "kept.py").write_text(
        "import os\n"
        "def wait(event):\n    event.wait(60)\n    os._exit(7)\n"
        "async def worker(ipc):\n    await ipc.serve()\n"
    )
    monkeypatch.syspath_prepend(folder)
    context = multiprocessing.get_context("forkserver")
    event = context.Event()
    child = context.Process(target=importlib.import_module("kept").wait, args=(event,))
    child.start()
    server = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]

    async def embed() -> None:
        config = {"python_path": [str(folder)], "workers": {"w": {"target": "kept:worker"}}}
        async with asyncio.timeout(60), Supervisor(config) as supervisor:
            (row,) = await supervisor.wait("w")
            assert psutil.Process(row.pid).ppid() not in (server, os.getpid())

    try:
        asyncio.run(embed())
        assert forkserver._forkserver._forkserver_pid == server  # type: ignore[attr-defined]
        event.set()
        child.join(30)
        assert child.exitcode == 7, "its fork server lives, and tells"
    finally:
        event.set()
        forkserver._forkserver._stop()  # type: ignore[attr-defined]
