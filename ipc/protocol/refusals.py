"""Which requests cannot have arrived, judged by the frames that a transport refused. No other fate of a request."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import cast

from smartipc.ipc.wire.frames import ARRAY, HEADER, HEADER_SIZE, ID_STEP, Kind


def requests_in(pieces: Iterable[bytes | bytearray | memoryview]) -> Iterator[int]:
    """Give the ids of the requests that frames belong to; a peer never has one as a whole without all of them.

    Args:
        pieces: what was handed out to be written and was refused: frames, or views of the rest of one.
    """
    for piece in pieces:
        whole = cast("bytes", piece.obj) if isinstance(piece, memoryview) else piece
        _size, kind, _flags, head_size, ident = HEADER.unpack_from(whole)
        if kind == Kind.REQUEST:
            yield ident
        elif kind == Kind.REQUEST_BATCH:
            _mark, count = ARRAY.unpack_from(whole, HEADER_SIZE + head_size)
            yield from range(ident, ident + ID_STEP * count, ID_STEP)
