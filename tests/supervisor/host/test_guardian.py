"""What the guardian does to a run whose supervisor is gone, beside what tests/system sees of it."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from smartipc.supervisor.host import guardian

pytestmark = [pytest.mark.system, pytest.mark.timeout(30)]


def test_what_is_started_while_it_looks_is_killed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = f"run-{os.getpid()}-{tmp_path.name}"
    started: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        started.append(subprocess.Popen(["sleep", "60"], env={**os.environ, "SMARTIPC_RUN_ID": run}))

    listdir = os.listdir

    def then_one_more(path: str) -> list[str]:
        names = listdir(path)
        if len(started) == 1:
            start()
        return names

    monkeypatch.setattr(os, "listdir", then_one_more)
    start()
    try:
        guardian.end_marked(run)
        assert [process.wait(5) for process in started] == [-signal.SIGKILL] * 2
    finally:
        for process in started:
            process.kill()
            process.wait()
