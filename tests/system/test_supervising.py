"""Promises about processes, seen from outside: real supervisors, real workers, real signals."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from kit import App, alive, marked, transitions, wait_for

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

TARGETS = """
import asyncio, json, os, signal, subprocess, sys, time
import msgspec
from smartipc import Method, Topic

class Number(msgspec.Struct):
    n: int

double = Method("pool.double", Number, int, idempotent=True)
slow = Method("pool.slow", Number, int)
ticks = Topic("ticks", int)

async def pool(ipc):
    @ipc.handler(double)
    def _(request: Number) -> int:
        return request.n * 2
    @ipc.handler(slow)
    async def _(request: Number) -> int:
        await asyncio.sleep(request.n)
        return os.getpid()
    @ipc.handler("pid")
    def _(_):
        return os.getpid()
    @ipc.handler("env")
    def _(_):
        return {k: v for k, v in os.environ.items() if k.startswith("SMARTIPC_") and "TEST" not in k}
    await ipc.serve()

def blocking_pool(ipc):
    @ipc.handler("pid")
    def _(_):
        return os.getpid()
    ipc.serve()

async def crash(ipc):
    raise ValueError("broken by design")

async def leave(ipc, code):
    raise SystemExit(code)

async def done(ipc):
    return None

async def stubborn(ipc):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    await ipc.ready()
    while True:
        time.sleep(1)

async def family(ipc):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    ipc.set_status(str(child.pid))
    await ipc.serve()

async def hang(ipc):
    await ipc.ready()
    if ipc.generation == 1:
        await asyncio.sleep(0.1)
        while True:
            pass
    await ipc.serve()

async def client(ipc):
    task = asyncio.ensure_future(ipc.request(slow, Number(60)))
    await ipc.request("pool.pid")  # the link is there, and the slow one on its way
    pid = await ipc.request("pool.pid")  # behind the slow one: that has come, too
    begun = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    try:
        await task
    except Exception as error:
        took = time.monotonic() - begun
        print(json.dumps([type(error).__name__, error.instance, error.signal, error.processed, took]), flush=True)
    await ipc.serve()

async def publisher(ipc):
    await ipc.stopped()

async def listener(ipc):
    async with ipc.subscribe(ticks) as messages:
        await ipc.ready()
        async for message in messages:
            print("tick", message.payload, message.sender, flush=True)

async def ticker(ipc):
    for number in range(200):
        await ipc.publish(ticks, number)

def reporter(ipc):
    ipc.progress(3, 10)
    ipc.set_status("half way")
    sys.stdout.write("no newline at the end")
    sys.stderr.write("to stderr\\n")
    ipc.serve()
"""


@pytest.fixture
def run(app: Callable[..., App], folder: Path) -> Callable[..., App]:
    (folder / "targets.py").write_text(TARGETS)

    def start(workers: str, top: str = "", **env: str) -> App:
        indented = "\n".join(f"  {line}" for line in workers.strip().splitlines())
        return app(f"app: t\npython_path: [.]\n{top}\nworkers:\n{indented}\n", **env)

    return start


def test_a_crashing_worker_backs_off_and_fails_and_the_others_go_on(run: Callable[..., App]) -> None:
    one = run(
        "bad: {target: 'targets:crash', restart: {delay: 5ms, max_delay: 10s, jitter: 0, max_restarts: 9}}\n"
        "pool: {target: 'targets:pool'}"
    )
    row = one.wait_state("bad:0", "failed", timeout=40)
    assert (row["restarts"], row["generation"]) == (9, 10)
    assert row["last_exit"]["code"] == 1
    assert "ValueError: broken by design" in row["last_exit"]["reason"]
    waits = [event["next_restart_in"] for event in one.events() if event["to"] == "backoff"]
    assert waits == pytest.approx([0.005 * 2**n for n in range(9)])
    assert one.wait_state("pool:0", "ready")["restarts"] == 0
    status = one.ctl("status")
    assert status.returncode == 1
    assert "failed: bad:0" in status.stderr
    assert "broken by design" in one.ctl("logs", "bad").stdout


def test_exit_codes_of_the_app(run: Callable[..., App], folder: Path) -> None:
    one = run(
        "w: {target: 'targets:leave', args: [3], restart: never, on_failed: shutdown}\npool: {target: 'targets:pool'}"
    )
    assert one.wait_ended() == 1
    assert "exit code 3" in one.err.read_text()


def test_an_app_that_is_done_leaves_with_zero(run: Callable[..., App]) -> None:
    one = run("w: {target: 'targets:done'}\nc: {command: ['true']}", "supervisor: {on_idle: exit}")
    assert one.wait_ended() == 0
    one.wait_gone()


def test_a_second_supervisor_is_refused_and_a_killed_one_replaced(run: Callable[..., App]) -> None:
    one = run("pool: {target: 'targets:pool', stop: {timeout: 1s}}")
    one.wait_state("pool:0", "ready")
    again = subprocess.run(one.process.args, env=one.env, capture_output=True, text=True, timeout=20, check=False)  # type: ignore[union-attr]
    assert again.returncode == 3
    assert str(one.pid) in again.stderr
    os.kill(one.pid, signal.SIGKILL)
    one.wait_ended()
    one.wait_gone(3.0)
    one.start()
    one.wait_state("pool:0", "ready")


@pytest.mark.parametrize("method", ["forkserver", "spawn", "fork"])
@pytest.mark.parametrize("target", ["pool", "blocking_pool"])
def test_start_methods_and_flavours(run: Callable[..., App], method: str, target: str) -> None:
    one = run(f"pool: {{target: 'targets:{target}', start_method: {method}, instances: 2}}")
    first = one.wait_state("pool:0", "ready")
    one.wait_state("pool:1", "ready")
    done = one.ctl("request", "pool.pid", "--slot", "0")
    assert json.loads(done.stdout) == first["pid"]
    os.kill(first["pid"], signal.SIGKILL)
    row = one.wait_state("pool:0", "ready", generation=2)
    assert (row["restarts"], row["last_exit"]["signal"]) == (1, "SIGKILL")
    assert one.ctl("signal", "pool:1", "QUIT").returncode == 0
    row = one.wait_state("pool:1", "ready", generation=2)
    assert row["last_exit"]["signal"] == "SIGQUIT", "no signal is handled that the worker does not handle"
    assert {json.loads(line)["instance"] for line in one.ctl("broadcast", "pool.pid").stdout.splitlines()} == {
        "pool:0",
        "pool:1",
    }
    os.kill(one.pid, signal.SIGTERM)
    assert one.wait_ended() == 0
    one.wait_gone()


def test_orders(run: Callable[..., App]) -> None:
    one = run("pool: {target: 'targets:pool', instances: 2}\nc: {command: [sleep, '1000']}")
    one.wait_state("pool:1", "ready")
    one.wait_state("c:0", "ready")
    assert one.ctl("stop", "pool:0", "c").returncode == 0
    rows = one.status()
    assert [rows[name]["state"] for name in ("pool:0", "pool:1", "c:0")] == ["stopped", "ready", "stopped"]
    assert one.ctl("start", "all").returncode == 0
    assert one.ctl("restart", "pool:1").returncode == 0
    rows = one.status()
    assert {row["state"] for row in rows.values()} == {"ready"}
    assert [rows[name]["generation"] for name in ("pool:0", "pool:1", "c:0")] == [2, 2, 2]
    assert {row["restarts"] for row in rows.values()} == {0}
    unknown = one.ctl("stop", "nobody")
    assert unknown.returncode == 4
    assert "nobody" in unknown.stderr
    assert one.ctl("status", "nobody").returncode == 4
    assert one.ctl("frobnicate").returncode == 2
    assert one.ctl("shutdown").returncode == 0
    assert one.wait_ended() == 0
    assert one.ctl("status").returncode == 3


def test_a_command_that_does_not_exist_is_a_failed_try(run: Callable[..., App]) -> None:
    one = run(
        "c: {command: [no-such-program], restart: {delay: 10ms, max_restarts: 1}}\n"
        "d: {target: 'nowhere:f', restart: never}"
    )
    assert "no-such-program" in one.wait_state("c:0", "failed")["last_exit"]["reason"]
    assert "no module named 'nowhere'" in one.wait_state("d:0", "failed")["last_exit"]["reason"]
    check = one.ctl("check", str(one.config), "--import")
    assert check.returncode == 2
    assert "workers.d.target" in check.stderr


def test_the_grace_ends_with_a_kill_and_the_whole_group_goes(run: Callable[..., App]) -> None:
    one = run("s: {target: 'targets:stubborn', stop: {timeout: 500ms}, heartbeat: off}\nf: {target: 'targets:family'}")
    one.wait_state("s:0", "ready")
    one.wait_state("f:0", "ready")
    child = int(wait_for(lambda: one.status()["f:0"]["status"], "the child is known"))
    begun = time.monotonic()
    assert one.ctl("stop", "s").returncode == 0
    assert 0.4 < time.monotonic() - begun < 5
    assert one.status()["s:0"]["last_exit"]["signal"] == "SIGKILL"
    os.kill(one.status()["f:0"]["pid"], signal.SIGKILL)
    one.wait_state("f:0", "ready", generation=2)
    assert not alive(child)


def test_a_second_signal_skips_the_grace(run: Callable[..., App]) -> None:
    one = run(
        "s: {target: 'targets:stubborn', stop: {timeout: 60s}, heartbeat: off}", "supervisor: {shutdown_timeout: 60s}"
    )
    one.wait_state("s:0", "ready")
    os.kill(one.pid, signal.SIGTERM)
    wait_for(lambda: "s:0: stopping" in one.err.read_text(), "it stops")
    os.kill(one.pid, signal.SIGTERM)
    assert one.wait_ended(10) == 0


def test_a_hang_is_noticed_its_stacks_are_logged_and_it_is_replaced(run: Callable[..., App]) -> None:
    one = run("h: {target: 'targets:hang', heartbeat: {interval: 200ms, timeout: 1s}}")
    row = one.wait_state("h:0", "ready", generation=2)
    assert "no heartbeat for 1 s" in row["last_exit"]["reason"]
    assert row["last_exit"]["signal"] in ("SIGABRT", "SIGKILL")
    assert "Fatal Python error: Aborted" in one.err.read_text()
    assert "in hang" in one.err.read_text()
    events = one.events()
    assert ("ready", "degraded") in list(transitions(events, "h:0"))
    (written,) = [event for event in events if event["event"] == "instance.stacks"]
    assert written["stacks"][0] == "Fatal Python error: Aborted"
    assert any("control.py" in line for line in written["stacks"]), "of all threads"
    assert "in hang" in written["cause"]
    assert "in hang" in row_of_exit(events, "h:0")["stderr_tail"][-1]
    why = one.ctl("why", "h").stdout
    assert "innermost first:\n    File" in why
    assert re.search(r"line \d+ in hang\n  what happened", why), "its own code, and nothing below"
    assert "bootstrap.py" not in why
    assert "bootstrap.py" in one.ctl("why", "h", "--stacks").stdout
    (report,) = json.loads(one.ctl("why", "h", "--json").stdout)["instances"]
    assert report["stacks"] == written["stacks"]
    assert "in hang" in report["hung_in"][-1]
    os.kill(row["pid"], signal.SIGKILL)
    one.wait_state("h:0", "ready", generation=3)
    exits = [event["exit"] for event in one.events() if event["to"] == "backoff"]
    assert [len(facts["stderr_tail"]) > 0 for facts in exits] == [True, False], "each tail is of one life"


def row_of_exit(events: list[dict[str, Any]], instance: str) -> dict[str, Any]:
    """Return the exit facts of the first end of an instance."""
    facts: dict[str, Any] = next(event["exit"] for event in events if event["instance"] == instance and event["exit"])
    return facts


def test_a_dead_worker_is_told_apart_within_200_ms(run: Callable[..., App]) -> None:
    one = run("pool: {target: 'targets:pool'}\nclient: {target: 'targets:client'}")
    wait_for(lambda: "WorkerDied" in one.out.read_text(), "the death is told")
    told = json.loads(one.out.read_text().partition("client:0 | ")[2].splitlines()[0])
    assert told[:4] == ["WorkerDied", "pool:0", "SIGKILL", "maybe"]
    assert told[4] < 0.2


def test_no_slow_joiner_and_order_per_publisher(run: Callable[..., App]) -> None:
    one = run(
        "listener: {target: 'targets:listener', instances: 2, depends_on: {}}\n"
        "ticker: {target: 'targets:ticker', instances: 2, depends_on: {listener: ready}}"
    )
    one.wait_state("ticker:0", "exited")
    one.wait_state("ticker:1", "exited")
    wait_for(lambda: one.out.read_text().count("tick 199") == 4, "the last tick of both reached both")
    lines = one.out.read_text().splitlines()
    for listener in ("listener:0", "listener:1"):
        for ticker in ("ticker:0", "ticker:1"):
            got = [line for line in lines if line.startswith(listener) and line.endswith(ticker)]
            assert [int(line.split()[3]) for line in got] == list(range(200))


def test_environment_status_progress_and_output(run: Callable[..., App]) -> None:
    one = run(
        "pool: {target: 'targets:pool', env: {SMARTIPC_X: y}}\nr: {target: 'targets:reporter', instances: 2}\n"
        "c: {command: [sh, -c, 'echo $SMARTIPC_INSTANCE $SMARTIPC_GENERATION; exec sleep 1000']}"
    )
    one.wait_state("r:1", "ready")
    one.wait_state("pool:0", "ready")
    environment = json.loads(one.ctl("request", "pool.env").stdout)
    run_id = environment.pop("SMARTIPC_RUN_ID")
    assert re.fullmatch("[0-9a-f]{32}", run_id)
    assert environment == {
        "SMARTIPC_APP": "t",
        "SMARTIPC_WORKER": "pool",
        "SMARTIPC_INSTANCE": "pool:0",
        "SMARTIPC_SLOT": "0",
        "SMARTIPC_GENERATION": "1",
        "SMARTIPC_X": "y",
    }
    wait_for(lambda: one.status()["r:0"]["status"] == "half way", "the status is told with the next beat")
    row = one.status()["r:0"]
    assert row["progress"] == {"done": 3.0, "total": 10.0}
    assert row["heartbeat_age"] < 5
    assert row["memory"] > 1_000_000
    assert "r:0 | to stderr\n" in one.err.read_text()
    one.wait_state("c:0", "ready")
    wait_for(lambda: "c:0 | c:0 1\n" in one.out.read_text(), "the command's output")
    one.ctl("shutdown")
    assert one.wait_ended() == 0
    assert "r:1 | no newline at the end\n" in one.out.read_text()


def test_commands_die_with_a_killed_supervisor(run: Callable[..., App]) -> None:
    one = run("c: {command: [sleep, '1000'], instances: 3}")
    one.wait_state("c:2", "ready")
    os.kill(one.pid, signal.SIGKILL)
    one.wait_ended()
    one.wait_gone(2.0)


def test_a_killed_guardian_is_replaced_at_once(app: Callable[..., App], folder: Path) -> None:
    one = app("""
workers:
  w: {command: [sh, -c, "setsid sleep 4711 & exec sleep 4712"], stop: {timeout: 1s}}
""")
    one.wait_state("w:0", "ready")

    def guardian() -> int | None:
        for child in psutil.Process(one.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):  # the one that was killed, until it is waited for
                if any("guardian.py" in word for word in child.cmdline()):
                    return child.pid
        return None

    first = wait_for(guardian, "a guardian")
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: guardian() not in (None, first), "another guardian")
    assert f"the guardian, process {first}, died" in one.err.read_text()
    os.kill(one.pid, signal.SIGKILL)
    wait_for(lambda: not marked(one.mark), "everything is gone, what escaped too", timeout=10)


def test_calls_of_a_person(run: Callable[..., App]) -> None:
    one = run("pool: {target: 'targets:pool'}\nlistener: {target: 'targets:listener'}")
    one.wait_state("pool:0", "ready")
    one.wait_state("listener:0", "ready")
    assert one.ctl("request", "pool.double", '{"n": 21}').stdout == "42\n"
    wrong = one.ctl("request", "pool.double", '{"n": "x"}')
    assert (wrong.returncode, "$.n" in wrong.stderr) == (1, True)
    missing = one.ctl("request", "pool.nothing")
    assert (missing.returncode, "pool.double" in missing.stderr) == (1, True)
    assert one.ctl("request", "nobody.x").returncode == 4
    assert one.ctl("request", "pool.double", "{").returncode == 2
    late = one.ctl("request", "pool.slow", '{"n": 30}', "--timeout", "0.2")
    assert (late.returncode, "RequestTimeout" in late.stderr) == (1, True)
    watch = subprocess.Popen(
        [*one.ctl("status").args[:3], "subscribe", "ti*", "-n", "1"], env=one.env, stdout=subprocess.PIPE, text=True
    )
    refused = watch.communicate(timeout=20)
    assert watch.returncode == 2, refused
    watch = subprocess.Popen(
        [*one.ctl("status").args[:3], "subscribe", ">", "-n", "1"], env=one.env, stdout=subprocess.PIPE, text=True
    )
    while watch.poll() is None and one.ctl("publish", "ticks", "7").returncode == 0:
        continue
    message = json.loads(watch.communicate(timeout=20)[0])
    assert (message["topic"], message["payload"], message["sender"]) == ("ticks", 7, "$supervisor")
    assert "tick 7 $supervisor" in one.out.read_text()


def test_logs_and_events_follow(run: Callable[..., App]) -> None:
    one = run("pool: {target: 'targets:pool'}")
    one.wait_state("pool:0", "ready")
    command = one.ctl("status").args[:3]
    events = subprocess.Popen([*command, "events", "-f", "--json"], env=one.env, stdout=subprocess.PIPE, text=True)
    assert events.stdout is not None
    seqs = [json.loads(events.stdout.readline())["seq"] for _ in range(3)]
    assert seqs == [1, 2, 3]
    one.ctl("restart", "pool")
    while json.loads(events.stdout.readline())["generation"] != 2:
        continue
    events.terminate()
    events.wait()
    events.stdout.close()
    last = json.loads(one.ctl("events", "--json").stdout.splitlines()[-1])
    assert one.ctl("events", "--json", "--since", str(last["seq"])).stdout == ""
    assert set(last) >= {"seq", "at", "event", "instance", "generation", "from", "to", "cause", "pid", "exit"}


def test_garbage_on_the_sockets_hurts_nobody(run: Callable[..., App], folder: Path) -> None:
    import socket

    one = run("pool: {target: 'targets:pool'}")
    one.wait_state("pool:0", "ready")
    with contextlib.ExitStack() as stack:  # all at once: each is let wait until it may be known
        strangers = []
        for path in (folder / "r").rglob("*.sock"):
            for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 5000, b"\x89SIPC\r\n\x01" + b"\xff" * 5000, b""):
                sock = stack.enter_context(socket.socket(socket.AF_UNIX))
                sock.connect(str(path))
                sock.sendall(garbage)
                sock.shutdown(socket.SHUT_WR)
                strangers.append(sock)
        assert len(strangers) >= 8
        for sock in strangers:
            while sock.recv(4096):
                continue
    assert one.ctl("request", "pool.double", '{"n": 4}').stdout == "8\n"
    assert one.status()["pool:0"]["restarts"] == 0
    assert len(marked(one.mark)) >= 3


def test_modules_of_python_path_are_preloaded(run: Callable[..., App], folder: Path) -> None:
    (folder / "heavy.py").write_text(
        "import os\nimported_by = os.getpid()\n"
        "async def worker(ipc):\n"
        "    ipc.set_status('preloaded' if imported_by != os.getpid() else 'imported late')\n"
        "    await ipc.serve()\n"
    )
    one = run("h: {target: 'heavy:worker', preload: [heavy]}")
    one.wait_state("h:0", "ready")
    assert wait_for(lambda: one.status()["h:0"]["status"], "the worker tells") == "preloaded"
