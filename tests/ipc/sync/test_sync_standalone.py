"""What only blocking clients and servers do: fork, home threads, closing from a handler, being in several threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from ends import SyncEnd
from kit import wait_for

from smartipc import (
    AuthenticationFailed,
    Channel,
    ConnectFailed,
    LocalProtocolError,
    RemoteProtocolError,
    RequestTimeout,
    Stream,
)
from smartipc.ipc import sync


@pytest.fixture
def address(folder: Path) -> str:
    return f"unix://{folder}/s.sock"


@pytest.fixture
def server(address: str) -> Iterator[SyncEnd]:
    server = SyncEnd("server", address)
    server.handler("echo")(lambda payload: payload)
    yield server
    server.close()


def in_child(check: object) -> bool:
    """Run `check()` in a forked child; tell whether it returned True."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if check() else 1)  # type: ignore[operator]
        except BaseException:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def refused(what: object) -> bool:
    try:
        what()  # type: ignore[operator]
    except LocalProtocolError:
        return True
    return False


def test_a_forked_child_is_refused_and_harms_nothing(server: SyncEnd, address: str) -> None:
    with sync.connect(address) as client:
        assert client.request("echo", 1) == 1
        with client.subscribe("a.b") as messages:

            def child() -> bool:
                attempts = (
                    lambda: client.request("echo", 2),
                    lambda: client.notify("echo", 2),
                    lambda: client.publish("a.c", 2),
                    lambda: client.subscribe("a.d").__enter__(),
                    lambda: server.it.request("x", 1, to=server.it.clients[0]),
                    lambda: server.it.publish("a.b", 1),
                )
                all_refused = all(refused(attempt) for attempt in attempts)
                client.close()
                server.it.close()
                return all_refused

            assert in_child(child)
            assert client.request("echo", 3) == 3
            server.publish("a.b", 4)
            message = messages.receive(10)
            assert message is not None
            assert message.payload == 4
        assert client.state == "connected"


def test_what_was_open_is_refused_in_a_forked_child(server: SyncEnd, address: str) -> None:
    """Also where something has arrived already: the parent will take it."""

    def talk(channel: sync.IpcChannel[int, int]) -> None:
        channel.send(1)
        channel.send(channel.receive())

    server.handler(Channel("talk", send=int, receive=int))(talk)
    server.handler(Stream("count", int, int))(range)
    with (
        sync.connect(address) as client,
        client.subscribe("a.b") as far,
        client.open_stream(Stream("count", int, int), 3) as items,
        client.open_channel(Channel("talk", send=int, receive=int)) as channel,
    ):
        server.publish("a.b", 1)
        whole = ("1 waiting", "3 waiting", "1 waiting")
        client.closed(0.01)
        wait_for(
            lambda: client.closed(0.01) or all(w in repr(x) for w, x in zip(whole, (far, items, channel), strict=True)),
            "all has come",
        )

        def child() -> bool:
            attempts = (
                lambda: next(far),
                lambda: far.receive(0.1),
                items.receive,
                lambda: next(items),
                channel.receive,
                lambda: channel.receive(0.1),
                lambda: channel.send(1),
                channel.close_sending,
            )
            return all(refused(attempt) for attempt in attempts)

        assert in_child(child)
        assert list(items) == [0, 1, 2]
        assert channel.receive() == 1
        channel.send(5)
        assert list(channel) == [5]
        message = far.receive(10)
        assert message is not None
        assert message.payload == 1


def test_an_idle_client_answers_while_it_waits_and_only_then(server: SyncEnd, address: str) -> None:
    with sync.connect(address, name="one") as client:
        here = threading.get_ident()
        client.handler("where")(lambda _: threading.get_ident())
        peer = wait_for(lambda: server.clients, "it is listed")[0]
        with pytest.raises(RequestTimeout):
            server.request("where", None, to=peer, timeout=0.1)
        found: list[int] = []
        asking = server.submit(lambda: found.append(server.request("where", None, to=peer)))
        assert not client.closed(0.2), "waiting serves"
        asking.join(10)
        assert found == [here]
        asking = server.submit(lambda: found.append(server.request("where", None, to=peer)))
        wait_for(lambda: client.request("echo", 1) and len(found) == 2, "a request serves, too")
        asking.join(10)
        assert found == [here, here]


def test_a_handler_may_close_its_server(address: str) -> None:
    server = sync.serve(address)
    server.handler("stop")(lambda _: server.close())
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    with sync.connect(address) as client:
        client.request("stop", None)
        serving.join(10)
        assert not serving.is_alive()
        assert server.state == "closed"
        server.close()
        wait_for(lambda: client.closed(0.01) or client.state == "reconnecting", "the client sees the end")


def test_connecting_in_vain_says_why(folder: Path, address: str) -> None:
    with pytest.raises(ConnectFailed):
        sync.connect(address, timeout=0.2)
    with pytest.raises(ValueError, match="scheme"):
        sync.connect("carrier-pigeon://coop")
    with pytest.raises(AuthenticationFailed, match="token"):
        sync.connect("tcp://127.0.0.1:1")
    with pytest.raises(ConnectFailed, match="token"):
        sync.serve("tcp://127.0.0.1:0")
    with pytest.raises(ConnectFailed, match="off loopback"):
        sync.serve("tcp://0.0.0.0:0", token="t")
    server = SyncEnd("server", address, token="right")
    try:
        with pytest.raises(AuthenticationFailed):
            sync.connect(address, token="wrong")
        with pytest.raises((AuthenticationFailed, RemoteProtocolError)):
            sync.connect(address)
        with sync.connect(address, token="right") as client:
            assert client.state == "connected"
        with pytest.raises(ConnectFailed):
            sync.serve(address)
    finally:
        server.close()


def test_a_closed_client_stays_closed(server: SyncEnd, address: str) -> None:
    states: list[str] = []
    client = sync.connect(address)
    client.on_state(states.append)
    client.close()
    client.close()
    assert states == ["closed"]
    assert client.closed(0)
    with pytest.raises(Exception, match="closed"):
        client.request("echo", 1)
    assert "closed" in repr(client)
    assert client.server == ""


def test_who_is_asked_must_be_said(server: SyncEnd, address: str) -> None:
    with sync.connect(address) as client:
        with pytest.raises(LocalProtocolError, match="to="):
            server.request("echo", 1)
        with pytest.raises(LocalProtocolError, match="one server"):
            client.request("echo", 1, slot=0)


@pytest.mark.parametrize("grace", [5.0, 0.0])
def test_two_threads_that_close_at_once_both_return(address: str, grace: float) -> None:
    """The one in `with` leaves because the other one closes: whoever is second finds it closed."""
    for _ in range(20):
        errors: list[BaseException] = []
        serving = threading.Event()
        servers: list[sync.IpcServer] = []

        def serve(errors: list[BaseException], serving: threading.Event, servers: list[sync.IpcServer]) -> None:
            try:
                with sync.serve(address) as server:
                    servers.append(server)
                    server.handler("echo")(lambda payload: payload)
                    serving.set()
                    server.serve_forever()
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=serve, args=(errors, serving, servers))
        thread.start()
        assert serving.wait(10)
        client = sync.connect(address)
        assert client.request("echo", 1) == 1
        closers = [threading.Thread(target=client.close, args=(grace,)) for _ in range(2)]
        for closer in closers:
            closer.start()
        servers[0].close(grace)
        thread.join(20)
        assert not thread.is_alive()
        assert errors == []
        for closer in closers:
            closer.join(20)
            assert not closer.is_alive()
        assert client.state == "closed"
