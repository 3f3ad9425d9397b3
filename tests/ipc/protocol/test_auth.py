"""The token handshake: who gets in, what each side learns, and every way to cheat that it must withstand."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from typing import Literal

import msgspec
import pytest

from smartipc.ipc.errors import AuthenticationFailed, FrameTooLarge, LocalProtocolError, RemoteProtocolError
from smartipc.ipc.protocol.auth import Auth
from smartipc.ipc.protocol.connection import Connection
from smartipc.ipc.protocol.events import Closed, Event, NotifyReceived, Opened, RequestReceived
from smartipc.ipc.protocol.handshake import Identity
from smartipc.ipc.protocol.states import ConnectionState
from smartipc.ipc.wire import heads
from smartipc.ipc.wire.frames import HEADER, HEADER_SIZE, PREFACE, Kind, frame
from smartipc.ipc.wire.limits import Limits

ENDPOINT = "unix:/run/x.sock"


def client(token: str | bytes | None = "secret", endpoint: str = ENDPOINT, nonce: bytes = b"c" * 32) -> Connection:
    auth = Auth(token, nonce, endpoint) if token is not None else None
    connection = Connection("client", Identity("c", 1), auth=auth)
    connection.start(0.0)
    return connection


def server(token: str | bytes | None = "secret", endpoint: str = ENDPOINT, nonce: bytes = b"s" * 32) -> Connection:
    auth = Auth(token, nonce, endpoint) if token is not None else None
    connection = Connection("server", Identity("s", 2), auth=auth)
    connection.start(0.0)
    return connection


def said(connection: Connection) -> bytes:
    out = b""
    while connection.has_data:
        out += b"".join(connection.data_to_send())
    return out


def settle(one: Connection, two: Connection) -> tuple[list[Event], list[Event]]:
    """Pass bytes both ways until nobody has anything to say; return what each side saw."""
    seen: tuple[list[Event], list[Event]] = ([], [])
    while one.has_data or two.has_data:
        seen[1].extend(two.receive_data(said(one), 0.0))
        seen[0].extend(one.receive_data(said(two), 0.0))
    return seen


def frames(data: bytes) -> list[tuple[int, bytes]]:
    data = data.removeprefix(PREFACE)
    found = []
    while data:
        size, kind, *_ = HEADER.unpack_from(data)
        found.append((kind, data[HEADER_SIZE : HEADER_SIZE + size]))
        data = data[HEADER_SIZE + size :]
    return found


def closed(events: list[Event]) -> Closed:
    assert isinstance(events[-1], Closed), events
    return events[-1]


# who gets in


def test_both_sides_with_the_token_get_together() -> None:
    one, two = client(b"secret"), server("secret")
    assert settle(one, two) == ([Opened(Identity("s", 2))], [Opened(Identity("c", 1))])
    one.request("a.b", b"x", 0.0, timeout=1.0)
    (event,) = two.receive_data(said(one), 0.0)
    assert isinstance(event, RequestReceived)


@pytest.mark.parametrize("theirs", ["Secret", "secret ", b"\xff"])
def test_a_wrong_token_is_refused_with_one_frame(theirs: str | bytes) -> None:
    one, two = client(theirs), server()
    two.receive_data(said(one), 0.0)
    one.receive_data(said(two), 0.0)
    events = two.receive_data(said(one), 0.0)
    assert isinstance(closed(events).error, AuthenticationFailed)
    answer = said(two)
    assert [kind for kind, _ in frames(answer)] == [Kind.REJECT]
    mine = closed(one.receive_data(answer, 0.0)).error
    assert isinstance(mine, AuthenticationFailed)
    assert "the token is wrong" in str(mine)
    assert not two.has_data
    assert two.receive_data(b"more", 0.0) == []


@pytest.mark.parametrize(
    ("mine", "theirs", "says"),
    [(None, "secret", "a token is needed"), ("secret", None, "no token is used")],
)
def test_nobody_is_talked_out_of_the_token(mine: str | None, theirs: str | None, says: str) -> None:
    one, two = client(mine), server(theirs)
    at_client, at_server = settle(one, two)
    for events in (at_client, at_server):
        error = closed(events).error
        assert isinstance(error, AuthenticationFailed)
        assert says in str(error)
        assert len(events) == 1


def test_a_server_that_does_not_know_the_token_is_found_out() -> None:
    one, two = client(), server()
    two.receive_data(said(one), 0.0)
    one.receive_data(said(two), 0.0)
    said(one)
    (event,) = one.receive_data(frame(Kind.AUTH_OK, 0, heads.encoder.encode(heads.Proof(b"\0" * 32))), 0.0)
    assert isinstance(closed([event]).error, AuthenticationFailed)
    assert [kind for kind, _ in frames(said(one))] == [Kind.FATAL]


def test_a_server_that_skips_its_own_proof_is_found_out() -> None:
    one = client()
    said(one)
    welcome = heads.Welcome(0, [], "s", 2, 0, "", 1 << 20)
    (event,) = one.receive_data(PREFACE + frame(Kind.WELCOME, 0, heads.encoder.encode(welcome)), 0.0)
    assert isinstance(closed([event]).error, RemoteProtocolError)


# cheating


def test_a_proof_sent_back_proves_nothing() -> None:
    one, two = client(), server()
    two.receive_data(said(one), 0.0)
    one.receive_data(said(two), 0.0)
    ((_, proof),) = frames(said(one))
    (event,) = one.receive_data(frame(Kind.AUTH_OK, 0, proof), 0.0)
    assert isinstance(closed([event]).error, AuthenticationFailed)


def test_a_recorded_conversation_does_not_open_again() -> None:
    one, two = client(), server()
    hello = said(one)
    two.receive_data(hello, 0.0)
    one.receive_data(said(two), 0.0)
    auth = said(one)
    assert any(isinstance(event, Opened) for event in two.receive_data(auth, 0.0))
    again = server(nonce=b"t" * 32)
    again.receive_data(hello, 0.0)
    assert isinstance(closed(again.receive_data(auth, 0.0)).error, AuthenticationFailed)


@pytest.mark.parametrize("whose", ["hello", "welcome"])
def test_a_changed_offer_is_noticed(whose: Literal["hello", "welcome"]) -> None:
    """Somebody on the way lowers a limit or drops a feature: no proof fits any more."""
    one, two = client(), server()

    def changed(data: bytes, cls: type[heads.Hello | heads.Welcome], kind: Kind) -> bytes:
        ((_, head),) = frames(data)
        decoded = msgspec.structs.replace(heads.decode(head, cls), message_limit=1000)
        return PREFACE + frame(kind, 0, heads.encoder.encode(decoded))

    hello = said(one)
    two.receive_data(changed(hello, heads.Hello, Kind.HELLO) if whose == "hello" else hello, 0.0)
    welcome = said(two)
    one.receive_data(changed(welcome, heads.Welcome, Kind.WELCOME) if whose == "welcome" else welcome, 0.0)
    assert isinstance(closed(two.receive_data(said(one), 0.0)).error, AuthenticationFailed)


def test_passing_everything_on_to_a_server_elsewhere_is_noticed() -> None:
    one, two = client(endpoint="unix:/tmp/squatted.sock"), server()
    at_client, at_server = settle(one, two)
    assert isinstance(closed(at_client).error, AuthenticationFailed)
    assert isinstance(closed(at_server).error, AuthenticationFailed)


def test_parts_of_the_transcript_cannot_be_shifted() -> None:
    def proof(client_bytes: bytes, server_bytes: bytes) -> bytes:
        auth = Auth("k", b"n" * 32, "e")
        auth.bind(client_bytes, server_bytes)
        return auth.proof("client")

    assert proof(b"ab", b"c") != proof(b"a", b"bc")


def test_the_proofs_are_what_the_documentation_says() -> None:
    auth = Auth("secret", b"n" * 32, "tcp:127.0.0.1:7000")
    auth.bind(b"hello", b"welcome")
    whole = b"smartipc/1 transcript"
    for part in (b"hello", b"welcome", b"tcp:127.0.0.1:7000"):
        whole += len(part).to_bytes(8, "little") + part
    digest = hashlib.sha256(whole).digest()
    assert auth.proof("client") == hmac.digest(b"secret", b"smartipc/1 client" + digest, "sha256")
    assert auth.proof("server") == hmac.digest(b"secret", b"smartipc/1 server" + digest, "sha256")
    auth.check("server", auth.proof("server"))


# before the proof nothing passes


def test_what_is_said_before_the_handshake_waits_for_it() -> None:
    one, two = client(), server()
    one.notify("a.b", b"1")
    one.ping(0.0)
    two.notify("c.d", b"2")
    assert [kind for kind, _ in frames(said(one))] == [Kind.HELLO]
    assert not two.has_data
    one, two = client(), server()
    one.notify("a.b", b"1")
    two.notify("c.d", b"2")
    at_client, at_server = settle(one, two)
    assert [type(event) for event in at_client] == [Opened, NotifyReceived]
    assert [type(event) for event in at_server] == [Opened, NotifyReceived]


@pytest.mark.parametrize("kind", sorted(set(Kind) - {Kind.AUTH}))
def test_before_its_proof_a_peer_can_say_nothing_else(kind: Kind) -> None:
    two = server()
    two.receive_data(said(client()), 0.0)
    said(two)
    head = heads.encoder.encode(heads.Reason("x")) if kind is Kind.FATAL else b""
    (event,) = two.receive_data(frame(kind, 1, head), 0.0)
    assert isinstance(event, Closed)
    assert two.peer is None
    assert len(frames(said(two))) == (0 if kind is Kind.FATAL else 1)


def test_what_is_queued_is_not_leaked_to_a_peer_that_fails() -> None:
    one, two = client("wrong"), server()
    two.notify("secret.words", b"payload")
    two.receive_data(said(one), 0.0)
    one.receive_data(said(two), 0.0)
    two.receive_data(said(one), 0.0)
    assert b"secret.words" not in said(two)
    one, two = client(), server(None)
    one.notify("secret.words", b"payload")
    two.receive_data(said(one), 0.0)
    one.receive_data(said(two), 0.0)
    assert b"secret.words" not in said(one)


def test_the_handshake_as_a_whole_has_a_size() -> None:
    limits = Limits(preauth=256)
    two = Connection("server", Identity(), limits, auth=Auth("k", b"s" * 32, ""))
    two.start(0.0)
    two.receive_data(said(client("k", "")), 0.0)
    assert two.state is ConnectionState.OPENING
    (event,) = two.receive_data(frame(Kind.AUTH, 0, heads.encoder.encode(heads.Proof(b"x" * 200))), 0.0)
    assert isinstance(closed([event]).error, FrameTooLarge)


def test_the_handshake_has_a_time() -> None:
    two = server()
    two.receive_data(said(client()), 1.0)
    assert two.next_timer() == 2.0
    (event,) = two.handle_timer(2.0)
    assert isinstance(closed([event]).error, RemoteProtocolError)


def test_closing_within_the_handshake_sends_nothing_that_waited() -> None:
    one = client()
    said(one)
    one.notify("a.b", b"1")
    (event,) = one.close()
    assert isinstance(event, Closed)
    assert said(one) == b""


# values


@pytest.mark.parametrize(
    "make", [lambda: Auth("", b"n" * 32, ""), lambda: Auth(b"", b"n" * 32, ""), lambda: Auth("x", b"n" * 31, "")]
)
def test_a_bad_token_or_nonce_of_our_own_is_our_mistake(make: Callable[[], Auth]) -> None:
    with pytest.raises(LocalProtocolError):
        make()


@pytest.mark.parametrize("role", ["client", "server"])
def test_a_nonce_of_another_size_is_refused(role: Literal["client", "server"]) -> None:
    connection = server() if role == "server" else client()
    said(connection)
    if role == "server":
        hello = heads.Hello(0, 0, [], "", 0, 0, "", 1, b"short", ("token",))
        data = frame(Kind.HELLO, 0, heads.encoder.encode(hello))
    else:
        welcome = heads.Welcome(0, [], "", 0, 0, "", 1, b"short", "token")
        data = frame(Kind.WELCOME, 0, heads.encoder.encode(welcome))
    (event,) = connection.receive_data(PREFACE + data, 0.0)
    assert "a nonce of 5 bytes" in str(closed([event]).error)


def test_it_tells_no_secret() -> None:
    auth = Auth("hunter2", b"n" * 32, "e")
    auth.bind(b"a", b"b")
    assert repr(auth) == "<Auth with a transcript>"


# discretion


@pytest.mark.parametrize("same_user", [True, False])
def test_only_processes_of_our_own_user_see_tracebacks(same_user: bool) -> None:
    one = client()
    two = Connection("server", Identity("s", 2), auth=Auth("secret", b"s" * 32, ENDPOINT, same_user=same_user))
    two.start(0.0)
    settle(one, two)
    fault = heads.Fault(2, "RemoteError", "boom", type="ValueError", traceback="File /secret/path.py")
    call = one.request("a.b", b"x", 0.0, timeout=1.0)
    stream = one.streams.open("a.c", b"", duplex=False)
    two.receive_data(said(one), 0.0)
    two.fail(call, fault)
    two.streams.fail(stream, fault)
    data = said(two)
    assert (b"/secret/path.py" in data) is same_user
    assert data.count(b"boom") == 2


# who may come in at all


def test_a_peer_may_be_refused_by_what_it_says_of_itself() -> None:
    two = Connection("server", Identity("s"), admit=lambda peer: f"{peer.name} is not you" if peer.pid != 7 else "")
    two.start(0.0)
    at_client, at_server = settle(client(None), two)
    for events in (at_client, at_server):
        error = closed(events).error
        assert isinstance(error, AuthenticationFailed)
        assert "c is not you" in str(error)
    one = Connection("client", Identity("c"), admit=lambda peer: f"{peer.name} is not the one")
    one.start(0.0)
    other = server(None)
    at_client, at_server = settle(one, other)
    assert "s is not the one" in str(closed(at_client).error)
