"""Which requests cannot have arrived when their frames were refused."""

from __future__ import annotations

import pytest

from smartipc.ipc.protocol.refusals import requests_in
from smartipc.ipc.wire.frames import ARRAY, ARRAY_MARK, PREFACE, Flag, Kind, frame

_BATCH = frame(Kind.REQUEST_BATCH, 5, b"head", ARRAY.pack(ARRAY_MARK, 3) + b"abc")


@pytest.mark.parametrize(
    ("pieces", "ids"),
    [
        ([], []),
        ([frame(Kind.REQUEST, 7, b"head", b"x")], [7]),
        ([frame(Kind.REQUEST, 7, b"", b"rest", Flag.MORE), frame(Kind.REQUEST, 9, b"h", b"")], [7, 9]),
        ([memoryview(frame(Kind.REQUEST, 7, b"head", b"x"))[20:]], [7]),
        ([memoryview(memoryview(bytearray(_BATCH))[3:])[4:]], [5, 7, 9]),
        ([frame(Kind.RESPONSE, 7, b"", b"x"), frame(Kind.NOTIFY, 0, b"head", b"x")], []),
        ([PREFACE + frame(Kind.HELLO, 0, b"", b"")], []),
    ],
)
def test_the_requests_in_refused_frames(pieces: list[bytes], ids: list[int]) -> None:
    assert list(requests_in(pieces)) == ids
