"""What a worker's configuration lets it say, hear and take: asked before anything leaves and when anything arrives.

Decides only, by `allow` and `rate_limit`; who a peer is has been established at the door. Shared by both flavours.
"""

from __future__ import annotations

import time

from smartipc.ipc.control import Launch
from smartipc.ipc.errors import CallError, PermissionDenied, RateLimited
from smartipc.ipc.protocol.handshake import Identity
from smartipc.ipc.routing.directory import Directory
from smartipc.ipc.trust.allow import Action, permits
from smartipc.ipc.trust.rates import TokenBucket


class Gate:
    """The rules of one instance.

    Args:
        launch: what this worker may do, and how much it takes.
        directory: what its peers may do.
    """

    def __init__(self, launch: Launch, directory: Directory) -> None:
        self._allow = launch.allow
        self._directory = directory
        rate = launch.rate_limit
        self._bucket = TokenBucket(rate, time.monotonic()) if rate is not None else None

    def __repr__(self) -> str:
        return f"<Gate {'of some' if self._allow is not None else 'open'}, {self._bucket!r}>"

    @property
    def restricts(self) -> bool:
        """Whether this worker may not say and hear everything."""
        return self._allow is not None

    @property
    def open(self) -> bool:
        """Whether everything that comes is let in just now."""
        return self._bucket is None and not self._directory.state.restricted

    def check(self, action: Action, name: str) -> None:
        """Ask before this worker does something.

        Raises:
            PermissionDenied: its configuration does not allow it.
        """
        if self._allow is not None and not permits(self._allow, action, name):
            raise PermissionDenied(method=name)

    def refusal(self, peer: Identity | None, method: str, now: float) -> CallError | None:
        """Ask when a request or one-way message has come; None lets it in."""
        if self._directory.state.restricted and not self._peer_may(peer, "request", method):
            return PermissionDenied(method=method)
        if self._bucket is not None:
            wait = self._bucket.take(now)
            if wait is not None:
                return RateLimited(wait, method=method, processed="no")
        return None

    def hears(self, peer: Identity | None, topic: str) -> bool:
        """Tell whether a message may be heard: its publisher may publish there."""
        return not self._directory.state.restricted or self._peer_may(peer, "publish", topic)

    def _peer_may(self, peer: Identity | None, action: Action, name: str) -> bool:
        entry = self._directory.state.entries.get(peer.name) if peer is not None else None
        return entry is None or entry.allow is None or permits(entry.allow, action, name)
