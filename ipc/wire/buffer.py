"""The public Buffer: bytes of any size inside a payload, and how it becomes a MessagePack extension value.

Where its memory comes from and how it travels is not known here; see protocol.buffers and transports.memfd. Imported
only where buffers are used: a process that has done so takes shared memory on the links that it opens.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import msgspec

from smartipc.ipc.wire.attachments import THRESHOLD, Attachment

INLINE = 1
ATTACHED = 2
"""Extension codes: the bytes themselves, or the index of an attachment."""
_META = struct.Struct("<H")
_SHAPE = 32
"""Dimensions of an array that a peer may claim, NumPy's bound is 64."""


class Buffer:
    """Big binary data in a payload: a field type of Structs and dataclasses, or any value in plain payloads.

    Args:
        source: bytes, bytearray, memoryview, a NumPy array or anything else that exports contiguous memory. It is not
            copied here. Dtype and shape of a NumPy array travel along, so that `numpy.asarray` gives the array back
            at the receiver; other memory arrives as plain bytes.

    Of 64 KiB and more it travels beside the message, through shared memory where both ends can. A sender must not
    change the source before the call that sends it returns; memory of `ipc.buffer`, which is sent in place, not before
    all receivers are through with it.

    Raises:
        TypeError: the source exports no memory, or an array of Python objects.
        ValueError: the memory is not C-contiguous: pass `numpy.ascontiguousarray(array)`, so that a copy is seen.
    """

    __slots__ = ("__weakref__", "_place", "_view", "dtype", "shape")

    def __init__(self, source: Any) -> None:
        self.dtype = ""
        """NumPy's name of the element type, such as "<f4"; empty for plain bytes."""
        self.shape: tuple[int, ...] = ()
        """Dimensions of the array; empty for plain bytes."""
        self._view: memoryview
        if hasattr(source, "__array_interface__") and hasattr(source, "dtype"):
            self._view = self._of_array(source)
        else:
            view = memoryview(source)
            if not view.c_contiguous:
                raise ValueError("the memory is not C-contiguous; copy it first, with bytes(view) for instance")
            self._view = view if view.format == "B" and view.ndim == 1 else view.cast("B")
        self._place = _place_of(source, self._view)

    def _of_array(self, array: Any) -> memoryview:
        dtype = array.dtype
        if dtype.hasobject:
            raise TypeError("an array of Python objects has no bytes to send")
        if not array.flags.c_contiguous:
            raise ValueError("the array is not C-contiguous; pass numpy.ascontiguousarray(array)")
        if dtype.names is None:
            self.dtype, self.shape = dtype.str, tuple(array.shape)
        return memoryview(array.reshape(-1).view("u1"))

    @classmethod
    def _arrived(cls, view: memoryview, dtype: str, shape: tuple[int, ...]) -> Buffer:
        buffer = cls(view)
        buffer.dtype, buffer.shape = dtype, shape
        return buffer

    @classmethod
    def in_place(cls, view: memoryview, place: Any) -> Buffer:
        """Make a Buffer of shared memory, which only `ipc.buffer` has; `place` says where it is."""
        buffer = cls(view)
        buffer._place = place
        return buffer

    @property
    def view(self) -> memoryview:
        """Its bytes. Read-only at the receiver; the memory stays valid as long as any view or array of it does."""
        return self._view

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self._view.nbytes

    def __len__(self) -> int:
        return self._view.nbytes

    def __bytes__(self) -> bytes:
        return bytes(self._view)

    def __repr__(self) -> str:
        array = f" {self.dtype} {self.shape}" if self.dtype else ""
        return f"<Buffer {self.nbytes} bytes{array}{' read-only' if self._view.readonly else ''}>"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        """Give NumPy the array, without a copy unless one is asked for; plain bytes become uint8."""
        import numpy as np

        if self.nbytes:
            array = np.frombuffer(self._view, dtype=self.dtype or "u1")
        else:  # of which frombuffer makes nothing
            array = np.empty(0, self.dtype or "u1")
            array.setflags(write=not self._view.readonly)
        if self.dtype:
            array = array.reshape(self.shape)
        if dtype is not None and np.dtype(dtype) != array.dtype:
            if copy is False:
                raise ValueError(f"no {np.dtype(dtype)} without a copy of {array.dtype}")
            return array.astype(dtype)
        return array.copy() if copy else array


def _place_of(source: Any, view: memoryview) -> Any:
    """Find out whether memory lies in what `ipc.buffer` gave, however many arrays and views are in between."""
    owner = source
    while hasattr(owner, "__array_interface__") and getattr(owner, "base", None) is not None:
        owner = owner.base
    if isinstance(owner, memoryview):
        owner = owner.obj
    locate = getattr(owner, "smartipc_locate", None)
    return None if locate is None else locate(view)


class _Meta(msgspec.Struct, frozen=True, array_like=True):
    dtype: str = ""
    shape: tuple[int, ...] = ()
    index: int = 0
    nbytes: int = 0


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Meta)


class Collector:
    """Encoder hook: turns the Buffers of one value into extension values and keeps the big ones in `attachments`.

    Args:
        threshold: bytes from which a Buffer is big; None for never.
    """

    def __init__(self, threshold: int | None = THRESHOLD) -> None:
        self._threshold = threshold
        self.attachments: list[Attachment] = []

    def __call__(self, value: Any) -> Any:
        """Encode one value that msgspec does not know.

        Raises:
            TypeError: it is neither a Buffer nor an array.
        """
        if not isinstance(value, Buffer):
            if (type(value).__module__, type(value).__name__) != ("numpy", "ndarray"):
                raise TypeError(f"Encoding objects of type {type(value).__qualname__} is unsupported")
            value = Buffer(value)
        if self._threshold is None or value.nbytes < self._threshold:
            meta = _encoder.encode(_Meta(value.dtype, value.shape))
            return msgspec.msgpack.Ext(INLINE, _META.pack(len(meta)) + meta + bytes(value.view))
        index = len(self.attachments)
        self.attachments.append(Attachment(value.view, value._place))  # noqa: SLF001 - kept there for this place
        return msgspec.msgpack.Ext(ATTACHED, _encoder.encode(_Meta(value.dtype, value.shape, index, value.nbytes)))


def inline(data: memoryview) -> Buffer:
    """Return the Buffer of an INLINE extension value, which owns its bytes.

    Raises:
        ValueError: malformed.
    """
    if len(data) < _META.size:
        raise ValueError("a buffer without description")
    (size,) = _META.unpack_from(data)
    start = _META.size + size
    if start > len(data):
        raise ValueError("the description of a buffer is cut")
    return _described(memoryview(bytes(data[start:])), _meta(data[_META.size : start]))


def attached(data: memoryview, attachments: tuple[Attachment, ...]) -> Buffer:
    """Return the Buffer of an ATTACHED extension value.

    Raises:
        ValueError: malformed, or it points at nothing.
    """
    meta = _meta(data)
    if not 0 <= meta.index < len(attachments):
        raise ValueError(f"a buffer points at attachment {meta.index} of {len(attachments)}")
    view = attachments[meta.index].view
    if view.nbytes != meta.nbytes:
        raise ValueError(f"a buffer of {meta.nbytes} bytes came with {view.nbytes}")
    return _described(view, meta)


def _meta(data: memoryview) -> _Meta:
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"malformed description of a buffer: {error}") from error


def _described(view: memoryview, meta: _Meta) -> Buffer:
    """Believe dtype and shape only where they make up the size, so that `numpy.asarray` cannot be led astray."""
    if meta.dtype:
        digits = meta.dtype[2:].split("[", 1)[0]
        known = meta.dtype[0] in "<>|=" and meta.dtype[1:2] in tuple("biufcmMSUV?") and digits.isascii()
        if not known or not digits.isdigit() or len(meta.shape) > _SHAPE or any(size < 0 for size in meta.shape):
            raise ValueError(f"a buffer claims to be an array of {meta.dtype!r} {meta.shape}")
        size = int(digits[:9]) * (4 if meta.dtype[1] == "U" else 1)
        if size * math.prod(meta.shape) != view.nbytes:
            raise ValueError(f"an array of {meta.dtype!r} {meta.shape} has not {view.nbytes} bytes")
    return Buffer._arrived(view.toreadonly(), meta.dtype, meta.shape)  # noqa: SLF001 - our own class
