"""Payloads: what goes in comes out, and what does not fit is named with its place."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from typing import Annotated, Any

import msgspec
import pytest

from smartipc.ipc.errors import InvalidPayload
from smartipc.ipc.wire import codec


class Point(msgspec.Struct):
    x: int
    tags: list[str] = []


@dataclasses.dataclass
class Pair:
    left: int
    right: Point


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (Point(1, ["a"]), Point),
        (Pair(1, Point(2)), Pair),
        ({"a": [1, 2.5, None, True, b"raw"]}, dict[str, Any]),
        (None, None),
        (None, type(None)),
        ([1, 2], list[int]),
        (3, Annotated[int, ["an unhashable remark"]]),
    ],
)
def test_what_goes_in_comes_out(value: object, wanted: Any) -> None:
    assert codec.decode(codec.encode(value), wanted) == value


@pytest.mark.parametrize(
    ("data", "wanted", "path"),
    [
        ({"x": "no"}, Point, "$.x"),
        ({"x": 1, "tags": ["a", 2]}, Point, "$.tags[1]"),
        ({"left": 1, "right": {"x": None}}, Pair, "$.right.x"),
        ({}, Point, "$"),
        ("text", int, "$"),
    ],
)
def test_the_path_of_what_is_wrong_is_named(data: object, wanted: Any, path: str) -> None:
    with pytest.raises(InvalidPayload) as caught:
        codec.decode(codec.encode(data), wanted, method="w.m")
    assert (caught.value.path, caught.value.method) == (path, "w.m")


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x92\x01", b"\xa1\xff"])
def test_garbage_is_an_invalid_payload(data: bytes) -> None:
    with pytest.raises(InvalidPayload):
        codec.plain(data)


@pytest.mark.parametrize("value", [object(), {1, object()}, 2**70, {"a": object()}, "\ud800"])
def test_what_cannot_be_encoded_was_not_sent(value: object) -> None:
    with pytest.raises(InvalidPayload) as caught:
        codec.encode(value, method="w.m")
    assert caught.value.processed == "no"


@pytest.mark.parametrize("opener", [b"\x91", b"\x81\xa1k"])
def test_deep_nesting_is_refused(opener: bytes) -> None:
    with pytest.raises(InvalidPayload):
        codec.plain(opener * 100_000 + b"\xc0")


def test_a_caller_that_is_deep_itself_is_told_too() -> None:
    def dig(levels: int) -> Any:
        return dig(levels - 1) if levels else codec.plain(b"\x91" * 200 + b"\xc0")

    with pytest.raises(InvalidPayload, match="nested too deep"):
        dig(sys.getrecursionlimit() - len(inspect.stack(0)) - 20)


def test_deep_values_are_refused() -> None:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(InvalidPayload):
        codec.encode(value)
    while value:  # take it apart without recursion
        value = value.pop()


def test_plain_forms() -> None:
    assert codec.to_builtins(Pair(1, Point(2))) == {"left": 1, "right": {"x": 2, "tags": []}}
    assert codec.plain(codec.EMPTY) is None


class Picky(msgspec.Struct):
    number: int

    def __post_init__(self) -> None:
        if self.number == 5:
            raise KeyError(self.number)


def test_what_a_types_own_code_raises_is_an_invalid_payload() -> None:
    with pytest.raises(InvalidPayload, match="KeyError: 5"):
        codec.decode(codec.encode({"number": 5}), Picky)
    assert codec.decode_all(codec.encode([{"number": 5}]), Picky) is None
    unset = Picky(1)
    del unset.number
    with pytest.raises(InvalidPayload, match=r"AttributeError: .* is unset"):
        codec.encode(unset)
