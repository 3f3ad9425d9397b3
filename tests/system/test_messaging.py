"""Topics, permissions and dead letters with real processes and commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kit import App, wait_for

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

TARGETS = """
import asyncio, os, signal
from smartipc import Method, Topic

work = Topic("work.item", int)
state = Topic("state.now", int)

async def publisher(ipc):
    @ipc.handler("publish")
    async def _(count):
        for number in range(count):
            await ipc.publish(work, number)
    @ipc.handler("retain")
    async def _(value):
        await ipc.publish(state, value, retain=True)
        os.kill(os.getpid(), signal.SIGKILL)
    @ipc.handler("mail")
    async def _(text):
        await ipc.notify("fragile.take", text)
    @ipc.handler("forbidden")
    async def _(what):
        await ipc.request("guarded.secret", what)
    await ipc.serve()

async def member(ipc):
    got = []
    @ipc.subscriber(work, queue="members")
    async def _(number):
        await asyncio.sleep(0.001)
        got.append(number)
    @ipc.handler("got")
    def _(_):
        return got
    await ipc.serve()

async def late(ipc):
    async with ipc.subscribe(state) as messages:
        message = await anext(messages)
        ipc.set_status(f"{message.payload} of {message.sender}")
        await ipc.serve()

def counter(ipc):
    with ipc.subscribe(work) as messages:
        ipc.ready()
        right = 0
        for message in messages:
            right += message.payload == right
            if right % 1000 == 0:
                ipc.set_status(f"{right} in order")

def flood(ipc):
    ipc.ready()
    for number in range(20_000):
        ipc.publish(work, number)
    ipc.set_status("said")
    while not os.path.exists(os.environ["GO"]):
        sum(range(100_000))  # computes, and says nothing more
    for number in range(20_000, 40_000):
        ipc.publish(work, number)

def fragile(ipc):
    strong = os.path.exists(os.environ["STRONG"])
    taken = []
    @ipc.handler("take")
    def _(text):
        if not strong:
            raise ValueError(f"cannot take {text}")
        taken.append(text)
    @ipc.handler("taken")
    def _(_):
        return taken
    @ipc.subscriber(work)
    def _(number):
        if not strong:
            raise ValueError("cannot hear")
        taken.append(number)
    ipc.serve()

async def guarded(ipc):
    ipc.handler("open")(lambda payload: "open")
    ipc.handler("secret")(lambda payload: "secret")
    await ipc.serve()
"""

TOP = "app: t\npython_path: [.]\nsupervisor: {state_dir: state}\n"


@pytest.fixture
def run(app: Callable[..., App], folder: Path) -> Callable[..., App]:
    (folder / "targets.py").write_text(TARGETS)
    return lambda config: app(TOP + config)


def ask(one: App, address: str, payload: Any = None) -> Any:
    found = one.ctl("request", address, json.dumps(payload))
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


def test_a_queue_over_workers_and_instances_and_a_retained_value_of_the_dead(run: Callable[..., App]) -> None:
    one = run(
        "workers:\n"
        "  publisher: {target: 'targets:publisher'}\n"
        "  member: {target: 'targets:member', instances: 3}\n"
        "  late: {target: 'targets:late', depends_on: {publisher: ready}}\n"
    )
    for name in ("publisher:0", "member:0", "member:1", "member:2"):
        one.wait_state(name, "ready")
    ask(one, "publisher.publish", 300)

    def shares() -> list[list[int]] | None:
        outcomes = [json.loads(line) for line in one.ctl("broadcast", "member.got").stdout.splitlines()]
        found = [outcome["value"] for outcome in outcomes]
        return found if sum(map(len, found)) == 300 else None

    found = wait_for(shares, "every message was handled")
    assert sorted(number for share in found for number in share) == list(range(300))
    assert all(len(share) > 50 for share in found)
    assert one.ctl("request", "publisher.retain", "42").returncode == 1
    one.wait_state("publisher:0", "ready", generation=2)
    wait_for(lambda: one.status()["late:0"]["status"] == "42 of publisher:0", "the value of the dead arrives")


def test_a_blocking_worker_that_floods_computes_and_ends_loses_nothing(run: Callable[..., App], folder: Path) -> None:
    one = run(
        f"env: {{GO: '{folder / 'go'}'}}\n"
        "workers:\n"
        "  counter: {target: 'targets:counter', instances: 2}\n"
        "  flood: {target: 'targets:flood', depends_on: [counter], restart: never}\n"
    )
    one.wait_state("flood:0", "ready")

    def counts(of: str) -> bool:
        found = one.status()
        return all(found[f"counter:{slot}"]["status"] == of for slot in range(2))

    wait_for(lambda: counts("20000 in order"), "what was said before computing")
    assert one.status()["flood:0"]["state"] == "ready"
    (folder / "go").touch()
    wait_for(lambda: counts("40000 in order"), "what was said last")
    one.wait_state("flood:0", "exited")


def test_dead_letters_are_listed_shown_replayed_and_purged(run: Callable[..., App], folder: Path) -> None:
    strong = folder / "strong"
    one = run(
        "workers:\n"
        "  publisher: {target: 'targets:publisher'}\n"
        f"  fragile: {{target: 'targets:fragile', ready: ipc, env: {{STRONG: '{strong}'}}}}\n"
    )
    for name in ("publisher:0", "fragile:0"):
        one.wait_state(name, "ready")
    assert one.ctl("dead-letters", "list").stdout == "no dead letters\n"
    assert json.loads(one.ctl("dead-letters", "list", "--json").stdout) == []
    ask(one, "publisher.mail", "one")
    ask(one, "publisher.publish", 1)

    def listed(count: int) -> list[dict[str, Any]] | None:
        found = json.loads(one.ctl("dead-letters", "list", "--json").stdout)
        return found if len(found) == count else None

    first, second = wait_for(lambda: listed(2), "two letters")
    assert set(first) == {"id", "at", "address", "kind", "sender", "reason", "attempts"}
    assert first["at"].endswith("Z")
    assert (first["address"], first["kind"], first["sender"]) == ("fragile.take", "notify", "publisher:0")
    assert (first["reason"], first["attempts"]) == ("ValueError: cannot take one", 1)
    assert (second["address"], second["kind"], second["reason"]) == ("work.item", "message", "ValueError: cannot hear")
    assert "fragile.take  from publisher:0  1 attempt: ValueError" in one.ctl("dead-letters", "list").stdout
    shown = json.loads(one.ctl("dead-letters", "show", str(first["id"]), "--json").stdout)
    assert shown["payload"] == "one"
    assert "payload:   one" in one.ctl("dead-letters", "show", str(first["id"])).stdout
    assert one.ctl("dead-letters", "show", "99").returncode == 1
    assert one.ctl("dead-letters", "replay", "x").returncode == 2

    # still not able to: it comes back
    assert one.ctl("dead-letters", "replay", str(first["id"])).returncode == 0
    wait_for(lambda: (now := listed(2)) and now[-1]["address"] == "fragile.take", "it failed again")
    strong.touch()
    assert one.ctl("restart", "fragile").returncode == 0
    one.wait_state("fragile:0", "ready", generation=2)
    replayed = one.ctl("dead-letters", "replay", "all", "--json")
    assert replayed.returncode == 0, replayed.stderr
    assert set(json.loads(replayed.stdout)["results"].values()) == {""}
    wait_for(lambda: sorted(ask(one, "fragile.taken"), key=str) == [0, "one"], "both were taken")
    assert listed(0) == []
    missing = one.ctl("dead-letters", "purge", "7")
    assert (missing.returncode, missing.stderr) == (1, "7: there is no such letter\n")
    # with nobody there a one-way message waits for its time, and then it is one, too
    assert one.ctl("stop", "fragile").returncode == 0
    late = one.ctl("request", "publisher.mail", '"late"')
    assert (late.returncode, "WorkerDied" in late.stderr) == (1, True), late.stderr
    (left,) = wait_for(lambda: listed(1), "nobody was there")
    assert (left["reason"].split(":")[0], left["attempts"]) == ("WorkerDied", 0)
    assert one.ctl("dead-letters", "purge", "all").returncode == 0
    assert listed(0) == []


def test_allow_holds_for_calls_and_broadcasts(run: Callable[..., App]) -> None:
    one = run(
        "workers:\n"
        "  publisher: {target: 'targets:publisher', allow: {request: [guarded.open], publish: ['work.>']}}\n"
        "  guarded: {target: 'targets:guarded', rate_limit: 2/m}\n"
    )
    for name in ("publisher:0", "guarded:0"):
        one.wait_state(name, "ready")
    refused = one.ctl("request", "publisher.forbidden", "1")
    assert refused.returncode == 1
    assert "PermissionDenied" in refused.stderr
    ask(one, "publisher.publish", 1)
    assert ask(one, "guarded.open") == "open"
    limited = [one.ctl("request", "guarded.open") for _ in range(2)][-1]
    assert "RateLimited" in limited.stderr
