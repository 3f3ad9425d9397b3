"""The worker's end of the pipe."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading

import pytest

from smartipc.ipc import control
from smartipc.ipc.drivers.base import QuietHost
from smartipc.ipc.drivers.blocking import Link
from smartipc.ipc.protocol.connection import Connection
from smartipc.ipc.protocol.events import NotifyReceived, RequestReceived
from smartipc.ipc.protocol.handshake import Identity
from smartipc.ipc.routing.directory import Directory
from smartipc.ipc.wire import codec
from smartipc.workers.control import ControlClient, beat_after


class Slow(QuietHost):
    """A supervisor that answers when it is told to."""

    def __init__(self) -> None:
        self.asked: list[RequestReceived] = []
        self.heard: list[NotifyReceived] = []

    def on_request(self, link: Link, event: RequestReceived) -> None:
        self.asked.append(event)

    def on_notify(self, link: Link, event: NotifyReceived) -> None:
        self.heard.append(event)


def test_an_answer_to_a_caller_that_has_gone_disturbs_nobody() -> None:
    ours, theirs = socket.socketpair()
    host = Slow()
    supervisor = Link(theirs, Connection("server", Identity(control.SUPERVISOR)), host)
    client = ControlClient(ours)

    async def ask_and_leave() -> None:
        asking = asyncio.ensure_future(
            asyncio.wrap_future(client.call(control.unsubscribe, control.UnsubscribeRequest(1)))
        )
        while not host.asked:
            await asyncio.to_thread(supervisor.pump, 0.1)
        asking.cancel()
        await asyncio.wait({asking})

    asyncio.run(ask_and_leave())
    (asker,) = [one for one in threading.enumerate() if one.name == f"smartipc-control-{control.unsubscribe.name}"]
    supervisor.reply(host.asked[0].id, codec.EMPTY)
    asker.join(10)  # an exception in it would fail this test
    assert not asker.is_alive()
    supervisor.close()
    client._link.close()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere both are of the whole process")
def test_a_control_thread_made_ahead_takes_over_what_was_set_of_the_process_since() -> None:
    host = Slow()
    ours, theirs = socket.socketpair()
    supervisor = Link(theirs, Connection("server", Identity(control.SUPERVISOR)), host)
    client = ControlClient(ours)
    nice, cores = os.getpriority(os.PRIO_PROCESS, 0), os.sched_getaffinity(0)
    client.prepare()
    (thread,) = [one for one in threading.enumerate() if one.name == "smartipc-control"]
    assert thread.native_id is not None
    os.sched_setaffinity(0, {min(cores)})
    try:
        client.start(Directory(), source="process", interval=0.1)
        while not host.heard:  # its first beat
            supervisor.pump(10)
        assert os.sched_getaffinity(thread.native_id) == {min(cores)}
        assert os.getpriority(os.PRIO_PROCESS, thread.native_id) == nice
    finally:
        os.sched_setaffinity(0, cores)
        client.leave()
        supervisor.close()
    assert not thread.is_alive()


@pytest.mark.parametrize("interval", [0.05, 1.0, 2.5])
def test_beats_fall_into_a_few_moments_and_never_too_late(interval: float) -> None:
    moments = set()
    for number in range(1000):
        now = 100_000.0 + number * 0.0371
        due = beat_after(now, interval, pid=number)
        assert now < due <= now + interval
        moments.add(round(due % interval / interval, 6) % 1)
    assert len(moments) == 8
