"""Reload, scaling and changed configurations with real processes and a real load: nobody notices."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from kit import App, wait_for

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

TARGETS = """
import asyncio, os, time
from smartipc import Method

work = Method("pool.work", int, int)

async def pool(ipc, answer=1):
    if answer == "broken":
        raise ValueError("broken by design")
    @ipc.handler(work)
    async def _(number: int) -> int:
        await asyncio.sleep(0.002)
        return answer
    await ipc.serve()

def blocking(ipc):
    @ipc.handler("work")
    def _(number):
        time.sleep(0.001)
        return 1
    ipc.serve()

async def load(ipc, method="pool.work"):
    done = failed = 0
    async def one():
        nonlocal done, failed
        while not ipc.stopping:
            try:
                await ipc.request(method, 1, timeout=10)
                done += 1
            except Exception as error:
                failed += 1
                print(repr(error), flush=True)
    @ipc.handler("counts")
    def _(_):
        return [done, failed]
    tasks = [asyncio.ensure_future(one()) for _ in range(8)]
    await ipc.serve()
    await asyncio.gather(*tasks)
"""

TOP = "app: t\npython_path: [.]\n"


@pytest.fixture
def run(app: Callable[..., App], folder: Path) -> Callable[[str], App]:
    (folder / "targets.py").write_text(TARGETS)
    return lambda config: app(TOP + config)


def counts(one: App) -> tuple[int, int]:
    found = json.loads(one.ctl("request", "load.counts").stdout)
    return found[0], found[1]


def generations(one: App) -> dict[str, int]:
    return {instance: row["generation"] for instance, row in sorted(one.status().items())}


def pids(one: App) -> dict[str, Any]:
    return {instance: row["pid"] for instance, row in one.status().items()}


HEARING = """
import asyncio, time
from smartipc import Topic

news = Topic("news", int)

def note(ipc, out):
    return lambda number: (out.write(f"{ipc.generation} {number}\\n"), out.flush())

async def decorated(ipc):
    with open("heard", "a") as out:
        ipc.subscriber(news)(note(ipc, out))
        await ipc.serve()

async def reading(ipc):
    with open("heard", "a") as out:
        say = note(ipc, out)
        async with ipc.subscribe(news, max_pending=8) as messages:
            await ipc.ready()
            async for message in messages:
                say(message.payload)
                await asyncio.sleep(0.001)

def blocking(ipc):
    with open("heard", "a") as out:
        ipc.subscriber(news)(note(ipc, out))
        ipc.serve()

def iterating(ipc):
    with open("heard", "a") as out:
        say = note(ipc, out)
        with ipc.subscribe(news, max_pending=8) as messages:
            ipc.ready()
            for message in messages:
                say(message.payload)

async def sharing(ipc):
    with open("heard", "a") as out:
        ipc.subscriber(news, queue="q")(note(ipc, out))
        await ipc.serve()

def saying(ipc):
    ipc.ready()
    number = 0
    while not ipc.stopping:
        number += 1
        ipc.publish(news, number)
        if number % 10 == 0:
            time.sleep(0.001)
    with open("said", "w") as out:
        out.write(str(number))

async def source(ipc):
    await ipc.ready()
    number = 0
    while not ipc.stopping:
        number += 1
        await ipc.publish(news, number)
        await asyncio.sleep(0)
        if number % 10 == 0:
            await asyncio.sleep(0.001)
    with open("said", "w") as out:
        out.write(str(number))
"""


@pytest.mark.parametrize(
    ("target", "source"),
    [
        ("decorated", "source"),
        ("reading", "saying"),
        ("sharing", "saying"),
        ("blocking", "saying"),
        ("iterating", "source"),
    ],
)
def test_a_reloaded_subscriber_misses_nothing(
    run: Callable[[str], App], folder: Path, target: str, source: str
) -> None:
    """What was published before the old life was drained it hears; from then on the new one does."""
    (folder / "hearing.py").write_text(HEARING)
    one = run(
        f"workers:\n  ear: {{target: 'hearing:{target}', depends_on: [], ready: ipc, cwd: .}}\n"
        f"  source: {{target: 'hearing:{source}', depends_on: {{ear: ready}}, cwd: .}}\n"
    )
    one.wait_state("source:0", "ready")
    heard = folder / "heard"
    for generation in range(2, 6):
        size = heard.stat().st_size
        wait_for(lambda: heard.stat().st_size > size + 500, "it is heard")  # noqa: B023
        assert one.ctl("reload", "ear").returncode == 0
        assert generations(one)["ear:0"] == generation
    assert one.ctl("stop", "source").returncode == 0
    last = int((folder / "said").read_text())
    assert one.ctl("stop", "ear").returncode == 0
    by_life: dict[int, list[int]] = {}
    for line in heard.read_text().splitlines():
        generation, number = line.split()
        by_life.setdefault(int(generation), []).append(int(number))
    assert sorted(by_life) == [1, 2, 3, 4, 5]
    for life, numbers in by_life.items():
        assert numbers == sorted(set(numbers)), f"order in life {life}"
        if target != "sharing":
            assert numbers == list(range(numbers[0], numbers[-1] + 1)), f"gaps in life {life}"
    missing = set(range(1, last + 1)) - {number for numbers in by_life.values() for number in numbers}
    assert not missing, sorted(missing)[:50]


@pytest.mark.parametrize("target", ["pool", "blocking"])
def test_five_reloads_and_scalings_under_load_fail_no_request(run: Callable[[str], App], target: str) -> None:
    pool = f"pool: {{target: 'targets:{target}', instances: 2, ready: ipc}}"
    one = run(f"workers:\n  {pool}\n  load: {{target: 'targets:load'}}\n")
    one.wait_state("load:0", "ready")
    wait_for(lambda: counts(one)[0] > 100, "the load flows")
    for number in range(2, 7):
        before = counts(one)[0]
        found = one.ctl("reload", "pool", "--json")
        assert found.returncode == 0, found.stderr
        assert json.loads(found.stdout) == {"results": {"pool:0": "", "pool:1": ""}}
        assert generations(one) == {"load:0": 1, "pool:0": number, "pool:1": number}
        wait_for(lambda: counts(one)[0] > before + 50, "the load goes on")  # noqa: B023
    for count in (4, 1, 2):
        found = one.ctl("scale", f"pool={count}")
        assert found.returncode == 0, found.stderr
        assert sum(name.startswith("pool") for name in one.status()) == count
    assert counts(one)[1] == 0, one.ctl("logs", "load").stdout
    assert generations(one)["pool:0"] == 6
    scaled = [event for event in one.events() if event["event"] == "worker.scaled"]
    assert [(event["worker"], event["from"], event["to"]) for event in scaled] == [
        ("pool", 2, 4),
        ("pool", 4, 1),
        ("pool", 1, 2),
    ]
    assert all(row["restarts"] == 0 for row in one.status().values())


def test_a_reload_that_fails_leaves_the_old_life(run: Callable[[str], App], folder: Path) -> None:
    one = run("workers:\n  pool: {target: 'targets:pool', instances: 2, ready: ipc}\n")
    one.wait_state("pool:0", "ready")
    one.wait_state("pool:1", "ready")
    before = pids(one)
    (folder / "targets.py").write_text("this is no Python")
    found = one.ctl("reload", "pool")
    assert found.returncode == 1
    assert "pool:0: its replacement failed" in found.stderr
    assert "pool:1: not replaced" in found.stderr
    assert pids(one) == before
    assert one.ctl("request", "pool.work", "1").stdout.strip() == "1"


def test_apply_restarts_only_what_changed(run: Callable[[str], App]) -> None:
    def config(kwargs: str, instances: int, more: str = "") -> str:
        return (
            f"{TOP}workers:\n  pool: {{target: 'targets:pool', kwargs: {kwargs}, instances: {instances}, ready: ipc}}\n"
            f"  keep: {{command: [sleep, '1000']}}\n{more}"
        )

    one = run(config("{answer: 1}", 2, "  old: {command: [sleep, '1000']}\n")[len(TOP) :])
    for name in ("pool:0", "pool:1", "keep:0", "old:0"):
        one.wait_state(name, "ready")
    before = pids(one)
    new = config("{answer: 2}", 3, "  new: {command: [sleep, '1000']}\n")
    one.config.write_text(new)
    dry = one.ctl("apply", "--dry-run")
    assert dry.returncode == 0
    assert dry.stdout.splitlines() == [
        "- remove old: 1 instance",
        "~ restart pool: kwargs",
        "~ scale pool: 2 -> 3 instances",
        "+ add new: 1 instance",
    ]
    assert pids(one) == before
    one.config.write_text(new.replace("sleep, '1000'", "sleep, 1000"))
    bad = one.ctl("--app", "t", "apply", str(one.config))
    assert bad.returncode == 2
    assert pids(one) == before
    one.config.write_text(new)
    done = one.ctl("apply", "--json")
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["results"] == dict.fromkeys(("pool:0", "pool:1", "pool:2", "new:0", "old:0"), "")
    assert outcome["config_generation"] == 2
    after = pids(one)
    assert set(after) == {"pool:0", "pool:1", "pool:2", "keep:0", "new:0"}
    assert after["keep:0"] == before["keep:0"]
    assert after["pool:0"] != before["pool:0"]
    assert one.ctl("request", "pool.work", "1").stdout.strip() == "2"
    assert json.loads(one.ctl("status", "--json").stdout)["config_generation"] == 2
    assert [event["config_generation"] for event in one.events() if event["event"] == "config.applied"] == [2]


def test_what_apply_preloads_is_there_for_every_new_life(run: Callable[[str], App], folder: Path) -> None:
    """The fork server is another one from then on, and whoever came from the old one lives on."""
    for name in ("early", "late"):
        (folder / f"{name}.py").write_text(
            "import os, time\ntime.sleep(0.5)\nimported_by = os.getpid()\n"
            "async def worker(ipc):\n"
            "    ipc.set_status('preloaded' if imported_by != os.getpid() else 'imported late')\n"
            "    await ipc.serve()\n"
        )
    before = "workers:\n  a: {target: 'early:worker', preload: [early], ready: ipc}\n"
    after = f"{before}  b: {{target: 'late:worker', preload: [late], ready: ipc}}\n"
    one = run(before)
    old = one.wait_state("a:0", "ready")["pid"]
    one.config.write_text(TOP + after)
    applying = subprocess.Popen([*one.ctl("status").args[:3], "apply"], env=one.env)
    begun = time.monotonic()
    while applying.poll() is None:
        asked = time.monotonic()
        assert one.status()["a:0"]["state"] == "ready"
        assert time.monotonic() - asked < 0.4, "it answers while the new fork server imports"
    assert applying.returncode == 0
    assert time.monotonic() - begun > 0.5
    assert wait_for(lambda: one.status()["b:0"]["status"], "the new worker tells") == "preloaded"
    assert one.status()["a:0"]["pid"] == old
    os.kill(old, signal.SIGTERM)
    row = one.wait_state("a:0", "exited")
    assert (row["last_exit"]["code"], row["last_exit"]["reason"]) == (0, "stopped"), "its exit is known all the same"
    assert one.ctl("start", "a").returncode == 0
    assert wait_for(lambda: one.status()["a:0"]["status"], "the next life tells") == "preloaded"
    os.kill(one.status()["b:0"]["pid"], signal.SIGKILL)
    row = one.wait_state("b:0", "ready", generation=2)
    assert row["last_exit"]["signal"] == "SIGKILL"
    assert wait_for(lambda: one.status()["b:0"]["status"], "the next life tells") == "preloaded"
    lives = pids(one).values()
    children = [child for child in psutil.Process(one.pid).children() if child.pid not in lives]
    assert sum("forkserver" in " ".join(child.cmdline()) for child in children) == 1, "the old one is gone"


def test_a_fork_server_that_dies_is_started_again_as_it_was(run: Callable[[str], App], folder: Path) -> None:
    (folder / "heavy.py").write_text(
        "import os\nimported_by = os.getpid()\n"
        "async def worker(ipc):\n"
        "    ipc.set_status('preloaded' if imported_by != os.getpid() else 'imported late')\n"
        "    await ipc.serve()\n"
    )
    one = run("workers:\n  h: {target: 'heavy:worker', preload: [heavy], restart: {delay: 1ms}}\n")
    row = one.wait_state("h:0", "ready")
    server = psutil.Process(row["pid"]).ppid()
    assert server != one.pid
    os.kill(server, signal.SIGKILL)
    os.kill(row["pid"], signal.SIGKILL)
    one.wait_state("h:0", "ready", generation=2)
    assert wait_for(lambda: one.status()["h:0"]["status"], "the next life tells") == "preloaded"


def test_sighup_applies_the_file_and_survives_an_invalid_one(run: Callable[[str], App]) -> None:
    one = run("workers:\n  a: {command: [sleep, '1000']}\n")
    one.wait_state("a:0", "ready")
    one.config.write_text(f"{TOP}workers: {{a: 1}}\n")
    os.kill(one.pid, signal.SIGHUP)
    wait_for(lambda: "SIGHUP: nothing was changed" in one.err.read_text(), "the invalid file is refused")
    one.config.write_text(f"{TOP}workers:\n  a: {{command: [sleep, '1000']}}\n  b: {{command: [sleep, '1000']}}\n")
    os.kill(one.pid, signal.SIGHUP)
    one.wait_state("b:0", "ready")
    assert generations(one) == {"a:0": 1, "b:0": 1}


def test_signal_reset_and_graph(run: Callable[[str], App]) -> None:
    one = run(
        "workers:\n"
        "  a: {command: [sh, -c, 'trap \"echo got it\" USR1; while :; do sleep 0.1; done']}\n"
        "  b: {command: [sleep, '1000'], instances: 2, depends_on: {a: started}}\n"
        "  c: {command: ['false'], restart: {policy: never}}\n"
        "groups:\n  g: {members: [a, b], strategy: one-for-all}\n"
    )
    one.wait_state("b:1", "ready")
    one.wait_state("c:0", "failed")
    assert one.ctl("signal", "a", "usr1").returncode == 0
    wait_for(lambda: "got it" in one.ctl("logs", "a").stdout, "the signal arrives")
    assert one.ctl("signal", "c", "USR1").returncode == 1
    assert one.ctl("signal", "a", "NOPE").returncode == 2
    assert one.ctl("signal", "nobody", "HUP").returncode == 4
    assert one.ctl("reset", "c").returncode == 0
    assert one.ctl("scale", "b=0").returncode == 2
    assert one.ctl("scale", "nobody=2").returncode == 4
    assert one.ctl("graph").stdout.splitlines() == [
        "t",
        "├── g (one-for-all)",
        "│   ├── a: ready",
        "│   └── b: 2 ready <- a started",
        "└── c: failed",
    ]
    found = json.loads(one.ctl("graph", "--json").stdout)
    assert [worker["name"] for worker in found["workers"]] == ["a", "b", "c"]
    assert found["groups"] == [{"name": "g", "members": ["a", "b"], "strategy": "one-for-all", "group": None}]
    assert one.ctl("stop", "g").returncode == 0
    assert {row["state"] for name, row in one.status().items() if name[0] in "ab"} == {"stopped"}


def test_recycling_by_requests_under_load_fails_no_request(run: Callable[[str], App]) -> None:
    pool = (
        "pool: {target: 'targets:pool', instances: 2, ready: ipc, heartbeat: {interval: 50ms, timeout: 5s},"
        " recycle: {requests: 100}}"
    )
    one = run(f"workers:\n  {pool}\n  load: {{target: 'targets:load'}}\n")
    for name in ("pool:0", "pool:1"):
        one.wait_state(name, "ready", generation=3)
    done, failed = counts(one)
    assert failed == 0, one.ctl("logs", "load").stdout
    assert done > 200
    causes = [event["cause"] for event in one.events() if event["to"] == "starting" and event["generation"] == 2]
    assert all(cause.startswith("recycle: requests ") for cause in causes)
    assert all(row["restarts"] == 0 for row in one.status().values())


def test_recycling_by_age_and_memory(run: Callable[[str], App]) -> None:
    one = run(
        "workers:\n"
        "  old: {command: [sleep, '1000'], recycle: {age: 300ms, jitter: 0}}\n"
        "  big: {command: [sleep, '1000'], recycle: {memory: 100KiB}}\n"
    )
    one.wait_state("old:0", "ready", generation=3)
    one.wait_state("big:0", "ready", generation=2)
    causes = {event["cause"] for event in one.events() if event["to"] == "starting" and event["generation"] == 2}
    assert "recycle: age 0.3 s: replaces generation 1" in causes
    assert any(cause.startswith("recycle: memory ") for cause in causes)


def test_a_spare_takes_over_and_the_next_one_is_warmed(run: Callable[[str], App]) -> None:
    one = run("workers:\n  pool: {target: 'targets:pool', instances: 2, spares: 1, ready: ipc}\n")
    one.wait_state("pool:0", "ready")
    row = one.wait_state("pool:1", "ready")
    server = psutil.Process(row["pid"]).ppid()

    def spares() -> set[int]:
        return {child.pid for child in psutil.Process(server).children()} - {
            life["pid"] for life in one.status().values()
        }

    for generation in (2, 3):
        warm = wait_for(spares, "a spare is there")
        os.kill(row["pid"], signal.SIGKILL)
        row = one.wait_state("pool:1", "ready", generation=generation)
        assert {row["pid"]} == warm
        assert row["restarts"] == generation - 1
    assert one.ctl("request", "pool.work", "1", "--slot", "1").stdout.strip() == "1"
    warm = wait_for(spares, "a spare is there")
    assert one.ctl("reload", "pool").returncode == 0
    assert warm.isdisjoint(life["pid"] for life in one.status().values()), "a reload wants the code as it is now"
    wait_for(lambda: spares() - warm, "a fresh spare is there")
