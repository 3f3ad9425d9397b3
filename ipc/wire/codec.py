"""Payloads: MessagePack by msgspec, decoded strictly into the type that the contract names.

Nothing is ever unpickled. Only values pass here; heads are wire.heads, errors are wire.faults.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from smartipc.ipc.errors import InvalidPayload

_encoder = msgspec.msgpack.Encoder()
_decoders: dict[Any, msgspec.msgpack.Decoder[Any]] = {}
_batch_decoders: dict[Any, msgspec.msgpack.Decoder[list[Any]]] = {}
_pieces = msgspec.msgpack.Decoder(list[msgspec.Raw])
_PLACE = re.compile(r"(?P<reason>.*) - at `(?P<path>.*)`\Z", re.DOTALL)

EMPTY = _encoder.encode(None)
"""The payload of a method that takes or returns nothing."""


def encode(value: Any, *, method: str | None = None) -> bytes:
    """Return `value` as MessagePack: Structs, dataclasses and builtins.

    Raises:
        InvalidPayload: a part of it has no MessagePack form, or it nests too deep.
    """
    try:
        return _encoder.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidPayload("$", str(error), method=method, processed="no") from error


def decoder_for(wanted: Any) -> msgspec.msgpack.Decoder[Any]:
    """Return the decoder of a type, built once.

    Raises:
        TypeError: msgspec cannot decode into that type.
    """
    try:
        return _decoders[wanted]
    except KeyError:
        decoder = _decoders[wanted] = msgspec.msgpack.Decoder(wanted)
        return decoder
    except TypeError:  # not hashable, such as Annotated with a dict in it
        return msgspec.msgpack.Decoder(wanted)


def decode(data: bytes | memoryview, wanted: Any, *, method: str | None = None) -> Any:
    """Decode into `wanted`; `None` and `type(None)` both mean nothing, `Any` means plain data.

    Raises:
        InvalidPayload: it does not fit; `path` names the place, such as "$.items[3].size".
    """
    try:
        return decoder_for(wanted).decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        place = _PLACE.match(str(error))
        path, reason = (place["path"], place["reason"]) if place else ("$", str(error))
        raise InvalidPayload(path, reason, method=method) from error
    except RecursionError as error:
        raise InvalidPayload("$", "nested too deep", method=method) from error


def decode_all(data: bytes, wanted: Any) -> list[Any] | None:
    """Decode a batch whose payloads all fit `wanted`; None if any does not, see `pieces`."""
    try:
        decoder = _batch_decoders[wanted]
    except KeyError:
        decoder = _batch_decoders[wanted] = msgspec.msgpack.Decoder(list[wanted])
    except TypeError:  # not hashable: too rare to be fast
        return None
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def pieces(data: bytes) -> list[bytes]:
    """Return the payloads of a batch, each still encoded.

    Raises:
        InvalidPayload: it is no array.
    """
    try:
        return [bytes(one) for one in _pieces.decode(data)]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidPayload("$", str(error)) from error


def plain(data: bytes | memoryview) -> Any:
    """Decode into dicts, lists and scalars.

    Raises:
        InvalidPayload: not MessagePack.
    """
    return decode(data, Any)


def to_builtins(value: Any) -> Any:
    """Return `value` as dicts, lists and scalars, as `plain(encode(value))` would.

    Raises:
        InvalidPayload: see encode.
    """
    return plain(encode(value))
