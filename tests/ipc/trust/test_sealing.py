"""Sealed payloads: opened once, by whoever has the key, under the name they were sealed for, not by their sealer."""

from __future__ import annotations

import asyncio
import os
import random
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

import smartipc
from smartipc import AuthenticationFailed, Buffer, InvalidPayload, LocalProtocolError, Sealing
from smartipc.ipc.trust import sealing as module

pytest.importorskip("cryptography", reason="the extra 'crypto'")

KEY = "k" * 32


class Order(msgspec.Struct):
    number: int


def refused(opener: Sealing, sealed: bytes, name: str = "m", **more: Any) -> bool:
    try:
        opener.open(sealed, name, **more)
    except AuthenticationFailed:
        return True
    return False


def test_a_payload_is_opened_by_the_same_key_and_name_only() -> None:
    a, b = Sealing(KEY), Sealing(KEY.encode())
    sealed = a.seal(Order(7), "m")
    assert b"number" not in sealed
    assert refused(b, sealed, "n")
    assert refused(b, sealed, reply=True)
    assert refused(Sealing("x" * 32), sealed)
    assert refused(a, sealed), "it comes back to its sealer"
    assert b.open(sealed, "m", Order) == Order(7)
    answer = b.seal([1], "m", reply=True)
    assert refused(a, answer)
    assert a.open(answer, "m", reply=True) == [1]
    assert "1 sealed" in repr(a)


def test_the_layout_is_what_the_wire_protocol_says() -> None:
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    session = bytes(range(16))
    key = HKDF(SHA256(), 32, session, b"smartipc/1 sealing").derive(KEY.encode())
    for name, reply, bound in (("w.m", False, b"ask w.m"), ("w.m", True, b"reply w.m")):
        head = b"\x01" + session + (5 + reply).to_bytes(8, "big")
        body = ChaCha20Poly1305(key).encrypt((5 + reply).to_bytes(12, "big"), b"\xa2hi", head + bound)
        assert Sealing(KEY).open(head + body, name, str, reply=reply) == "hi"


def test_whatever_is_changed_is_noticed() -> None:
    a, b = Sealing(KEY), Sealing(KEY)
    sealed = a.seal("secret", "m")
    for place in range(len(sealed)):
        assert refused(b, sealed[:place] + bytes([sealed[place] ^ 1]) + sealed[place + 1 :])
        assert refused(b, sealed[:place])
    assert refused(b, sealed + b"x")
    assert b.open(sealed, "m") == "secret", "what was not genuine has moved no window"


def test_what_was_opened_is_not_opened_again_in_whatever_order_it_comes() -> None:
    a, b = Sealing(KEY), Sealing(KEY)
    many = [a.seal(number, "m") for number in range(1000)]
    order = list(range(1000))
    random.Random(3).shuffle(order)
    assert [b.open(many[one], "m") for one in order] == order
    assert all(refused(b, one) for one in many)
    late = [a.seal(number, "m") for number in range(2 * module.WINDOW)]
    assert b.open(late[-1], "m") == 2 * module.WINDOW - 1
    assert refused(b, late[module.WINDOW - 1]), "too late to tell"
    assert b.open(late[module.WINDOW], "m") == module.WINDOW


def test_counts_of_the_sessions_heard_last_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SESSIONS", 2)
    b = Sealing(KEY)
    first, second, third = (Sealing(KEY).seal(1, "m") for _ in range(3))
    for one in (first, second, third):
        b.open(one, "m")
    assert refused(b, second)
    assert refused(b, third)
    assert len(b._heard) == 2


def test_a_sealer_begins_another_session_before_it_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PER_SESSION", 2)
    a, b = Sealing(KEY), Sealing(KEY)
    sealed = [a.seal(number, "m") for number in range(5)]
    assert len({one[1:17] for one in sealed}) == 3
    assert [b.open(one, "m") for one in sealed] == list(range(5))
    assert all(refused(a, one) for one in sealed), "also what it sealed in earlier sessions"


def test_a_forked_child_uses_no_nonce_of_its_parent() -> None:
    a = Sealing(KEY)
    before = a.seal(0, "m")
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writing, a.seal(a.open(before, "m") + 1, "m"))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        theirs = pipe.read()
    assert os.waitpid(pid, 0)[1] == 0
    assert theirs[1:17] != a.seal(1, "m")[1:17]
    assert Sealing(KEY).open(theirs, "m") == 1


def test_misuse_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LocalProtocolError, match="at least 32 bytes"):
        Sealing("short")
    with pytest.raises(InvalidPayload, match="big buffers"):
        Sealing(KEY).seal(Buffer(bytes(100_000)), "m")
    with pytest.raises(InvalidPayload):
        Sealing(KEY).open(Sealing(KEY).seal("text", "m"), "m", Order)
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    with pytest.raises(LocalProtocolError, match=r"pip install 'smartipc\[crypto\]'"):
        Sealing(KEY)


def test_a_broker_relays_what_it_cannot_read(folder: Path) -> None:
    topic = smartipc.Topic("orders", bytes)

    async def scene() -> None:
        address = f"unix://{folder}/s"
        async with (
            smartipc.serve(address) as broker,
            smartipc.connect(address) as a,
            smartipc.connect(address) as b,
            broker.subscribe(topic) as seen,
            b.subscribe(topic) as messages,
        ):
            near, far = Sealing(KEY), Sealing(KEY)
            await a.publish(topic, near.seal(Order(7), topic.name))
            message = await anext(messages)
            assert far.open(message.payload, topic.name, Order) == Order(7)
            assert b"number" not in (await anext(seen)).payload

    asyncio.run(scene())
