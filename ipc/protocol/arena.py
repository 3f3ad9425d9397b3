"""Which parts of the shared segments are free: arithmetic over numbers. No memory, descriptors, locks or clock.

The smallest free part that fits is given out, the lowest of equals, so that memory that was used before is used again:
its pages exist already, and fresh ones cost more than a copy through a socket. Freed neighbours become one part again.
"""

from __future__ import annotations

from bisect import bisect_left

GRAIN = 4096
"""Parts begin and end at multiples of it."""


class Arena:
    """Segments, their free parts and what is in use.

    Args:
        segment_size: size of a new segment, unless a part needs a larger one.
        limit: bytes of all segments together.
        warm: bytes of wholly free segments that are kept for later.
    """

    def __init__(self, *, segment_size: int, limit: int, warm: int) -> None:
        self._segment_size = segment_size
        self._limit = limit
        self._warm = warm
        self._sizes: dict[int, int] = {}
        self._used: dict[int, int] = {}
        self._free: dict[int, list[tuple[int, int]]] = {}
        self._last = 0

    def __repr__(self) -> str:
        return f"<Arena {self.in_use} of {self.size} bytes in {len(self._sizes)} segments in use>"

    @property
    def size(self) -> int:
        """Bytes of all segments."""
        return sum(self._sizes.values())

    @property
    def in_use(self) -> int:
        """Bytes given out."""
        return sum(self._used.values())

    def take(self, nbytes: int) -> tuple[int, int] | None:
        """Give out a part of an existing segment: its number and the offset; None when none fits."""
        size = _whole(nbytes)
        fitting = (
            (length, number, offset)
            for number, parts in self._free.items()
            for offset, length in parts
            if length >= size
        )
        best = min(fitting, default=None)
        if best is None:
            return None
        length, number, offset = best
        parts = self._free[number]
        at = bisect_left(parts, (offset, 0))
        parts[at : at + 1] = [(offset + size, length - size)] if length > size else []
        self._used[number] += size
        return number, offset

    def grow(self, nbytes: int) -> tuple[int, int] | None:
        """Add a segment in which so many bytes fit: its number and size; None when the limit forbids it."""
        size = max(self._segment_size, _whole(nbytes))
        if self.size + size > self._limit:
            size = _whole(nbytes)
            if self.size + size > self._limit:
                return None
        self._last += 1
        self._sizes[self._last] = size
        self._used[self._last] = 0
        self._free[self._last] = [(0, size)]
        return self._last, size

    def give(self, number: int, offset: int, nbytes: int) -> None:
        """Take a part back; in an abandoned segment it is not given out again."""
        size = _whole(nbytes)
        self._used[number] -= size
        parts = self._free.get(number)
        if parts is None:
            return
        at = bisect_left(parts, (offset, 0))
        if at < len(parts) and offset + size == parts[at][0]:
            size += parts.pop(at)[1]
        if at and sum(parts[at - 1]) == offset:
            at -= 1
            offset, before = parts.pop(at)
            size += before
        parts.insert(at, (offset, size))

    def abandon(self, number: int) -> None:
        """Give nothing of a segment out again: somebody may read it who will never say that he is through."""
        self._free.pop(number, None)

    def retire(self) -> list[int]:
        """Forget the segments that nothing uses and that are abandoned or more than to keep warm; name them."""
        retired = []
        warm = 0
        for number, size in list(self._sizes.items()):
            if self._used[number]:
                continue
            if number in self._free and warm + size <= self._warm:
                warm += size
                continue
            del self._sizes[number], self._used[number]
            self._free.pop(number, None)
            retired.append(number)
        return retired


def _whole(nbytes: int) -> int:
    return max(GRAIN, (nbytes + GRAIN - 1) // GRAIN * GRAIN)
