"""One-way messages that no handler took: told in the log, and kept as dead letters. The same for both flavours."""

from __future__ import annotations

import logging

from smartipc.ipc.protocol.events import NotifyReceived
from smartipc.ipc.protocol.handshake import Identity
from smartipc.ipc.resilience.dead_letters import DeadLetters
from smartipc.ipc.wire.text import sentence_of, shown

log = logging.getLogger("smartipc.serving")


class Undelivered:
    """What becomes of one-way messages that arrived and could not be handled.

    Args:
        letters: where they are kept; None for nowhere.
    """

    def __init__(self, letters: DeadLetters | None) -> None:
        self._letters = letters

    def __repr__(self) -> str:
        return f"<Undelivered, kept in {self._letters!r}>"

    def dropped(self, peer: Identity | None, event: NotifyReceived, reason: str, *, keep: bool = True) -> None:
        """Tell that a message reached no handler; with `keep` it becomes a dead letter."""
        sender = peer.name if peer is not None else ""
        log.warning("one-way message %s of %s dropped: %s", shown(event.method), shown(sender), shown(reason))
        if keep:
            self._keep(sender, event, reason, 0)

    def failed(self, peer: Identity | None, event: NotifyReceived, error: BaseException, attempts: int) -> None:
        """Keep a message whose handler raised, `attempts` times in all."""
        self._keep(
            peer.name if peer is not None else "", event, f"{type(error).__name__}: {sentence_of(error)}", attempts
        )

    def _keep(self, sender: str, event: NotifyReceived, reason: str, attempts: int) -> None:
        if self._letters is not None:
            self._letters.add("notify", event.method, event.payload, sender=sender, reason=reason, attempts=attempts)
