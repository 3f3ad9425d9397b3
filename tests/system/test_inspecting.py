"""The verbs that look closer and disturb, and how fast they answer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from kit import BIN, App, wait_for

from smartipc.ipc import control
from smartipc.ipc.drivers.base import QuietHost
from smartipc.ipc.drivers.blocking import Link
from smartipc.ipc.protocol.connection import Connection
from smartipc.ipc.protocol.handshake import Identity
from smartipc.ipc.transports.unix import UnixSocketTransport
from smartipc.ipc.wire import codec

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

WORKERS = """
import asyncio
async def steady(ipc):
    await ipc.serve()
def blocking(ipc):
    ipc.serve()
async def crash(ipc):
    raise ValueError("broken by design")
"""


@pytest.fixture
def run(app: Callable[..., App], folder: Path) -> Callable[..., App]:
    (folder / "w.py").write_text(WORKERS)
    return lambda text, **env: app("python_path: [.]\n" + text, **env)


def test_why_tells_the_chain_of_causes(run: Callable[..., App]) -> None:
    one = run("""
workers:
  db: {target: "w:crash", restart: {delay: 1000s, max_delay: 2000s, jitter: 0}}
  cache: {command: [sleep, "100"], depends_on: [db]}
  web: {command: [sleep, "100"], depends_on: {cache: started}}
  fine: {command: [sleep, "100"]}
""")
    one.wait_state("db:0", "backoff")
    one.wait_state("fine:0", "ready")
    shown = one.ctl("why", "db").stdout
    assert "db:0 is backoff for 0:00:0" in shown
    assert "exit code 1 (ValueError: broken by design)" in shown
    assert "next try in 99" in shown or "next try in 1000" in shown
    assert "ValueError: broken by design\n" in shown.partition("its last lines:")[2]
    assert "starting -> backoff" in shown or "running -> backoff" in shown
    shown = one.ctl("why", "web").stdout.splitlines()
    assert shown[0].startswith("web:0 is waiting for ")
    assert shown[1].startswith("  waits for cache:0 is waiting ")
    assert shown[2].startswith("    waits for db:0 is backoff ")
    assert "exit code 1" in shown[2]
    everything = one.ctl("why").stdout
    assert "web:0" in everything
    assert "fine:0" not in everything, "only what is not well"
    report = json.loads(one.ctl("why", "web", "--json").stdout)
    assert report["instances"][0]["waits_for"][0]["waits_for"][0]["last_exit"]["code"] == 1
    assert one.ctl("why", "nobody").returncode == 4
    assert one.ctl("why", "fine").stdout.startswith("fine:0 is ready")


def test_why_tells_the_failing_check(run: Callable[..., App]) -> None:
    one = run("""
workers:
  w: {command: [sleep, "100"], liveness: {tcp: "127.0.0.1:1", interval: 50ms, failures: 100000}}
""")
    one.wait_state("w:0", "degraded")
    assert "its check fails: tcp 127.0.0.1:1: " in one.ctl("why", "w").stdout


def test_why_tells_of_one_that_is_no_longer_configured(run: Callable[..., App], folder: Path) -> None:
    stubborn = """
  gone: {command: [sh, -c, "trap '' TERM; while :; do sleep 0.1; done"], stop: {timeout: 20s}}
"""
    one = run("workers:\n  kept: {command: [sleep, '100']}" + stubborn)
    one.wait_state("gone:0", "ready")
    one.config.write_text(one.config.read_text().replace(stubborn, "\n"))
    assert one.ctl("apply", "--no-wait").returncode == 0
    one.process.send_signal(signal.SIGTERM)
    holding = wait_for(lambda: json.loads(one.ctl("why", "--json").stdout or "{}").get("holding"), "the shutdown")
    assert holding[-1].startswith("gone:0 was told to stop ")
    one.process.send_signal(signal.SIGTERM)
    assert one.wait_ended() == 0


def test_why_tells_who_holds_the_shutdown(run: Callable[..., App]) -> None:
    one = run("""
workers:
  below: {command: [sleep, "100"]}
  stubborn: {command: [sh, -c, "trap '' TERM; while :; do sleep 0.1; done"], depends_on: [below], stop: {timeout: 20s}}
""")
    one.wait_state("stubborn:0", "ready")
    wait_for(lambda: Path(f"/proc/{one.status()['stubborn:0']['pid']}/comm").read_text() == "sh\n", "it is a shell")
    one.process.send_signal(signal.SIGTERM)
    one.wait_state("stubborn:0", "stopping")
    holding = json.loads(one.ctl("why", "--json").stdout)["holding"]
    assert holding[0].startswith("below:0 is ready: what depends on it stops first")
    assert holding[1].startswith("stubborn:0 was told to stop ")
    assert "the app is stopping, and waits for" in one.ctl("why").stdout
    one.process.send_signal(signal.SIGTERM)
    begun = time.monotonic()
    assert one.wait_ended(10) == 0
    assert time.monotonic() - begun < 5, "a second signal skips the grace"


@pytest.mark.parametrize(
    ("kind", "target", "word"),
    [
        ("kill", "steady", "killed by SIGKILL"),
        ("stop", "steady", "hang: no heartbeat"),
        ("hang", "steady", "hang: no heartbeat"),
        ("hang", "blocking", "hang: no heartbeat"),
    ],
)
def test_chaos_is_answered_by_a_new_life(run: Callable[..., App], kind: str, target: str, word: str) -> None:
    one = run(f"""
workers:
  w: {{target: "w:{target}", heartbeat: {{interval: 100ms, timeout: 600ms}}, restart: {{delay: 1ms}}}}
  down: {{command: [sleep, "100"]}}
""")
    one.wait_state("w:0", "ready")
    one.ctl("stop", "down")
    assert one.ctl("chaos", kind, "w").returncode == 0
    one.wait_state("w:0", "ready", generation=2)
    assert any(word in event["cause"] for event in one.events() if event["instance"] == "w:0")
    refused = one.ctl("chaos", kind, "down")
    assert (refused.returncode, refused.stderr) == (1, "down:0: it is stopped\n")


def test_top_off_a_terminal_is_one_table(run: Callable[..., App]) -> None:
    one = run("workers: {w: {command: [sleep, '100'], instances: 3}}")
    for slot in range(3):
        one.wait_state(f"w:{slot}", "ready")
    shown = one.ctl("top").stdout
    assert "3 of 3 ready" in shown
    assert all(f"w:{slot}" in shown for slot in range(3))
    assert "\x1b" not in shown


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str) -> None:
    done = subprocess.run([BIN / "smartipc", "completion", shell], capture_output=True, text=True, check=True)
    assert "_SMARTIPC_COMPLETE" in done.stdout


def test_names_are_completed_from_the_running_app(run: Callable[..., App]) -> None:
    one = run("workers: {hasher: {command: [sleep, '100'], instances: 2}, web: {command: [sleep, '100']}}")
    one.wait_state("web:0", "ready")

    def complete(words: str, **env: str) -> list[str]:
        words = f"smartipc --config {one.config} {words}"
        asked = {**one.env, "_SMARTIPC_COMPLETE": "bash_complete", "COMP_WORDS": words, **env}
        asked["COMP_CWORD"] = str(len(words.split(" ")) - 1)
        done = subprocess.run([BIN / "smartipc"], env=asked, capture_output=True, text=True, check=False)
        assert done.stderr == ""
        return [line.partition(",")[2] for line in done.stdout.splitlines() if line]

    assert complete("stop has") == ["hasher", "hasher:0", "hasher:1"]
    assert complete("why w") == ["web", "web:0"]
    assert "events" in complete("ev")
    one.stop()
    assert complete("stop has") == [], "nothing runs: nothing is said"


def test_answers_come_in_under_a_second_while_fifty_ask_and_long_orders_run(run: Callable[..., App]) -> None:
    one = run("""
workers:
  w: {command: [sleep, "1000"], instances: 30}
  slow: {command: [sh, -c, "trap '' TERM; while :; do sleep 0.1; done"], stop: {timeout: 20s}, instances: 3}
""")
    for slot in range(30):
        one.wait_state(f"w:{slot}", "ready")
    (socket_path,) = (one.folder / "r").rglob("control.sock")
    order = [BIN / "smartipc", "--config", one.config, "stop", "slow"]
    orders = [subprocess.Popen(order, env=one.env) for _ in range(2)]
    one.wait_state("slow:0", "stopping")

    def ask(_number: int) -> float:
        worst = 0.0
        for _ in range(5):
            begun = time.monotonic()
            link = Link(dial(), Connection("client", Identity("test")), QuietHost())
            link.call(control.cli_status.name, codec.encode(None), timeout=10)
            link.call(control.cli_events.name, codec.encode(control.EventsRequest(0)), timeout=10)
            link.close()
            worst = max(worst, time.monotonic() - begun)
        return worst

    def dial():
        until = time.monotonic() + 5
        while True:
            try:
                return UnixSocketTransport(str(socket_path)).dial()
            except BlockingIOError:
                assert time.monotonic() < until

    with ThreadPoolExecutor(50) as pool:
        times = sorted(pool.map(ask, range(50)))
    os.kill(one.pid, 0)
    for order in orders:
        order.kill()
        order.wait()
    one.ctl("chaos", "kill", "slow")
    assert times[-1] < 1.0, times


def test_commands_say_what_is_wrong_in_a_sentence(run: Callable[..., App], folder: Path) -> None:
    one = run("""
workers:
  a: {command: [sleep, "100"]}
  b: {command: [sleep, "100"]}
  gone: {command: [/no/such/program], restart: never}
groups:
  inner: {members: [a]}
  outer: {members: [inner, b]}
""")
    one.wait_state("b:0", "ready")
    one.wait_state("gone:0", "failed")
    rows = json.loads(one.ctl("status", "outer", "--json").stdout)["workers"]
    assert [row["instance"] for row in rows] == ["a:0", "b:0"]
    (gone,) = json.loads(one.ctl("status", "gone", "--json").stdout)["workers"]
    assert gone["last_exit"]["code"] is None
    assert gone["last_exit"]["at"].endswith("Z")
    for words in (["status", "nobody"], ["stop", "nobody"], ["logs", "nobody"]):
        refused = one.ctl(*words)
        assert (refused.returncode, refused.stderr) == (4, "no such worker: 'nobody'; known: a, b, gone\n")
    for words in (["publish", "a.*", "1"], ["publish", "$sys.x", "1"], ["subscribe", "a..b"], ["signal", "a", "9999"]):
        refused = one.ctl(*words)
        assert refused.returncode == 2, refused.stderr
        assert len(refused.stderr.splitlines()) == 1
    assert one.ctl("signal", "a", str(int(signal.SIGCONT))).returncode == 0
    ctl = f"{BIN}/smartipc --config {one.config} status"
    for output, words in ((">&-", "stdout is closed"), (">/dev/full", "No space left on device")):
        ended = subprocess.run(
            ["sh", "-c", f"{ctl} {output}"], check=False, env=one.env, capture_output=True, text=True, timeout=60
        )
        assert (ended.returncode, ended.stderr.strip()) == (1, words)


def test_a_life_that_was_killed_leaves_no_socket(run: Callable[..., App], folder: Path) -> None:
    one = run('workers: {w: {target: "w:steady", restart: {delay: 10ms}}}')
    row = one.wait_state("w:0", "ready")
    os.kill(row["pid"], signal.SIGKILL)
    one.wait_state("w:0", "ready", generation=2)
    assert [path.name for path in (folder / "r").rglob("w.0.*")] == ["w.0.2.sock"]
