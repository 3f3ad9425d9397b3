"""Topic patterns: `*` is one token, `>` is one or more at the end. Matching one, and finding all that match.

Nothing here knows what a pattern is registered for.
"""

from __future__ import annotations

from typing import Generic, TypeVar

V = TypeVar("V")
_NONE: tuple[()] = ()
RESERVED = "$sys"
"""First token of the library's own topics; no wildcard stands for it."""


def matches(pattern: str, topic: str) -> bool:
    """Tell whether a concrete topic falls under a pattern."""
    if pattern == topic:
        return True
    wanted = pattern.split(".")
    given = topic.split(".")
    if given[0] == RESERVED and wanted[0] != RESERVED:
        return False
    for index, part in enumerate(wanted):
        if part == ">":
            return len(given) > index
        if index >= len(given) or part not in ("*", given[index]):
            return False
    return len(wanted) == len(given)


class _Node(Generic[V]):
    """What follows one token: further tokens, those that end here, and those that take the rest."""

    __slots__ = ("children", "here", "rest")

    def __init__(self) -> None:
        self.children: dict[str, _Node[V]] = {}
        self.here: tuple[V, ...] = _NONE
        self.rest: tuple[V, ...] = _NONE

    @property
    def empty(self) -> bool:
        return not (self.children or self.here or self.rest)


class Trie(Generic[V]):
    """Values by pattern. Finding those that match a topic costs by its tokens, not by how many do not match.

    One thread may change it while others look things up: a reader only follows single entries and takes whole tuples,
    so it sees each value or does not, and never half a change.
    """

    __slots__ = ("_count", "_root")

    def __init__(self) -> None:
        self._root: _Node[V] = _Node()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        return f"<Trie of {self._count}>"

    def add(self, pattern: str, value: V) -> None:
        """Register a value under a pattern; the same value again counts again."""
        node = self._root
        for part in pattern.split("."):
            if part == ">":
                node.rest = (*node.rest, value)
                self._count += 1
                return
            following = node.children.get(part)
            if following is None:
                following = node.children[part] = _Node()
            node = following
        node.here = (*node.here, value)
        self._count += 1

    def discard(self, pattern: str, value: V) -> bool:
        """Remove a value from under its pattern, with the nodes that only led there; tell whether it was there."""
        path: list[tuple[_Node[V], str]] = []
        node = self._root
        tokens = pattern.split(".")
        ends_open = tokens[-1] == ">"
        for token in tokens[:-1] if ends_open else tokens:
            following = node.children.get(token)
            if following is None:
                return False
            path.append((node, token))
            node = following
        values = node.rest if ends_open else node.here
        if value not in values:
            return False
        at = values.index(value)
        left = values[:at] + values[at + 1 :]
        if ends_open:
            node.rest = left
        else:
            node.here = left
        self._count -= 1
        while path and node.empty:
            node, token = path.pop()
            del node.children[token]
        return True

    def match(self, topic: str) -> list[V]:
        """Return the values of every pattern that the concrete topic falls under."""
        found: list[V] = []
        tokens = topic.split(".")
        own = tokens[0] == RESERVED
        level = [self._root]
        for index, token in enumerate(tokens):
            following: list[_Node[V]] = []
            wild = index > 0 or not own
            for node in level:
                if wild:
                    found += node.rest
                    star = node.children.get("*")
                    if star is not None:
                        following.append(star)
                exact = node.children.get(token)
                if exact is not None:
                    following.append(exact)
            if not following:
                return found
            level = following
        for node in level:
            found += node.here
        return found
