"""What a failing handler tells its caller: everything within one user, no traceback, path or value over a network."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from ends import Pair

from smartipc import Channel, InvalidPayload, Method, RemoteError, Stream, StreamReset

PLACE = "/srv/hidden/keys.pem"
VALUE = "hunter2"


class Declared(Exception):
    """Declared by both: its arguments are meant to be told."""


method = Method("method", str, int, errors=(Declared,))
stream = Stream("stream", str, int, errors=(Declared,))
channel = Channel("channel", send=str, receive=int, errors=(Declared,))


def fail(how: str) -> Any:
    match how:
        case "file":
            raise FileNotFoundError(2, "No such file or directory", PLACE)
        case "key":
            return {}[VALUE]
        case "own":
            raise RuntimeError(f"cannot read {PLACE}\nbecause of {VALUE}")
        case "declared":
            raise Declared(PLACE, VALUE)
        case _:
            return VALUE  # which is no int


def serve(end: Any) -> None:
    end.handler(method)(fail)
    if end.flavour == "async":

        async def items_later(how: str) -> AsyncIterator[int]:
            yield 1
            yield fail(how)

        async def talk_later(one: Any) -> None:
            fail(await one.receive())

        end.handler(stream)(items_later)
        end.handler(channel)(talk_later)
    else:

        def items(how: str) -> Iterator[int]:
            yield 1
            yield fail(how)

        def talk(one: Any) -> None:
            fail(one.receive())

        end.handler(stream)(items)
        end.handler(channel)(talk)


def request(caller: Any, how: str, to: dict[str, Any]) -> None:
    caller.request(method, how, **to)


def read(caller: Any, how: str, to: dict[str, Any]) -> None:
    with caller.open_stream(stream, how, **to) as items:
        assert items.receive() == 1
        items.receive()


def talk(caller: Any, how: str, to: dict[str, Any]) -> None:
    with caller.open_channel(channel, **to) as one:
        one.send(how)
        one.receive()


def told(call: Callable[[Any, str, dict[str, Any]], None], caller: Any, how: str, to: dict[str, Any]) -> Exception:
    with pytest.raises((RemoteError, InvalidPayload, StreamReset, Declared)) as raised:
        call(caller, how, to)
    error: Exception = raised.value
    return error


@pytest.mark.parametrize("call", [request, read, talk])
def test_what_a_failing_handler_tells(pair: Pair, call: Callable[[Any, str, dict[str, Any]], None]) -> None:
    apart = pair.place.transport in ("tcp", "tls")
    for caller, server, to in ((pair.client, pair.server, {}), (pair.server, pair.client, {"to": pair.peer()})):
        serve(server)
        for how, name, hidden in (
            ("file", "FileNotFoundError", PLACE),
            ("key", "KeyError", VALUE),
            ("own", "RuntimeError", PLACE),
        ):
            error = told(call, caller, how, to)
            remote = error.__cause__ if isinstance(error, StreamReset) else error
            assert isinstance(remote, RemoteError)
            assert remote.type_name == name
            everything = repr(error) + str(error) + repr(remote) + str(remote)
            if apart:
                assert remote.remote_traceback is None
                assert hidden not in everything
                assert VALUE not in everything
                assert __file__ not in everything
            else:
                assert remote.remote_traceback is not None
                assert __file__ in remote.remote_traceback
                assert hidden in remote.message
        error = told(call, caller, "declared", to)
        assert isinstance(error, Declared)
        assert error.args == (PLACE, VALUE)


def test_a_wrong_result_is_not_shown(pair: Pair) -> None:
    for caller, server, to in ((pair.client, pair.server, {}), (pair.server, pair.client, {"to": pair.peer()})):
        serve(server)
        for call in (request, read):
            error = told(call, caller, "wrong", to)
            assert VALUE not in repr(error) + str(error)
