"""Jobs on their schedule and workers that are restarted by a change of their files. Real processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from kit import App, wait_for

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]


def test_a_job_runs_again_and_again(app: Callable[..., App], folder: Path) -> None:
    one = app("""
workers:
  job: {command: [sh, -c, "echo run $SMARTIPC_GENERATION >> runs"], schedule: {every: 200ms}}
  rare: {command: [touch, rare], schedule: "0 0 29 2 *"}
  now: {command: [touch, now], schedule: {cron: "0 0 29 2 *", run_on_start: true}}
""")
    runs = folder / "runs"
    wait_for(lambda: runs.exists() and len(runs.read_text().splitlines()) >= 3, "three runs")
    assert runs.read_text().splitlines()[:3] == ["run 1", "run 2", "run 3"]
    rows = one.status()
    assert rows["rare:0"]["state"] == "scheduled"
    assert rows["rare:0"]["next_run_in"] > 0
    assert "next run in" in one.ctl("status", "rare").stdout
    assert not (folder / "rare").exists()
    one.wait_state("now:0", "scheduled")
    assert (folder / "now").exists()
    assert one.ctl("start", "rare").returncode == 0
    assert (folder / "rare").exists(), "a start runs it at once"
    assert one.ctl("stop", "job").returncode == 0
    ran = runs.read_text()
    assert one.status()["job:0"]["next_run_in"] is None
    assert one.ctl("start", "job").returncode == 0
    wait_for(lambda: len(runs.read_text()) > len(ran), "it runs again")


def test_overlapping_runs_are_left_out_or_queued(app: Callable[..., App], folder: Path) -> None:
    one = app("""
workers:
  skip: {command: [sleep, "1000"], schedule: {every: 100ms}}
  queue: {command: [sh, -c, "while [ ! -e go ]; do sleep 0.01; done"], schedule: {every: 100ms, overlap: queue}}
""")
    wait_for(lambda: sum(event["event"] == "instance.skipped" for event in one.events()) >= 2, "runs are left out")
    assert one.status()["skip:0"]["generation"] == 1
    wait_for(lambda: any(event["event"] == "instance.queued" for event in one.events()), "a run is queued")
    (folder / "go").touch()
    one.wait_state("queue:0", "scheduled", "starting", "running", "ready", generation=2)
    assert any("it was due during the last run" in event["cause"] for event in one.events())


def test_a_change_of_files_restarts_what_runs(app: Callable[..., App], folder: Path) -> None:
    (folder / "code").mkdir()
    (folder / "code/a.py").write_text("1")
    one = app("""
workers:
  w: {command: [sleep, "1000"], watch: code}
  down: {command: [sleep, "1000"], watch: code}
""")
    one.wait_state("w:0", "ready")
    assert one.ctl("stop", "down").returncode == 0
    (folder / "code/a.py").write_text("22")
    one.wait_state("w:0", "ready", generation=2)
    wait_for(lambda: "a.py changed, but it is down" in one.err.read_text(), "the other one's watch")
    assert one.status()["down:0"]["state"] == "stopped", "a file does not revive it"
    assert "a.py changed, restarting" in one.err.read_text()
