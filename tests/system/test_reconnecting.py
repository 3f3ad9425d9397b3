"""A server that is killed and started again: what its clients lose, what they keep, and what never happens twice."""

from __future__ import annotations

import collections
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ends import ENDS
from kit import wait_for

from smartipc import ConnectionLost, Method, RequestTimeout

pytestmark = pytest.mark.system

SERVER = """
import os, sys, time
from smartipc.ipc import sync

with sync.serve(sys.argv[1], name=sys.argv[3]) as server:
    done = open(sys.argv[2], "a", buffering=1)

    @server.handler("count")
    def _(number):
        done.write(f"{number}\\n")
        return number

    @server.handler("linger")
    def _(number):
        done.write(f"{number}\\n")
        time.sleep(30)

    @server.handler("once_more")
    def _(number, message):
        done.write(f"{number}\\n")
        if message.attempt == 1:
            time.sleep(30)
        return [message.attempt, os.getpid()]

    @server.handler("falter")
    def _(number):
        done.write(f"{number}\\n")
        if number == 500 and sys.argv[3] == "life 1":
            os.kill(os.getpid(), 9)
        return [number, sys.argv[3]]

    @server.handler("say")
    def _(number):
        server.publish("said", number)

    print("up", flush=True)
    server.serve_forever()
"""
once_more = Method("once_more", int, list, idempotent=True)
falter = Method("falter", int, list)
falter_safely = Method("falter", int, list, idempotent=True)


class Killable:
    """A server process at one address."""

    def __init__(self, folder: Path) -> None:
        self.address = f"unix://{folder}/s.sock"
        self.journal = folder / "journal"
        self.script = folder / "server.py"
        self.script.write_text(SERVER)
        self.lives = 0
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self.lives += 1
        argv = [sys.executable, str(self.script), self.address, str(self.journal), f"life {self.lives}"]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "up\n"

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def revive(self) -> None:
        """Start it again once it is dead."""
        assert self.process is not None
        self.process.wait(20)
        self.kill()
        self.start()

    def ran(self) -> collections.Counter[int]:
        return collections.Counter(int(line) for line in self.journal.read_text().split())


@pytest.fixture
def server(folder: Path) -> Iterator[Killable]:
    server = Killable(folder)
    server.start()
    yield server
    server.kill()


@pytest.fixture(params=["async", "sync"])
def client(request: pytest.FixtureRequest, server: Killable) -> Iterator[Any]:
    client = ENDS[request.param]("client", server.address, name="one")
    yield client
    client.stop()


def test_no_call_runs_twice_and_subscriptions_come_back(server: Killable, client: Any) -> None:
    states: list[str] = []
    client.on_state(states.append)
    answered, maybe, number = set(), set(), 0
    with client.subscribe("said") as messages:
        for life in range(1, 4):
            for _ in range(200):
                number += 1
                assert client.request("count", number, timeout=20) == number
                answered.add(number)
            client.request("say", life)
            message = messages.receive()
            assert (message.payload, message.sender) == (life, f"life {life}")
            caught: list[BaseException] = []

            number += 1
            maybe.add(number)
            lingering = client.submit(functools.partial(_linger, client, number, caught))
            wait_for(lambda which=number: server.ran()[which], "the handler runs")
            server.kill()
            lingering.join(20)
            assert [error.processed for error in caught] == ["maybe"]
            wait_for(lambda: client.state == "reconnecting", "the loss is told")
            with pytest.raises((RequestTimeout, ConnectionLost)) as refused:
                client.request("count", -number, timeout=0.2)
            assert refused.value.processed == "no"
            server.start()
    assert client.request("count", 0, timeout=20) == 0
    ran = server.ran()
    assert all(times == 1 for times in ran.values()), ran
    assert set(ran) == answered | maybe | {0}, "what was said to be unprocessed was"
    assert states == ["reconnecting", "connected"] * 3


def test_what_was_not_written_is_sent_when_the_server_is_back(server: Killable, client: Any) -> None:
    server.kill()
    wait_for(lambda: client.state == "reconnecting", "the loss is told")
    replies: list[int] = []
    waiting = [client.submit(lambda which=which: replies.append(client.request("count", which))) for which in range(8)]
    server.start()
    for thread in waiting:
        thread.join(20)
    assert sorted(replies) == list(range(8))
    assert server.ran() == dict.fromkeys(range(8), 1)


def test_an_idempotent_call_is_tried_again(server: Killable, client: Any) -> None:
    replies: list[Any] = []
    asking = client.submit(lambda: replies.append(client.request(once_more, 1, timeout=25)))
    wait_for(lambda: server.ran()[1], "the handler runs")
    server.kill()
    server.start()
    asking.join(25)
    assert [reply[0] for reply in replies] == [2]


def test_a_batch_in_whose_midst_the_server_dies_runs_nothing_twice(server: Killable, client: Any) -> None:
    answered: list[list[Any]] = []
    with pytest.raises(ConnectionLost) as caught:
        answered.extend(client.map(falter, range(1000), concurrency=64))  # which keeps what came before the error
    assert caught.value.processed == "maybe"
    assert answered == [[number, "life 1"] for number in range(len(answered))]
    assert 500 - 64 <= len(answered) <= 500
    server.revive()
    assert client.request(falter, 2000, timeout=20) == [2000, "life 2"]
    assert server.ran() == dict.fromkeys((*range(501), 2000), 1)


def test_an_idempotent_batch_in_whose_midst_the_server_dies_is_answered(server: Killable, client: Any) -> None:
    reviving = client.submit(server.revive)
    replies = list(client.map(falter_safely, range(1000), concurrency=64, timeout=25))
    reviving.join(25)
    assert [number for number, _life in replies] == list(range(1000))
    ran = server.ran()
    assert ran[500] == 2
    assert {ran[number] for number, life in replies if life == "life 1"} == {1}, "what was answered is not asked again"
    again = [number for number, times in ran.items() if times > 1]
    assert set(again) <= set(range(500 - 64, 501)), "what was not under way is not asked again"
    assert max(ran.values()) == 2


def _linger(client: Any, number: int, caught: list[BaseException]) -> None:
    try:
        client.request("linger", number)
    except ConnectionLost as error:
        caught.append(error)
