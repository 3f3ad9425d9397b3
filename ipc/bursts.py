"""Bursts: one-way messages in a row to the same place, encoded straight into the frame that will carry them.

The short path of `notify` and `publish`. What is unusual about a message is left to the long one: `add` then says no.
A burst never outlives the loop turn it began in. Who may receive, and when bytes leave, is decided elsewhere.
"""

from __future__ import annotations

from typing import Any

from smartipc.ipc.drivers.aio import BURST, Link
from smartipc.ipc.wire.codec import UNFIT, append


class NotifyBurst:
    """Appends to the batch that is open in a link's outbox, for as long as it is.

    Args:
        link: has an open batch of this method's.
        payload_type: of the contract; a payload of exactly this type needs no check.
    """

    __slots__ = ("_batch", "_chunk", "_link", "_outbox", "_type")

    def __init__(self, link: Link, payload_type: Any) -> None:
        self._link = link
        self._outbox = link.connection.outbox
        self._batch = self._outbox.batch
        self._chunk = link.connection.limits.chunk
        self._type = payload_type

    def add(self, payload: Any) -> bool:
        """Append a message; return whether it was done."""
        batch = self._batch
        if batch is None or self._outbox.batch is not batch or type(payload) is not self._type:
            return False
        size = len(batch)
        try:
            append(payload, batch, -1)
        except UNFIT:
            del batch[size:]
            return False
        if len(batch) > self._chunk:
            del batch[size:]
            return False
        self._outbox.count += 1
        if size > BURST:
            self._batch = None
            self._link.burst()
        return True
