"""Descriptors beside bytes on a Unix socket, for both drivers. What they are for is known in protocol.buffers."""

from __future__ import annotations

import contextlib
import os
import socket
import struct

from smartipc.ipc.protocol.buffers import BATCH, Buffers, DescriptorFrame
from smartipc.ipc.transports.base import Stream


class DescriptorReader:
    """`recv` for a link that takes descriptors: they go to `buffers`, the bytes are returned.

    Args:
        sock: a Unix socket.
        buffers: of the link's connection.
    """

    def __init__(self, sock: socket.socket, buffers: Buffers) -> None:
        self._recvmsg = sock.recvmsg
        self._buffers = buffers
        self._room = socket.CMSG_SPACE(BATCH * struct.calcsize("i"))

    def __call__(self, size: int, flags: int = 0) -> bytes:
        """Read once.

        Raises:
            BlockingIOError: nothing is there.
            OSError: the stream is broken, or the peer sent more descriptors than a frame may have.
        """
        data, ancillary, got, _address = self._recvmsg(size, self._room, flags | socket.MSG_CMSG_CLOEXEC)
        if ancillary:
            descriptors = _descriptors(ancillary)
            if got & socket.MSG_CTRUNC:
                for descriptor in descriptors:
                    with contextlib.suppress(OSError):
                        os.close(descriptor)
                raise OSError("more descriptors than a frame may have")
            self._buffers.receive_descriptors(descriptors)
        return data


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    size = struct.calcsize("i")
    return [
        number
        for level, kind, data in ancillary
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS
        for (number,) in struct.iter_unpack("i", data[: len(data) // size * size])
    ]


def send_descriptors(stream: Stream, piece: DescriptorFrame, flags: int = 0) -> int:
    """Write a frame with its descriptors beside its first byte; return how many bytes were taken.

    Raises:
        BlockingIOError: none, and no descriptors either.
        OSError: the stream is broken.
    """
    rights = struct.pack(f"{len(piece.descriptors)}i", *piece.descriptors)
    return stream.sendmsg([piece], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)], flags)
