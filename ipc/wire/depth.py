"""How deep a MessagePack value nests, told before it is decoded: decoders recurse, and stacks end. Bytes only.

msgspec counts its recursion against the interpreter's limit, which fits the stacks that Python makes by itself but not
every thread's. A value of a few hundred levels is decoded safely everywhere; what could nest deeper is looked at first.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import msgspec

MAX_DEPTH = 256
"""Levels that a payload may nest; those of the documents that people exchange are below twenty."""

SHALLOW = 512
"""A value of so many bytes, or of so many bytes that may begin a container, is shallow enough for any stack."""

_CONTAINERS = frozenset((*range(0x80, 0xA0), 0xDC, 0xDD, 0xDE, 0xDF))
_OTHERS = bytes(sorted(set(range(256)) - _CONTAINERS))


def _sizes() -> list[int]:
    """Return the bytes that each first byte stands for; 0 for containers and for what carries its own length."""
    sizes = [1] * 256
    for first in (*_CONTAINERS, 0xC4, 0xC5, 0xC6, 0xC7, 0xC8, 0xC9, 0xD9, 0xDA, 0xDB):
        sizes[first] = 0
    for first in range(0xA0, 0xC0):
        sizes[first] = 1 + (first & 0x1F)
    sizes[0xCA:0xD4] = [5, 9, 2, 3, 5, 9, 2, 3, 5, 9]
    sizes[0xD4:0xD9] = [3, 4, 6, 10, 18]
    return sizes


_SIZES = _sizes()
_LENGTHS = {
    0xC4: (1, 0), 0xC5: (2, 0), 0xC6: (4, 0), 0xC7: (1, 1), 0xC8: (2, 1), 0xC9: (4, 1), 0xD9: (1, 0), 0xDA: (2, 0),
    0xDB: (4, 0),
}  # fmt: skip
"""First byte of strings, binaries and extensions: bytes of their length, bytes of their type."""
_COUNTS = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}
"""First byte of large containers: bytes of their count, values per entry."""


def too_deep(data: bytes | memoryview) -> bool:
    """Tell whether a value nests deeper than MAX_DEPTH. What is malformed is left to the decoder."""
    if len(data) <= SHALLOW:
        return False
    data = bytes(data)
    if len(data.translate(None, _OTHERS)) <= SHALLOW:
        return False
    return _walk(data)


def _walk(data: bytes) -> bool:
    sizes = _SIZES
    waiting: list[int] = []
    left, place, end = 1, 0, len(data)
    while place < end:
        first = data[place]
        size = sizes[first]
        if size:
            place += size
        elif first in _LENGTHS:
            width, extra = _LENGTHS[first]
            place += 1 + width + extra + int.from_bytes(data[place + 1 : place + 1 + width], "big")
        else:
            if first in _COUNTS:
                width, each = _COUNTS[first]
                count = each * int.from_bytes(data[place + 1 : place + 1 + width], "big")
                place += 1 + width
            else:
                count = (first & 0x0F) * (2 if first < 0x90 else 1)
                place += 1
            if count:
                waiting.append(left)
                if len(waiting) > MAX_DEPTH:
                    return True
                left = count
                continue
        left -= 1
        while not left:
            if not waiting:
                return False
            left = waiting.pop() - 1
    return False


@lru_cache(maxsize=4096)
def is_open_ended(wanted: Any) -> bool:
    """Tell whether values of a type may nest as deep as their sender likes: Any in it, or itself."""
    try:
        return _open_ended(msgspec.inspect.type_info(wanted), ())
    except (TypeError, NotImplementedError):
        return True


def _open_ended(info: Any, above: tuple[Any, ...]) -> bool:
    if isinstance(info, msgspec.inspect.AnyType | msgspec.inspect.RawType | msgspec.inspect.CustomType):
        return True
    if any(info is one for one in above):
        return True
    return any(_open_ended(inner, (*above, info)) for inner in _inside(info))


def _inside(info: Any) -> Iterable[Any]:
    """Return the types inside a type."""
    if isinstance(info, msgspec.inspect.Metadata):
        return (info.type,)
    if isinstance(info, msgspec.inspect.UnionType):
        return info.types
    if isinstance(info, msgspec.inspect.DictType):
        return (info.key_type, info.value_type)
    if isinstance(info, msgspec.inspect.TupleType):
        return info.item_types
    if isinstance(info, msgspec.inspect.CollectionType):
        return (info.item_type,)
    return [field.type for field in getattr(info, "fields", ())]
