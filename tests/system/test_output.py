"""Output of real children: chatty ones, partial lines, files, JSON, events over restarts of the supervisor."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from kit import BIN, App, alive, wait_for

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

CHATTY = """
supervisor: {on_idle: exit}
workers:
  chatty:
    command: [sh, -c, "yes 'a line of output that is about as long as lines of logs usually are, eighty bytes' | head -c 200000000; echo done"]
    logs: {stdout: "{instance}.log", max_bytes: 1MiB, backups: 2}
"""  # noqa: E501


def test_two_hundred_megabytes_neither_freeze_the_child_nor_grow_the_supervisor(
    app: Callable[..., App], folder: Path
) -> None:
    one = app(CHATTY)
    supervisor = psutil.Process(one.pid)
    wait_for((folder / "chatty:0.log").exists, "the child writes")
    before = supervisor.memory_info().rss
    peak = before

    def ended() -> bool:
        nonlocal peak
        assert one.process is not None
        if one.process.poll() is not None:
            return True
        peak = max(peak, supervisor.memory_info().rss)
        return False

    wait_for(ended, "all is written", 60)
    assert one.process is not None
    assert one.process.returncode == 0
    assert peak - before < 8 * 2**20
    logs = sorted(path.name for path in folder.glob("chatty*"))
    assert logs == ["chatty:0.log", "chatty:0.log.1", "chatty:0.log.2"]
    assert all((folder / name).stat().st_size <= 2**20 for name in logs)
    assert (folder / "chatty:0.log").read_bytes().endswith(b"done\n")


def test_partial_lines_and_both_streams_arrive(app: Callable[..., App]) -> None:
    one = app("""
workers:
  w: {command: [sh, -c, "printf 'out, no end'; printf 'err, no end' >&2; exec sleep 0"], restart: never}
""")
    one.wait_state("w:0", "exited")
    assert "w:0 | out, no end\n" in one.out.read_text()
    assert "w:0 | err, no end\n" in one.err.read_text()
    shown = one.ctl("logs", "w", "--json").stdout.splitlines()
    assert all({"at", "level", "instance"} <= set(line) for line in map(json.loads, shown))
    assert all(line["at"].endswith("Z") for line in map(json.loads, shown))
    lines = {line["stream"]: line["message"] for line in map(json.loads, shown)}
    assert lines == {"stdout": "out, no end", "stderr": "err, no end"}


def test_a_restart_is_marked_between_the_lines(app: Callable[..., App]) -> None:
    one = app("""
workers:
  w: {command: [sh, -c, "echo hello; exec sleep 100"], restart: {delay: 1ms}}
""")
    row = one.wait_state("w:0", "ready")
    wait_for(lambda: one.ctl("logs", "w").stdout.count("hello") == 1, "its first words")
    os.kill(row["pid"], signal.SIGKILL)
    row = one.wait_state("w:0", "ready", generation=2)
    wait_for(lambda: one.ctl("logs", "w").stdout.count("hello") == 2, "its words again")
    assert one.ctl("logs", "w").stdout.splitlines() == [
        "w:0 | hello",
        f"w:0 | --- generation 2 begins, process {row['pid']} ---",
        "w:0 | hello",
    ]


def test_json_logs_are_one_object_a_line(app: Callable[..., App]) -> None:
    one = app("""
supervisor: {on_idle: exit, log: {format: json}}
workers:
  w: {command: [sh, -c, "echo out; echo err >&2"]}
""")
    assert one.wait_ended() == 0
    (out,) = map(json.loads, one.out.read_text().splitlines())
    assert set(out) == {"at", "level", "instance", "stream", "message"}
    assert (out["instance"], out["stream"], out["message"]) == ("w:0", "stdout", "out")
    errors = list(map(json.loads, one.err.read_text().splitlines()))
    assert any(line["stream"] == "stderr" and line["message"] == "err" for line in errors)
    assert all(set(line) == {"at", "level", "instance", "stream", "message"} for line in errors)
    ours = {line["message"]: line["instance"] for line in errors if line["stream"] == "log"}
    assert {name for text, name in ours.items() if text.startswith("w:0: ")} == {"w:0"}
    assert {name for text, name in ours.items() if text.startswith("app ")} == {""}


def test_events_go_on_over_a_restart_of_the_supervisor(app: Callable[..., App], folder: Path) -> None:
    config = "supervisor: {on_idle: exit}\nworkers: {w: {command: [sh, -c, exit]}}\n"
    assert app(config).wait_ended() == 0
    first = [json.loads(line) for line in (folder / "s/smartipc/app/events.jsonl").read_text().splitlines()]
    assert [event["seq"] for event in first] == list(range(1, len(first) + 1))
    one = app("workers: {w: {command: [sleep, '100']}}\n")
    one.wait_state("w:0", "ready")
    now = one.events()
    assert now[0]["seq"] == len(first) + 1
    everything = [json.loads(line) for line in one.ctl("events", "--json", "--since", "0").stdout.splitlines()]
    assert everything == first + now
    assert one.ctl("events", "--since", str(now[-1]["seq"])).stdout == ""


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_an_app_started_with_closed_streams_writes_into_nothing_else(folder: Path, closed: str) -> None:
    one = App(folder, 'workers: {w: {command: [sh, -c, "echo out; echo err >&2; exec sleep 100"]}}')
    one.out.touch()
    one.err.touch()
    command = f"exec {BIN}/smartipc-supervise {one.config} {closed}"
    one.process = subprocess.Popen(["sh", "-c", command], env=one.env, cwd=folder)
    try:
        row = one.wait_state("w:0", "ready")
        wait_for(lambda: len(one.ctl("logs", "w").stdout.splitlines()) == 2, "its lines")
        (lock,) = (folder / "r").rglob("lock")
        assert lock.read_text().strip() == str(one.pid)
        standard = [os.readlink(f"/proc/{one.pid}/fd/{number}") for number in range(3)]
        assert not [name for name in standard if str(folder) in name or name.startswith(("socket", "anon"))]
        one.process.send_signal(signal.SIGTERM)
        assert one.process.wait(10) == 0
        assert not alive(row["pid"])
        assert not lock.exists()
    finally:
        one.stop()


def test_an_instance_that_comes_back_begins_with_an_empty_log(app: Callable[..., App]) -> None:
    one = app("workers:\n  w: {command: [sh, -c, 'echo life $SMARTIPC_SLOT; exec sleep 1000'], instances: 2}\n")
    said = "w:1: life 1"
    wait_for(lambda: "life 1" in one.ctl("logs", "w:1").stdout, said)
    assert one.ctl("scale", "w=1").returncode == 0
    assert one.ctl("scale", "w=2").returncode == 0
    wait_for(lambda: "life 1" in one.ctl("logs", "w:1").stdout, said)
    assert one.ctl("logs", "w:1").stdout.count("life 1") == 1
