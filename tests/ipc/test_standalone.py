"""The async client and server: how they are opened, what they tell, and what cancelling does."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from scenes import until

import smartipc
from smartipc import (
    Channel,
    ConnectFailed,
    ConnectionLost,
    IpcChannel,
    IpcClient,
    IpcServer,
    LocalProtocolError,
    RequestCancelled,
    RequestTimeout,
    Stream,
)
from smartipc.ipc import sync


@pytest.fixture
def address(folder: Path) -> str:
    return f"unix://{folder}/s.sock"


def run(work: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await work

    asyncio.run(bounded())


@asynccontextmanager
async def both(address: str) -> AsyncIterator[tuple[IpcServer, IpcClient]]:
    async with smartipc.serve(address, name="srv") as server, smartipc.connect(address, name="one") as client:
        server.handler("echo")(lambda payload: payload)
        yield server, client


def test_both_ways_of_opening(address: str) -> None:
    async def main() -> None:
        async with await smartipc.serve(address) as server:
            assert (server.address, server.state, server.name) == (address, "serving", "server")
            async with await smartipc.connect(address) as client:
                assert client.state == "connected"
                assert client.server == "server"
                assert client.name.startswith("client:")
            assert client.state == "closed"
            opening = smartipc.connect(address)
            client = await opening
            await client.aclose()
            await client.aclose()
        assert server.state == "closed"
        await server.aclose()
        async with smartipc.serve(address), smartipc.connect(address) as client:
            assert "connected" in repr(client)

    run(main())


def test_connecting_waits_for_a_server_that_comes(address: str) -> None:
    async def main() -> None:
        connecting = asyncio.ensure_future(_connected(address))
        await asyncio.sleep(0.05)
        assert not connecting.done()
        async with smartipc.serve(address):
            client = await connecting
            assert client.state == "connected"
            await client.aclose()

    run(main())


async def _connected(address: str) -> IpcClient:
    return await smartipc.connect(address, timeout=20)


def test_connecting_in_vain_says_why_and_leaves_nothing(address: str) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        with pytest.raises(ConnectFailed) as failed:
            await smartipc.connect(address, timeout=0.3)
        assert failed.value.address == address
        assert 0.25 < loop.time() - began < 5
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await smartipc.connect(address, timeout=20)
        assert len(asyncio.all_tasks()) == 1
        with pytest.raises(ValueError, match="scheme"):
            smartipc.connect("carrier-pigeon://coop")

    run(main())


def test_states_are_told_in_order(address: str) -> None:
    async def main() -> None:
        states: list[str] = []
        server = await smartipc.serve(address)
        client = await smartipc.connect(address)
        client.on_state(states.append)
        await server.aclose()
        await until(lambda: client.state == "reconnecting")
        async with smartipc.serve(address) as server:
            await until(lambda: client.state == "connected")
            waiting = asyncio.ensure_future(client.closed())
            await client.aclose()
            await waiting
        assert states == ["reconnecting", "connected", "closed"]
        with pytest.raises(ConnectionLost) as lost:
            await client.request("echo", 1)
        assert (lost.value.processed, lost.value.retryable) == ("no", False)
        with pytest.raises(ConnectionLost):
            await client.publish("a.b", 1)

    run(main())


def test_cancelling_a_caller_cancels_the_handler_on_either_side(address: str) -> None:
    async def main() -> None:
        async with both(address) as (server, client):
            for asked, asking, to in ((server, client, {}), (client, server, {"to": server.clients[0]})):
                begun, cancelled = asyncio.Event(), asyncio.Event()

                @asked.handler("hang")
                async def _(_: None, begun: asyncio.Event = begun, cancelled: asyncio.Event = cancelled) -> None:
                    begun.set()
                    try:
                        await asyncio.sleep(30)
                    finally:
                        cancelled.set()

                call = asyncio.ensure_future(asking.request("hang", None, **to))
                await begun.wait()
                call.cancel()
                await cancelled.wait()
                assert await client.request("echo", 5) == 5

    run(main())


def test_tasks_share_a_subscription(address: str) -> None:
    """As they would a queue: each message goes to one; those that give up take nothing with them."""

    async def main() -> None:
        async with both(address) as (server, client), client.subscribe("numbers") as messages:
            readers = [asyncio.create_task(anext(messages)) for _ in range(5)]
            await asyncio.sleep(0)
            readers.pop(1).cancel()
            for number in range(3):
                await server.publish("numbers", number)
            await until(lambda: sum(reader.done() for reader in readers) == 3)
            await server.publish("numbers", 3)
            assert sorted(message.payload for message in await asyncio.gather(*readers)) == [0, 1, 2, 3]

    run(main())


def test_closing_that_is_cancelled_closes_at_once(address: str) -> None:
    """Wherever it waits: for its own handler, for an unanswered call, for its keeper."""

    async def main() -> None:
        async with smartipc.serve(address) as server:
            begun: list[str] = []
            cancelled: list[str] = []

            async def slow(payload: str) -> None:
                begun.append(payload)
                try:
                    await asyncio.sleep(60)
                finally:
                    cancelled.append(payload)

            server.handler("slow")(slow)
            for turns in range(12):
                client = await smartipc.connect(address, name=f"c{turns}")
                client.handler("slow")(slow)
                await until(lambda: len(server.clients) == 1)
                calls = [
                    asyncio.create_task(client.request("slow", f"server {turns}")),
                    asyncio.create_task(server.request("slow", f"client {turns}", to=server.clients[0])),
                ]
                await until(lambda turns=turns: len(begun) == 2 * turns + 2)
                closing = asyncio.create_task(client.aclose(30))
                for _ in range(turns):
                    await asyncio.sleep(0)
                closing.cancel()
                await asyncio.wait({closing})
                assert closing.cancelled()
                if not turns:  # it had not begun
                    await client.aclose(0)
                assert client.state == "closed"
                await asyncio.wait(calls)
                await until(lambda: not server.clients)
                await until(lambda: sorted(begun) == sorted(cancelled))

    run(main())


def test_a_call_waits_for_the_connection_no_longer_than_its_deadline(address: str) -> None:
    async def main() -> None:
        server = await smartipc.serve(address)
        client = await smartipc.connect(address)
        await server.aclose()
        with pytest.raises(RequestTimeout, match="reconnecting") as late:
            await client.request("echo", 1, timeout=0.2)
        assert late.value.processed == "no"
        await client.aclose()

    run(main())


def test_who_is_asked_must_be_said(address: str) -> None:
    async def main() -> None:
        async with both(address) as (server, client):
            peer = server.clients[0]
            assert (peer.name, peer.ready) == ("one", True)
            with pytest.raises(LocalProtocolError, match="to="):
                await server.request("echo", 1)
            with pytest.raises(LocalProtocolError, match="one server"):
                await client.request("echo", 1, to=peer)
            await client.aclose()
            await until(lambda: not server.clients)
            with pytest.raises(ConnectionLost) as gone:
                await server.request("echo", 1, to=peer)
            assert gone.value.processed == "no"
            assert await server.broadcast("echo", 1) == []

    run(main())


def test_a_published_message_is_kept_when_its_publisher_stops_waiting(address: str) -> None:
    async def main() -> None:
        async with both(address) as (server, client), client.subscribe("a.b", max_pending=1) as messages:
            await server.publish("a.b", 1)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await server.publish("a.b", 2)
            assert [(await anext(messages)).payload for _ in range(2)] == [1, 2]

    run(main())


def test_a_timeout_of_a_handler_that_ran_does_not_claim_that_it_did_not(address: str) -> None:
    async def main() -> None:
        async with both(address) as (server, client):
            ran = asyncio.Event()

            async def slow(_payload: None) -> None:
                ran.set()
                await asyncio.Event().wait()

            server.handler("slow")(slow)
            for _ in range(2):
                ran.clear()
                with pytest.raises(RequestTimeout) as caught:
                    await client.request("slow", timeout=0.05)
                assert ran.is_set()
                assert (caught.value.processed, caught.value.timeout) == ("maybe", 0.05)
                assert caught.value.instance == "srv"

    run(main())


def test_a_forked_child_is_refused_and_harms_nothing(address: str) -> None:
    async def main() -> None:
        async with both(address) as (server, client), client.subscribe("a.b") as messages:
            assert await client.request("echo", 1) == 1
            pid = os.fork()
            if pid == 0:
                try:
                    os._exit(asyncio.run(refusals(server, client)))  # Python sees no running loop in a child
                except BaseException:
                    os._exit(100)
            _, status = await asyncio.to_thread(os.waitpid, pid, 0)
            assert os.waitstatus_to_exitcode(status) == 0
            assert await client.request("echo", 2) == 2
            await server.publish("a.b", 3)
            assert (await anext(messages)).payload == 3
            assert client.state == "connected"
            async with smartipc.connect(address) as another:
                assert await another.request("echo", 4) == 4

    run(main())


async def refusals(server: IpcServer, client: IpcClient) -> int:
    """Try everything, as a forked child; return how much of it was not refused."""

    async def opened(what: Any) -> None:
        async with what():
            pass

    attempts: list[Callable[[], Any]] = [
        lambda: client.request("echo", 2),
        lambda: client.notify("echo", 2),
        lambda: client.broadcast("echo", 2),
        lambda: client.publish("a.c", 2),
        lambda: anext(client.map("echo", [1])),
        lambda: opened(lambda: client.subscribe("a.d")),
        lambda: opened(lambda: client.open_stream("s", 1)),
        lambda: server.request("x", 1, to=server.clients[0]),
        lambda: server.publish("a.b", 1),
    ]
    left = len(attempts)
    for attempt in attempts:
        try:
            await attempt()
        except LocalProtocolError as error:
            left -= "fork" in str(error)
    await client.aclose()
    await server.aclose()
    return left


def test_what_was_open_is_refused_in_a_forked_child(address: str) -> None:
    """Also where something has arrived already: the parent will take it."""

    async def main() -> None:
        async with both(address) as (server, client):
            talks: list[Any] = []

            async def talk(channel: IpcChannel[int, int]) -> None:
                talks.append(channel)
                await channel.send(1)
                await channel.send(await channel.receive())

            server.handler(Channel("talk", send=int, receive=int))(talk)
            server.handler(Stream("count", int, int))(range)
            async with (
                client.subscribe("a.far") as far,
                server.subscribe("a.near") as near,
                client.open_stream(Stream("count", int, int), 3) as items,
                client.open_channel(Channel("talk", send=int, receive=int)) as channel,
            ):
                await server.publish("a.far", 1)
                await client.publish("a.near", 2)
                await until(lambda: "1 waiting" in repr(far) and "1 waiting" in repr(near))
                await until(lambda: "3 waiting" in repr(items) and "1 waiting" in repr(channel))
                attempts: list[Callable[[], Any]] = [
                    far.__anext__,
                    near.__anext__,
                    items.receive,
                    items.__anext__,
                    channel.receive,
                    channel.__anext__,
                    lambda: channel.send(1),
                    channel.close_sending,
                    talks[0].receive,
                    lambda: talks[0].send(1),
                ]
                pid = os.fork()
                if pid == 0:
                    try:
                        os._exit(asyncio.run(not_refused(attempts, [far, near])))
                    except BaseException:
                        os._exit(100)
                _, status = await asyncio.to_thread(os.waitpid, pid, 0)
                assert os.waitstatus_to_exitcode(status) == 0
                assert [item async for item in items] == [0, 1, 2]
                assert await channel.receive() == 1
                await channel.send(5)
                assert [item async for item in channel] == [5]
                assert [(await anext(one)).payload for one in (far, near)] == [1, 2]

    run(main())


async def not_refused(attempts: list[Callable[[], Any]], messages: list[Any]) -> int:
    left = len(attempts)
    for attempt in attempts:
        try:
            async with asyncio.timeout(1):
                await attempt()
        except LocalProtocolError as error:
            left -= "fork" in str(error)
    for one in messages:
        await one.__aexit__(None, None, None)  # leaving is no use of it
    return left


def test_a_handler_that_cancels_itself_is_answered(address: str) -> None:
    async def main() -> None:
        async with both(address) as (server, client):

            def one(_payload: None) -> None:
                raise asyncio.CancelledError

            def two(_payload: None, _message: object) -> None:
                raise asyncio.CancelledError

            async def three(_payload: None) -> None:
                raise asyncio.CancelledError

            for name, function in (("one", one), ("two", two), ("three", three)):
                server.handler(name)(function)
                with pytest.raises(RequestCancelled):
                    await client.request(name)
                for _ in range(3):
                    await client.notify(name)
                assert await client.request("echo", name) == name

    run(main())


def test_a_descriptor_is_connected_once_in_a_process() -> None:
    async def scene() -> None:
        near, far = socket.socketpair()
        address = f"fd://{near.detach()}"
        async with smartipc.serve(f"fd://{far.detach()}") as server, smartipc.connect(address) as first:
            server.handler("echo")(lambda text: text)
            for again in (smartipc.connect, smartipc.serve):
                with pytest.raises(LocalProtocolError, match="in use in this process already"):
                    await again(address)
            for blocking in (sync.connect, sync.serve):
                with pytest.raises(LocalProtocolError, match="in use in this process already"):
                    blocking(address)
            assert await first.request("echo", "whole") == "whole"

    run(scene())


def test_a_connection_made_in_a_handler_outlives_its_request(folder: Path) -> None:
    """What comes over it later is no part of that request: it has neither its deadline nor its trace."""
    near, far = f"unix://{folder}/near", f"unix://{folder}/far"
    done: list[Any] = []
    traces: list[str | None] = []

    async def scene() -> None:
        async with (
            smartipc.serve(near) as first,
            smartipc.serve(far) as second,
            smartipc.connect(near) as asking,
            contextlib.AsyncExitStack() as stack,
        ):
            second.handler("echo")(lambda _payload, message: traces.append(message.trace))

            async def join(_payload: None) -> None:
                client = await stack.enter_async_context(smartipc.connect(far))

                async def again(payload: str) -> None:
                    await client.request("echo", payload)
                    done.append(payload)

                client.handler("note")(again)
                client.handler("stream")(lambda payload: (payload for _ in range(1)))
                client.subscriber("news")(again)

            first.handler("join")(join)
            await asking.request("join", timeout=0.2)
            await until(lambda: bool(second.clients))
            await asyncio.sleep(0.25)  # until the deadline of that request has passed
            await second.notify("note", "note", to=second.clients[0])
            await until(lambda: done == ["note"])
            while not await second.broadcast("note", "asked"):
                await asyncio.sleep(0.01)
            while len(done) < 3:
                await second.publish("news", "news")
                await asyncio.sleep(0.01)
            assert done[:3] == ["note", "asked", "news"]
            assert len({*traces[:3]}) == 3

    run(scene())
