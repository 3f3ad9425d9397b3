"""Handlers whose annotations contradict their contract are refused; whatever might fit, or says nothing, passes."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import functools
import typing
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NewType, Protocol, TypedDict, TypeVar

import msgspec
import pytest

import smartipc
from smartipc import Buffer, Channel, IpcChannel, IpcMessage, LocalProtocolError, Method, Stream, Topic
from smartipc.ipc import signatures, sync
from smartipc.ipc.dispatch import Registry

T = TypeVar("T")


class Job(msgspec.Struct):
    number: int


class Special(Job): ...


class Other(msgspec.Struct):
    number: int


class Row(msgspec.Struct, array_like=True):
    number: int


class Typed(TypedDict):
    number: int


class Colour(enum.Enum):
    RED = "red"


class Number(enum.IntEnum):
    ONE = 1


class Sized(Protocol):
    def size(self) -> int: ...


@dataclasses.dataclass
class Plain:
    number: int


UserId = NewType("UserId", int)


def one(takes: Any, returns: Any = Any) -> Callable[[Any], Any]:
    def handle(payload: Any) -> Any: ...

    handle.__annotations__ = {"payload": takes, "return": returns}
    return handle


def refused(contract: Any, function: Callable[..., Any]) -> str | None:
    try:
        signatures.check(contract, function, "here")
    except LocalProtocolError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("request_type", "annotation"),
    [
        (Job, Job), (Special, Job), (Job, Any), (Job, object), (Job, Job | None), (Job | None, Job), (Job, "Job"),
        (Job, "Nowhere"), (Job, "1 +"), (Job, T), (Job, Sized), (int, float), (int, UserId), (UserId, int),
        (list[int], list[int]), (list[int], Sequence[int]), (list[Job], list), (list[int], list[float]),
        (dict[str, int], Mapping[str, int]), (Typed, Typed), (Typed, dict[str, Any]), (str, Literal["a", "b"]),
        (Annotated[int, msgspec.Meta(ge=0)], int), (tuple[int, ...], tuple[int, int]), (None, None),
        (type(None), None), (Buffer, Buffer), (Any, Job), (list[Any], list[Job]), (bool, int),
    ],
)  # fmt: skip
def test_what_may_fit_is_taken(request_type: Any, annotation: Any) -> None:
    assert refused(Method("w.m", request_type, int), one(annotation)) is None


@pytest.mark.parametrize(
    ("request_type", "annotation"),
    [
        (Job, Other), (Job, Special), (Job, int), (Job, dict), (Job, None), (None, Job), (int, str), (str, bytes),
        (float, int), (list[int], list[str]), (list[int], dict[str, int]), (dict[str, int], dict[str, bytes]),
        (Job | None, Other), (Job, Other | int), (Typed, list), (Literal["a"], int), (Job, "Other"),
        (list[list[int]], list[list[str]]), (Buffer, bytes),
    ],
)  # fmt: skip
def test_a_request_that_cannot_be_what_the_handler_takes(request_type: Any, annotation: Any) -> None:
    said = refused(Method("w.m", request_type, int), one(annotation))
    assert said is not None
    assert said.startswith("the request of w.m is ")
    assert "but its handler here takes " in said


@pytest.mark.parametrize(
    ("reply", "annotation"),
    [
        (Job, Job), (Job, Special), (Job, dict[str, Any]), (Job, Typed), (dict, Job), (Job, Any), (float, int),
        (Job, Job | None), (list[int], tuple[int, ...]), (set[int], list[int]), (uuid.UUID, str), (str, uuid.UUID),
        (Colour, str), (Number, int), (Job, Awaitable[Job]), (Job, typing.NoReturn), (Job, typing.Awaitable),
        (Buffer, bytes), (Row, list), (Sized, int), (str, Colour),
    ],
)  # fmt: skip
def test_results_that_read_as_the_reply_are_taken(reply: Any, annotation: Any) -> None:
    assert refused(Method("w.m", int, reply), one(int, annotation)) is None


@pytest.mark.parametrize(
    ("reply", "annotation"),
    [
        (Job, Other), (Job, Plain), (Job, int), (Job, None), (None, Job), (int, str), (int, float), (str, bytes),
        (Job, list), (Job, Awaitable[Other]), (dict, Row), (uuid.UUID, None), (None, uuid.UUID), (list[int], list[str]),
    ],
)  # fmt: skip
def test_a_result_that_cannot_be_the_reply(reply: Any, annotation: Any) -> None:
    said = refused(Method("w.m", int, reply), one(int, annotation))
    assert said is not None
    assert said.startswith("the reply of w.m is ")
    assert "but its handler here returns " in said


def test_items_and_the_two_directions_of_a_channel() -> None:
    stream = Stream("w.s", int, Job)
    for fine in (AsyncIterator[Job], Iterator[Special], list[Job], AsyncIterator, Awaitable[AsyncIterator[Job]], Any):
        assert refused(stream, one(int, fine)) is None
    for wrong in (AsyncIterator[Other], Iterator[int], list[str], Awaitable[AsyncIterator[Other]]):
        assert "the item of w.s is" in (refused(stream, one(int, wrong)) or "")
    channel = Channel("w.c", send=int, receive=str)
    for fine in (IpcChannel[str, int], sync.IpcChannel[str, int], IpcChannel, IpcChannel[Any, Any], Any):
        assert refused(channel, one(fine)) is None
    assert "the opener's receive of w.c is str, but its handler here sends int" in (
        refused(channel, one(IpcChannel[int, str])) or ""
    )
    assert "the opener's send of w.c is int, but its handler here receives str" in (
        refused(channel, one(IpcChannel[str, str])) or ""
    )
    assert "the payload of a.b is int, but its handler here takes str" in (refused(Topic("a.b", int), one(str)) or "")


def test_whatever_can_be_called_is_read() -> None:
    class Service:
        def method(self, payload: Other) -> int: ...

        def __call__(self, payload: Other) -> int: ...

    @functools.wraps(Service.method)
    def wrapper(*args: Any) -> Any: ...

    contract = Method("w.m", Job, int)
    for wrong in (Service().method, Service(), functools.partial(wrapper, None)):
        said = refused(contract, wrong)
        assert isinstance(wrong, functools.partial) is (said is None)
    for silent in (lambda payload: payload, print, abs, functools.partial(max, 1), int):
        assert refused(Method("w.m", float, float), silent) is None


def test_only_what_cannot_be_resolved_says_nothing() -> None:
    class Hidden: ...

    def handle(payload: Hidden) -> Job: ...

    assert "returns" in (refused(Method("w.m", Other, Other), handle) or "")


def test_a_refused_function_is_not_registered() -> None:
    registry = Registry("", "x")
    for contract in (Method("m", Job, int), Stream("m", Job, int)):
        with pytest.raises(LocalProtocolError, match=r"test_signatures.Job, but its handler .*test_signatures.py:\d+"):
            registry.add(contract, one(Other))
        registry.add(contract, one(Job))
        registry = Registry("", "x")


def test_both_flavours_refuse_where_it_is_registered(folder: Path) -> None:
    method, stream = Method("m", Job, int), Stream("s", Job, int)
    channel, topic = Channel("c", send=int, receive=str), Topic("t", Job)

    def method_handler(payload: Other, message: IpcMessage[Other]) -> int: ...
    def stream_handler(payload: Job) -> Iterator[str]: ...
    def blocking_channel(channel: sync.IpcChannel[int, str]) -> None: ...
    async def async_channel(channel: IpcChannel[int, str]) -> None: ...

    def refuses(end: Any, channel_handler: Any) -> None:
        for register, function in (
            (end.handler(method), method_handler),
            (end.handler(stream), stream_handler),
            (end.handler(channel), channel_handler),
            (end.subscriber(topic), method_handler),
        ):
            with pytest.raises(LocalProtocolError, match="but its handler"):
                register(function)

    async def scene() -> None:
        async with smartipc.serve(f"unix://{folder}/a") as server:
            refuses(server, async_channel)

    asyncio.run(scene())
    with sync.serve(f"unix://{folder}/b") as server:
        refuses(server, blocking_channel)
