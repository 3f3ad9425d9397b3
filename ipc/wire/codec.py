"""Payloads: MessagePack by msgspec, decoded strictly into the type that the contract names.

Nothing is ever unpickled. Only values pass here; heads are wire.heads, errors are wire.faults. Payloads without a
Buffer pay nothing for those that have one: the hooks of msgspec are called only for values it does not know, and they
send the whole payload round a second time.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from smartipc.ipc.errors import InvalidPayload, LocalProtocolError
from smartipc.ipc.wire.attachments import Payload, payload
from smartipc.ipc.wire.depth import MAX_DEPTH, SHALLOW, is_open_ended, too_deep
from smartipc.ipc.wire.text import sentence_of


class _HasBuffers(Exception):  # noqa: N818 - a turn of the way, not an error
    """The value has something that the plain way does not know."""


def _unknown(value: Any) -> Any:
    raise _HasBuffers(value)


def _extension(code: int, data: memoryview) -> Any:
    raise _HasBuffers(code, data)


def _buffer_of_bytes(wanted: Any, value: Any) -> Any:
    """Take plain binary data for a Buffer too, which is what other languages send."""
    if type(value) is not bytes:
        return value
    from smartipc.ipc.wire.buffer import Buffer

    return Buffer(value) if wanted is Buffer else value


_encoder = msgspec.msgpack.Encoder(enc_hook=_unknown)
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
        try:
            return _encoder.encode(value)
        except _HasBuffers:
            return _encode_buffers(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidPayload("$", str(error), method=method, processed="no") from error
    except Exception as error:  # the value's own code, or a field that was never set
        raise InvalidPayload("$", _raised(error), method=method, processed="no") from error


def _encode_buffers(value: Any) -> bytes:
    from smartipc.ipc.wire.buffer import Collector

    collector = Collector()
    encoded = msgspec.msgpack.Encoder(enc_hook=collector).encode(value)
    return payload(encoded, collector.attachments) if collector.attachments else encoded


def self_contained(encoded: bytes) -> bytes:
    """Return a payload that can be kept without its attachments: they are put into the value."""
    if not isinstance(encoded, Payload):
        return encoded
    from smartipc.ipc.wire.buffer import Collector

    return msgspec.msgpack.Encoder(enc_hook=Collector(threshold=None)).encode(plain(encoded))


encode_plain = _encoder.encode
"""Return a value as MessagePack, or raise one of UNFIT: then `encode` knows what to do, or what is wrong with it."""

append = _encoder.encode_into
"""Called as `append(value, buffer, -1)`: append `value` as MessagePack, or raise one of UNFIT: then a part may
have been appended. The encoder's own function: one more call for each message of a burst is a twelfth of its time."""

UNFIT = Exception
"""What `append` and `encode_plain` raise for a value that has no plain form, or whose own code fails; `encode` knows
why."""


def decoder_for(wanted: Any) -> msgspec.msgpack.Decoder[Any]:
    """Return the decoder of a type, built once.

    Raises:
        TypeError: msgspec cannot decode into that type.
    """
    try:
        return _decoders[wanted]
    except KeyError:
        decoder = _decoders[wanted] = msgspec.msgpack.Decoder(wanted, ext_hook=_extension, dec_hook=_buffer_of_bytes)
        return decoder
    except TypeError:  # not hashable, such as Annotated with a dict in it
        return msgspec.msgpack.Decoder(wanted, ext_hook=_extension, dec_hook=_buffer_of_bytes)


def check_type(wanted: Any, option: str) -> None:
    """Look at a type that `option` asks for, before anything is sent.

    Raises:
        LocalProtocolError: payloads cannot be read into it.
    """
    try:
        decoder_for(wanted)
    except TypeError as error:
        raise LocalProtocolError(f"{option} must be a type of payloads, got {wanted!r}: {error}") from None


def _decode_buffers(data: bytes | memoryview, wanted: Any) -> Any:
    from smartipc.ipc.wire import buffer

    attachments = data.attachments if isinstance(data, Payload) else ()

    def extension(code: int, value: memoryview) -> Any:
        try:
            if code == buffer.INLINE:
                return buffer.inline(value)
            if code == buffer.ATTACHED:
                return buffer.attached(value, attachments)
        except ValueError as error:  # msgspec passes on what its hooks raise
            raise msgspec.ValidationError(str(error)) from error
        return msgspec.msgpack.Ext(code, bytes(value))

    return msgspec.msgpack.Decoder(wanted, ext_hook=extension, dec_hook=_buffer_of_bytes).decode(data)


def decode(data: bytes | memoryview, wanted: Any, *, method: str | None = None) -> Any:
    """Decode into `wanted`; `None` and `type(None)` both mean nothing, `Any` means plain data.

    Raises:
        InvalidPayload: it does not fit; `path` names the place, such as "$.items[3].size".
    """
    if len(data) > SHALLOW and _too_deep(data, wanted):
        raise InvalidPayload("$", f"nested deeper than {MAX_DEPTH} levels", method=method)
    try:
        try:
            decoder = _decoders[wanted]
        except (KeyError, TypeError):
            decoder = decoder_for(wanted)
        try:
            return decoder.decode(data)
        except _HasBuffers:
            return _decode_buffers(data, wanted)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        place = _PLACE.match(str(error))
        path, reason = (place["path"], place["reason"]) if place else ("$", str(error))
        raise InvalidPayload(path, reason, method=method) from error
    except RecursionError as error:
        raise InvalidPayload("$", "nested too deep", method=method) from error
    except Exception as error:  # the type's own code, such as a __post_init__: a peer's values must not break us
        raise InvalidPayload("$", _raised(error), method=method) from error


def _raised(error: Exception) -> str:
    return f"{type(error).__name__}: {sentence_of(error)}"


def _too_deep(data: bytes | memoryview, wanted: Any) -> bool:
    try:
        guarded = is_open_ended(wanted)
    except TypeError:  # not hashable
        guarded = True
    return guarded and too_deep(data)


def decode_all(data: bytes, wanted: Any) -> list[Any] | None:
    """Decode a batch whose payloads all fit `wanted`; None if any does not, see `pieces`."""
    try:
        decoder = _batch_decoders[wanted]
    except KeyError:
        decoder = _batch_decoders[wanted] = msgspec.msgpack.Decoder(
            list[wanted], ext_hook=_extension, dec_hook=_buffer_of_bytes
        )
    except TypeError:  # not hashable: too rare to be fast
        return None
    if len(data) > SHALLOW and _too_deep(data, wanted):
        return None
    try:
        return decoder.decode(data)
    except Exception:  # the types' own code may raise anything; `decode` says of each payload what is wrong
        return None


def pieces(data: bytes) -> list[bytes]:
    """Return the payloads of a batch, each still encoded.

    Raises:
        InvalidPayload: it is no array.
    """
    if too_deep(data):
        raise InvalidPayload("$", f"nested deeper than {MAX_DEPTH} levels")
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
