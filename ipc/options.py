"""The keyword options that the verbs of both flavours share, for the overloads that a type checker reads.

Said once here, so that an overload shows what is special about it. Defaults and meaning are at the verbs themselves.
"""

from __future__ import annotations

from typing import TypedDict

from smartipc.ipc.message import Peer

LOOK_AHEAD = 32
"""Calls that `map` keeps under way unless `concurrency` says otherwise."""


class CallOptions(TypedDict, total=False):
    """Of `request` and `open_stream`: how long, whom to ask, and what to say beside the payload."""

    timeout: float | None
    to: Peer | None
    slot: int | None
    key: str | None
    headers: dict[str, str] | None


class MapOptions(TypedDict, total=False):
    """Of `map`."""

    concurrency: int
    ordered: bool
    timeout: float | None
    to: Peer | None


class SubscribeOptions(TypedDict, total=False):
    """Of `subscribe`."""

    queue: str | None
    max_pending: int | None
    overflow: str
