"""What a worker may say and hear: patterns by kind, default-deny once written. Pure; asked at both ends of a link."""

from __future__ import annotations

from typing import Literal

from smartipc.ipc.control import Allow
from smartipc.ipc.routing.topics import matches

Action = Literal["request", "publish", "subscribe"]


def permits(allow: Allow, action: Action, name: str) -> bool:
    """Tell whether a worker may; a pattern that is subscribed to must be covered as a whole."""
    patterns: tuple[str, ...] = getattr(allow, action)
    if action == "subscribe":
        return any(covers(pattern, name) for pattern in patterns)
    return any(matches(pattern, name) for pattern in patterns)


def covers(wider: str, pattern: str) -> bool:
    """Tell whether every name that falls under `pattern` also falls under `wider`."""
    wide = wider.split(".")
    narrow = pattern.split(".")
    for index, part in enumerate(wide):
        if part == ">":
            return len(narrow) > index
        if index >= len(narrow) or narrow[index] == ">":
            return False
        if part not in ("*", narrow[index]):
            return False
    return len(wide) == len(narrow)
