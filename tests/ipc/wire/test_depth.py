"""Nesting: what is too deep is refused before it is decoded, what is not is left alone, on small stacks too."""

from __future__ import annotations

import dataclasses
import random
import threading
from typing import Annotated, Any

import msgspec
import pytest

from smartipc.ipc.errors import InvalidPayload
from smartipc.ipc.protocol.connection import Connection
from smartipc.ipc.protocol.events import Closed
from smartipc.ipc.protocol.handshake import Identity
from smartipc.ipc.wire import codec, heads
from smartipc.ipc.wire.depth import MAX_DEPTH, SHALLOW, is_open_ended, too_deep
from smartipc.ipc.wire.frames import PREFACE, Kind, frame

PAD = b"\x90" * (SHALLOW + 1)
"""So many empty containers that a value must be walked through."""


def nested(levels: int, opener: bytes = b"\x91") -> bytes:
    """`levels` containers in each other, beside enough empty ones to be looked at."""
    inner = b"\xdc" + len(PAD).to_bytes(2, "big") + PAD
    return opener * (levels - 1) + inner


@pytest.mark.parametrize(
    "opener",
    [b"\x91", b"\x81\x01", b"\xdc\x00\x01", b"\xdd\x00\x00\x00\x01", b"\xde\x00\x01\x01", b"\xdf\x00\x00\x00\x01\x01"],
)
def test_the_limit_is_exact_for_every_container(opener: bytes) -> None:
    assert not too_deep(nested(MAX_DEPTH, opener))
    assert too_deep(nested(MAX_DEPTH + 1, opener))


@pytest.mark.parametrize(
    "value",
    [
        b"\x01", b"\xff", b"\xc0", b"\xc3", b"\xa2\x91\x91", b"\xc4\x02\x91\x91", b"\xc5\x00\x02\x91\x91",
        b"\xc6\x00\x00\x00\x02\x91\x91", b"\xc7\x02\x05\x91\x91", b"\xc8\x00\x02\x05\x91\x91",
        b"\xc9\x00\x00\x00\x02\x05\x91\x91", b"\xca\x91\x91\x91\x91", b"\xcb" + b"\x91" * 8, b"\xcc\x91",
        b"\xcd\x91\x91", b"\xce\x91\x91\x91\x91", b"\xcf" + b"\x91" * 8, b"\xd0\x91", b"\xd1\x91\x91",
        b"\xd2\x91\x91\x91\x91", b"\xd3" + b"\x91" * 8, b"\xd4\x05\x91", b"\xd5\x05\x91\x91", b"\xd6\x05" + b"\x91" * 4,
        b"\xd7\x05" + b"\x91" * 8, b"\xd8\x05" + b"\x91" * 16, b"\xd9\x02\x91\x91", b"\xda\x00\x02\x91\x91",
        b"\xdb\x00\x00\x00\x02\x91\x91", b"\x90", b"\x80",
    ],
)  # fmt: skip
def test_what_scalars_hold_is_no_container(value: bytes) -> None:
    siblings = b"\xdc\x02\x00" + value * 512
    assert not too_deep(b"\x92" + siblings + nested(MAX_DEPTH - 1))
    assert too_deep(b"\x92" + siblings + nested(MAX_DEPTH))


def test_wide_is_not_deep() -> None:
    wide = codec.encode([{"id": one, "tags": ["a", "b"], "more": {"x": [one]}} for one in range(5000)])
    assert not too_deep(wide)
    assert len(codec.plain(wide)) == 5000


def test_it_agrees_with_the_decoder_on_random_values() -> None:
    source = random.Random(7)

    def value(depth: int) -> Any:
        if depth == 0 or source.random() < 0.3:
            return source.choice([1, -1, 2.5, None, "x" * 40, b"\x91" * 300, True, 1 << 40])
        if source.random() < 0.5:
            return [value(depth - 1) for _ in range(source.randrange(4))]
        return {str(one): value(depth - 1) for one in range(source.randrange(4))}

    for _ in range(200):
        whole = [value(8), [[]] * 600]
        assert not too_deep(codec.encode(whole))
        assert codec.plain(codec.encode(whole)) == whole


@pytest.mark.parametrize(
    "data", [b"\x91" * 600, b"\xdd\xff\xff\xff\xff" + PAD, b"\xc6\xff\xff\xff\xff" + PAD, PAD + PAD]
)
def test_what_is_malformed_is_left_to_the_decoder(data: bytes) -> None:
    too_deep(data)
    with pytest.raises(InvalidPayload):
        codec.plain(data)


def test_decoding_says_so() -> None:
    with pytest.raises(InvalidPayload, match=f"nested deeper than {MAX_DEPTH} levels"):
        codec.plain(nested(MAX_DEPTH + 1))
    assert codec.plain(nested(MAX_DEPTH)) is not None
    assert codec.decode_all(b"\x91" + nested(MAX_DEPTH), Any) is None
    with pytest.raises(InvalidPayload, match="nested deeper"):
        codec.pieces(nested(MAX_DEPTH + 1))


def test_no_depth_hurts_a_thread_with_a_small_stack() -> None:
    found: list[str] = []

    def decode() -> None:
        for levels in (300, 1000, 10_000, 1_000_000):
            for wanted in (Any, dict, list[Any], "Tree"):
                try:
                    codec.decode(b"\x91" * levels + b"\xc0", Tree if wanted == "Tree" else wanted)
                except InvalidPayload as error:
                    found.append(str(error))

    before = threading.stack_size(256 * 1024)
    try:
        thread = threading.Thread(target=decode)
        thread.start()
        thread.join(30.0)
    finally:
        threading.stack_size(before)
    assert len(found) >= 12


# which types


class Leaf(msgspec.Struct):
    number: int
    names: tuple[str, ...] = ()
    more: dict[str, list[float]] = {}
    when: int | None = None


class Tree(msgspec.Struct, array_like=True):
    left: Tree | None = None


class Holder(msgspec.Struct):
    leaves: list[Leaf]
    anything: Any = None


@dataclasses.dataclass
class Point:
    x: float
    pair: tuple[int, str] = (0, "")


class Strange:
    pass


@pytest.mark.parametrize(
    ("wanted", "open_ended"),
    [
        (int, False),
        (None, False),
        (bytes, False),
        (Leaf, False),
        (list[Leaf], False),
        (dict[str, Point], False),
        (Annotated[int, msgspec.Meta(gt=0)], False),
        (Annotated[int, msgspec.Meta(title="a number")], False),
        (Annotated[list[Any], msgspec.Meta(title="whatever")], True),
        (Any, True),
        (dict, True),
        (list, True),
        (object, True),
        (Holder, True),
        (Tree, True),
        (list[Tree], True),
        (tuple[int, Any], True),
        (int | list[Any], True),
        (msgspec.Raw, True),
        (Strange, True),
        (3, True),
    ],
)
def test_which_types_are_looked_at(wanted: Any, open_ended: bool) -> None:
    assert is_open_ended(wanted) is open_ended


def test_types_that_cannot_be_looked_up_are_guarded() -> None:
    unhashable = Annotated[list[Any], {"a": 1}]
    with pytest.raises(InvalidPayload, match="nested deeper"):
        codec.decode(nested(MAX_DEPTH + 1), unhashable)


# heads


@pytest.mark.parametrize("levels", [300, 1000, 4000])
def test_a_head_with_a_deep_field_that_we_do_not_know_ends_the_connection(levels: int) -> None:
    server = Connection("server", Identity())
    server.start(0.0)
    known = heads.encoder.encode(heads.Hello(0, 0, [], "f", 1, 1, "f", 1 << 24))
    assert known[0] == 0x9A
    deep = b"\x9b" + known[1:] + b"\x91" * levels + b"\xc0"
    events = server.receive_data(PREFACE + frame(Kind.HELLO, 0, deep), 0.0)
    if levels > SHALLOW:
        assert isinstance(events[-1], Closed)
        assert "nested too deep" in events[-1].reason


def test_a_head_may_be_long_without_being_deep() -> None:
    head = heads.RequestHead("a.b", headers={f"{one}": "é" * 20 for one in range(90)})
    assert heads.decode(heads.encoder.encode(head), heads.RequestHead) == head
