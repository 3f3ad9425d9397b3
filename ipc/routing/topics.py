"""Topic patterns: `*` is one token, `>` is one or more at the end. Only matching."""

from __future__ import annotations


def matches(pattern: str, topic: str) -> bool:
    """Tell whether a concrete topic falls under a pattern."""
    if pattern == topic:
        return True
    wanted = pattern.split(".")
    given = topic.split(".")
    for index, part in enumerate(wanted):
        if part == ">":
            return len(given) > index
        if index >= len(given) or part not in ("*", given[index]):
            return False
    return len(wanted) == len(given)
