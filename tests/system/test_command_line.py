"""The `smartipc` command in a hurry: broken files, wrong names, pipes that close, and apps in trouble."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from kit import BIN, App, wait_for

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]


@pytest.mark.parametrize("top", ["", "supervisor: {runtime_dir: ./r/own}\n"])
def test_a_file_that_was_broken_since_still_names_its_app(app: Callable[..., App], top: str) -> None:
    text = f"app: brittle\n{top}workers: {{c: {{command: [sleep, '1000']}}}}\n"
    one = app(text)
    one.wait_state("c:0", "ready")
    one.config.write_text("app: brittle\nworkers: {c: {comand: [sleep]}}\n")
    status = one.ctl("status", "--json")
    assert (status.returncode, json.loads(status.stdout)["app"]) == (0, "brittle"), status.stderr
    assert one.ctl("restart", "c").returncode == 0
    applied = one.ctl("apply")
    assert applied.returncode == 2
    assert "app.yaml:2:" in applied.stderr
    copy = one.config.with_name("copy.yaml")
    copy.write_text("app: 'brittle'  # a copy of it\nworkers: [\n")
    by_name = subprocess.run(
        [*status.args[:1], "--config", copy, "status"], env=one.env, capture_output=True, timeout=60, check=False
    )
    assert by_name.returncode == 0
    one.config.unlink()
    assert one.ctl("status").returncode == 0
    assert one.ctl("shutdown").returncode == 0
    assert one.wait_ended() == 0
    gone = one.ctl("status")
    assert (gone.returncode, "app.yaml" in gone.stderr) == (2, True), "nothing runs from it, and it tells no name"


TARGETS = r"""
import asyncio, time
from smartipc import Method

double = Method("pool.double", int, int, idempotent=True)

async def pool(ipc):
    ipc.handler(double)(lambda n: n * 2)
    ipc.set_status("all is \x1b[31mred\x07\nsecond line")
    print("evil \x1b[2J\x1b]0;title\x07 line\rback", flush=True)
    await ipc.serve()

def block(ipc):
    ipc.handler("ping")(lambda word: word)
    ipc.serve()

async def stuck(ipc):
    ipc.handler("ping")(lambda word: word)
    await ipc.ready()
    await asyncio.sleep(0.1)
    time.sleep(10_000)

async def flap(ipc):
    raise ValueError("flaps \x1b[2J")

async def failed(ipc):
    raise SystemExit(3)
"""
CONFIG = """
app: hurry
python_path: [.]
workers:
  pool: {target: "targets:pool", instances: 2}
  block: {target: "targets:block"}
  stuck: {target: "targets:stuck", heartbeat: {timeout: 1h}, stop: {timeout: 100ms}}
  flap: {target: "targets:flap", restart: {delay: 300ms, factor: 1, max_restarts: 100000, window: 1h}}
  failed: {target: "targets:failed", restart: never}
  cmd: {command: [sleep, "1000"]}
  job: {command: [echo, hello], schedule: {every: 1h}}
"""
QUESTIONS = [
    (1, "status"), (1, "status --json"), (0, "status pool"), (0, "status pool:1 --json"), (4, "status nobody"),
    (4, "status pool:7"), (1, "status all"), (0, "why"), (0, "why stuck"), (0, "why --json"), (4, "why nobody"),
    (0, "top"), (0, "graph"), (0, "graph --json"), (0, "metrics"), (0, "logs"), (0, "logs flap -n 3"),
    (0, "logs pool --json"), (4, "logs nobody"), (2, "logs -n -3"), (0, "events"), (0, "events --json"),
    (0, "events --since 5 --json"), (2, "events --since x"), (0, "request pool.double 21"),
    (0, 'request block.ping "x"'),
    (1, 'request pool.double "x"'), (4, "request nobody.x"), (1, "request pool.nope"), (2, "request pool.double {"),
    (2, "request pool"), (1, "request stuck.ping 1 --timeout 0.2"), (4, "request pool.double 1 --slot 9"),
    (2, "request pool.double 1 --timeout -1"), (0, "broadcast pool.double 2"), (4, "broadcast nobody.x"),
    (1, "broadcast stuck.ping 1 --timeout 0.2"), (0, "publish a.b 1"), (2, "publish a..b 1"), (2, "publish $sys.x 1"),
    (2, "subscribe a..b"), (0, "dead-letters list"), (0, "dead-letters list --json"), (1, "dead-letters show 99"),
    (2, "dead-letters show x"), (2, "dead-letters"), (0, "--help"), (0, "status -h"), (0, "--version"),
    (0, "completion bash"), (2, "completion tcsh"), (2, "nosuchverb"), (2, "status --nope"), (2, "top --interval 0"),
]  # fmt: skip
ORDERS = [
    (0, "signal cmd CONT"), (2, "signal cmd NOPE"), (4, "signal nobody CONT"), (1, "signal failed CONT"),
    (0, "reset failed"), (4, "reset nobody"), (4, "stop nobody"), (4, "start nobody"), (4, "restart nobody"),
    (4, "reload nobody"), (4, "scale nobody=2"), (2, "scale pool=x"), (2, "scale pool=0"), (2, "stop"),
    (2, "scale"), (0, "scale pool=3"), (0, "scale pool=2 --json"), (0, "restart pool:0"), (0, "reload pool"),
    (0, "reload cmd --json"),
    (0, "stop cmd"), (0, "start cmd"), (1, "start failed"), (1, "start cmd failed --json"),
    (0, "restart flap --no-wait"),
    (0, "stop flap"), (0, "start flap --no-wait"), (0, "apply --dry-run"), (0, "apply"), (0, "apply --json"),
    (2, "apply nofile.yaml"), (0, "chaos kill pool:0"), (2, "chaos nope pool"), (4, "chaos hang nobody"),
    (1, "chaos stop failed"), (0, "stop stuck"), (0, "start stuck --no-wait"), (0, "reset all --json"),
]  # fmt: skip


@pytest.fixture
def troubled(app: Callable[..., App], folder: Path) -> App:
    """An app of all kinds of workers, of which one hangs, one flaps and one has failed."""
    (folder / "targets.py").write_text(TARGETS)
    one = app(CONFIG)
    for name in ("pool:0", "pool:1", "block:0", "stuck:0", "cmd:0"):
        one.wait_state(name, "ready")
    one.wait_state("failed:0", "failed")
    one.wait_state("flap:0", "backoff", generation=2)
    return one


@pytest.mark.parametrize("words", [QUESTIONS, ORDERS], ids=["questions", "orders"])
def test_every_verb_in_an_app_in_trouble(troubled: App, words: list[tuple[int, str]]) -> None:
    wrong = []
    for code, line in words:
        begun = time.monotonic()
        done = troubled.ctl(*line.split())
        took = time.monotonic() - begun
        found = [f"code {done.returncode}: {done.stderr[-200:]}"] if done.returncode != code else []
        found += [f"{took:.1f} s"] if took > 3 else []  # a second, on a machine that has nothing else to do
        found += ["no reason"] if code and not done.stderr else []
        found += ["a control character"] if re.search(r"[^\n\t -~\xa0-\uffff]", done.stdout + done.stderr) else []
        found += ["a traceback"] if "Traceback" in done.stderr else []
        if "--json" in line:
            found += [] if [json.loads(one) for one in done.stdout.splitlines()] else ["no JSON"]
        wrong += [(line, found)] if found else []
    assert wrong == []


def test_no_app_is_told_apart_from_a_wrong_word(folder: Path) -> None:
    env = {**os.environ, "XDG_RUNTIME_DIR": str(folder)}
    env.pop("SMARTIPC_APP", None)
    for code, line in (
        (3, "status"),
        (3, "--app nobody status"),
        (2, "--config nofile status"),
        (2, "request x"),
        (3, "top"),
    ):
        done = subprocess.run(
            [BIN / "smartipc", *line.split()], env=env, capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stdout, bool(done.stderr)) == (code, "", True), line


@pytest.mark.parametrize("line", ["logs -f", "events -f", "events -f --json", "subscribe >", "status --watch", "top"])
def test_ctrl_c_ends_what_follows_without_a_word(troubled: App, line: str) -> None:
    command = [*troubled.ctl("--version").args[:3], *line.split()]
    pid, terminal = pty.fork()
    if not pid:
        os.execve(command[0], command, {**troubled.env, "TERM": "xterm"})
    shown = b""
    try:
        while b"\n" not in shown:
            if select.select([terminal], [], [], 0.2)[0]:
                shown += os.read(terminal, 65536)
            elif "subscribe" in line:
                troubled.ctl("publish", "a.b", "1")
        os.write(terminal, b"\x03")
        told = b""
        with pytest.raises(OSError, match="Input/output error"):
            while True:
                told += os.read(terminal, 65536)
    finally:
        os.close(terminal)  # which hangs up, whatever went wrong
        _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGINT
    assert b"Aborted" not in told
    assert b"KeyboardInterrupt" not in told


def test_a_reader_that_has_enough_ends_it_without_a_word(troubled: App) -> None:
    command = troubled.ctl("--version").args[:3]
    for line in ("logs -f", "events -f", "status --watch"):
        with subprocess.Popen(
            [*command, *line.split()], env=troubled.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as verb:
            assert verb.stdout is not None
            assert verb.stderr is not None
            verb.stdout.readline()
            verb.stdout.close()
            assert verb.wait(30) == 128 + signal.SIGPIPE, line
            assert verb.stderr.read() == b"", line


@pytest.mark.parametrize(("more", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_colours_are_for_terminals_that_want_them(troubled: App, more: dict[str, str], coloured: bool) -> None:
    command = [*troubled.ctl("--version").args[:3], "why", "failed"]
    ours, theirs = pty.openpty()
    env = {**troubled.env, "TERM": "xterm", **more}
    env.pop("NO_COLOR", None) if not more else None
    done = subprocess.run(command, env=env, stdout=theirs, timeout=60, check=False)
    os.close(theirs)
    shown = os.read(ours, 65536)
    os.close(ours)
    assert done.returncode == 0
    assert (b"\x1b[31mfailed\x1b[0m" in shown) == coloured
    assert (b"\x1b" in shown) == coloured


def test_the_supervisors_log_keeps_to_its_lines(troubled: App) -> None:
    text = wait_for(lambda: one if "flaps" in (one := troubled.err.read_text()) else None, "it flaps")
    assert "\x1b" not in text
