"""Whatever a user's own code raises, at either end, is told to the caller, and costs no other call: both flavours."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from ends import Pair, Place
from kit import wait_for

from smartipc import InvalidPayload, Method, Overloaded, RemoteError, RequestCancelled, Stream, Topic


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class Struct(msgspec.Struct):
    number: int

    def __post_init__(self) -> None:
        if self.number == 5:
            raise KeyError(self.number)


@dataclasses.dataclass
class Data:
    number: int

    def __post_init__(self) -> None:
        if self.number == 5:
            raise RuntimeError("five")


PICKY: list[tuple[Any, Any, str]] = [
    (Struct, {"number": 5}, "KeyError: 5"),
    (Data, {"number": 5}, "RuntimeError: five"),
]


def unset() -> Struct:
    value = Struct(1)
    del value.number
    return value


@pytest.fixture(params=["async", "sync"])
def pair(request: pytest.FixtureRequest, folder: Path) -> Iterator[Pair]:
    pair = Pair(Place("unix", folder), request.param, request.param)
    pair.server.handler("echo")(lambda payload: payload)
    yield pair
    pair.close()


def raiser(error: Callable[[], BaseException]) -> Callable[[Any], Any]:
    def raises(_: Any) -> Any:
        raise error()

    return raises


def test_an_error_without_words(pair: Pair) -> None:
    pair.server.handler("mute")(raiser(Mute))
    pair.server.handler(Stream("items", Any, Any))(raiser(Mute))
    with pytest.raises(RemoteError, match="its __str__ raised RuntimeError") as caught:
        pair.client.request("mute", None, timeout=5)
    assert caught.value.type_name == "Mute"
    with (
        pytest.raises(RemoteError, match="its __str__ raised RuntimeError"),
        pair.client.open_stream("items", None) as items,
    ):
        items.receive()
    assert pair.client.request("echo", 1, timeout=5) == 1


@pytest.mark.parametrize(("wanted", "payload", "reason"), PICKY, ids=lambda value: getattr(value, "__name__", ""))
def test_a_type_that_refuses_a_value_with_an_error_of_its_own(
    pair: Pair, wanted: Any, payload: Any, reason: str
) -> None:
    pair.server.handler(Method("takes", wanted, int))(lambda _: 1)
    pair.server.handler(Method("gives", int, wanted))(lambda _: payload)
    pair.server.handler("plain")(lambda _: payload)
    with pytest.raises(InvalidPayload, match=reason) as caught:
        pair.client.request("takes", payload, timeout=5)
    assert caught.value.processed == "no"
    with pytest.raises(InvalidPayload, match=reason) as caught:
        pair.client.request("gives", 1, timeout=5)
    assert caught.value.processed == "yes"
    with pytest.raises(InvalidPayload, match=reason):
        pair.client.request(Method("plain", int, wanted), 1, timeout=5)
    with pytest.raises(InvalidPayload, match=reason):
        list(pair.client.map("takes", [payload] * 40))
    assert pair.client.request("echo", 1, timeout=5) == 1


def test_a_message_that_its_type_refuses_with_an_error_of_its_own(pair: Pair) -> None:
    with pair.client.subscribe(Topic("numbers", Struct)) as messages:
        pair.server.publish("numbers", {"number": 5})
        pair.server.publish("numbers", {"number": 6})
        with pytest.raises(InvalidPayload, match="KeyError: 5"):
            messages.receive(timeout=5)
        assert messages.receive(timeout=5).payload == Struct(6)


def test_a_value_that_cannot_be_read(pair: Pair) -> None:
    pair.server.handler("unset")(lambda _: unset())
    with pytest.raises(InvalidPayload, match="is unset"):
        pair.client.request("unset", None, timeout=5)
    with pytest.raises(InvalidPayload, match="is unset"):
        pair.client.request("echo", unset(), timeout=5)
    with pytest.raises(InvalidPayload, match="is unset"):
        pair.client.publish("topic", unset())
    assert pair.client.request("echo", 1, timeout=5) == 1


def test_a_stream_that_lets_the_error_of_its_own_call_pass_did_run(pair: Pair) -> None:
    def generator(_: Any) -> Iterator[int]:
        yield 1
        raise Overloaded(method="elsewhere")

    pair.server.handler(Stream("items", Any, int))(generator)
    with pair.client.open_stream("items", None) as items:
        assert items.receive() == 1
        with pytest.raises(Overloaded) as caught:
            items.receive()
    assert caught.value.processed == "yes"
    assert not caught.value.retryable


def test_an_item_that_does_not_fit_was_made_by_a_handler_that_ran(pair: Pair) -> None:
    def generator(_: Any) -> Iterator[Any]:
        yield 1
        yield object()

    pair.server.handler(Stream("items", Any, int))(generator)
    with pair.client.open_stream("items", None) as items:
        assert items.receive() == 1
        with pytest.raises(InvalidPayload) as caught:
            items.receive()
    assert caught.value.processed == "yes"


class Oddity(BaseException):
    pass


ODD: list[Callable[[], BaseException]] = [Oddity, GeneratorExit, lambda: BaseException("odd")]


@pytest.fixture
def odd(folder: Path) -> Iterator[Pair]:
    """An async server: a blocking one ends by what is no Exception, having told its caller."""
    pair = Pair(Place("unix", folder), "async", "async")
    pair.server.handler("echo")(lambda payload: payload)
    yield pair
    pair.close()


@pytest.mark.parametrize("error", ODD)
def test_what_is_no_exception_is_told_and_costs_no_other_call(odd: Pair, error: Callable[[], BaseException]) -> None:
    odd.server.handler("plain")(raiser(error))
    odd.server.handler("full")(lambda payload, _message: raiser(error)(payload))
    for name in ("plain", "full"):
        with pytest.raises(RemoteError, match=name):
            odd.client.request(name, 1, timeout=5)
        with pytest.raises(RemoteError, match=name):
            list(odd.client.map(name, range(40)))
        odd.client.notify(name, 1)
        assert odd.client.request("echo", 1, timeout=5) == 1


def test_what_is_no_exception_of_a_coroutine_is_told(odd: Pair) -> None:
    async def handler(_: Any) -> None:
        await asyncio.sleep(0)
        raise Oddity

    odd.server.handler("odd")(handler)
    with pytest.raises(RemoteError, match="Oddity"):
        odd.client.request("odd", 1, timeout=5)


async def awaits_what_was_cancelled(_: Any) -> None:
    gone = asyncio.get_running_loop().create_future()
    gone.cancel()
    await gone


@pytest.mark.parametrize(
    "failing", [awaits_what_was_cancelled, raiser(Oddity), raiser(StopAsyncIteration), raiser(Mute)]
)
def test_a_subscriber_function_is_called_again_whatever_it_raised(odd: Pair, failing: Callable[[Any], Any]) -> None:
    heard: list[int] = []

    def subscriber(number: int) -> Any:
        heard.append(number)
        return failing(number)

    odd.client.subscriber("numbers")(subscriber)
    assert odd.client.request("echo", 0) == 0  # behind its subscription
    for number in range(3):
        odd.server.publish("numbers", number)
    wait_for(lambda: heard == [0, 1, 2], "every message heard")


def test_a_coroutine_that_waits_for_what_was_cancelled_is_answered(odd: Pair) -> None:
    odd.server.handler("gone")(awaits_what_was_cancelled)
    with pytest.raises(RequestCancelled):
        odd.client.request("gone", 1, timeout=5)
