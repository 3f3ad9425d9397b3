"""The life of a client's connection over all its links, decided here: states, delays, when to give up.

    CONNECTING ----opened----> CONNECTED ----lost----> RECONNECTING
        |                         ^                        |
        |                         +---------opened---------+
        +--- in vain, or nothing to dial again, or closed by us, from any state ---> CLOSED

A link is made again with a delay that doubles from 100 ms to 5 s; a connection that lasted sets it back. What becomes
of a call whose link was lost is decided in routing.attempts, for clients as for workers. No clock, no randomness, no
sockets: both drivers of clients ask here and wait.
"""

from __future__ import annotations

from enum import StrEnum

from smartipc.ipc.errors import AuthenticationFailed, ConnectFailed, ConnectionLost, ProtocolError, SmartIpcError

FIRST_DELAY = 0.1
FACTOR = 2.0
LONGEST_DELAY = 5.0
SPREAD = 0.2
"""Share of a delay by which jitter moves it, either way, inside the cap."""
STABLE = 5.0
"""Seconds after which a connection counts as one that lasted."""

HOPELESS = (AuthenticationFailed, ProtocolError)
"""Failures of a handshake that another try would repeat."""


class ClientState(StrEnum):
    """What a client tells of its connection."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    RECONNECTING = "reconnecting"
    CLOSED = "closed"


class Cause(StrEnum):
    """What moves a client from one state to another."""

    OPENED = "opened"
    LOST = "lost"
    ENDED = "ended"


TRANSITIONS: dict[tuple[ClientState, Cause], ClientState] = {
    (ClientState.CONNECTING, Cause.OPENED): ClientState.CONNECTED,
    (ClientState.CONNECTED, Cause.LOST): ClientState.RECONNECTING,
    (ClientState.RECONNECTING, Cause.OPENED): ClientState.CONNECTED,
    (ClientState.CONNECTING, Cause.ENDED): ClientState.CLOSED,
    (ClientState.CONNECTED, Cause.ENDED): ClientState.CLOSED,
    (ClientState.RECONNECTING, Cause.ENDED): ClientState.CLOSED,
}
"""Every legal step. What is not in here changes nothing: a link may report its end after we closed."""


class Reconnection:
    """One client's connection over all its links.

    Args:
        give_up_at: when to stop trying for the first connection, in monotonic seconds.
        again: whether a lost link can be dialled again; an inherited descriptor cannot.
    """

    def __init__(self, give_up_at: float, *, again: bool = True) -> None:
        self.state = ClientState.CONNECTING
        self.reason = ""
        """Why the last try or link failed."""
        self._give_up_at = give_up_at
        self._again = again
        self._tries = 0
        self._opened_at = 0.0

    def __repr__(self) -> str:
        return f"<Reconnection {self.state}, {self._tries} tries>"

    def opened(self, now: float) -> bool:
        """Note that a link is up and everything is restored; tell whether that is news."""
        self._opened_at = now
        return self._move(Cause.OPENED)

    def lost(self, now: float, reason: str) -> bool:
        """Note that the link in use has ended; tell whether that is news."""
        if self.state is not ClientState.CONNECTED:
            return False
        self.reason = reason
        if now - self._opened_at >= STABLE:
            self._tries = 0
        return self._move(Cause.LOST if self._again else Cause.ENDED)

    def failed(self, now: float, reason: str, *, hopeless: bool = False) -> bool:
        """Note that a try to make a link failed; tell whether that ended the client.

        `hopeless` is what another try would not change, such as a wrong token: it ends the first connection at once.
        A client that was connected goes on trying: whoever restarts the server may put it right.
        """
        self.reason = reason
        self._tries += 1
        in_vain = hopeless or now >= self._give_up_at or not self._again
        return self.state is ClientState.CONNECTING and in_vain and self._move(Cause.ENDED)

    def delay(self, now: float, jitter: float) -> float:
        """Return the seconds to wait before the next try.

        Args:
            now: monotonic seconds.
            jitter: a random number from 0 to 1.
        """
        exact = min(LONGEST_DELAY, FIRST_DELAY * FACTOR ** min(max(0, self._tries - 1), 16))
        moved = min(LONGEST_DELAY, exact * (1 - SPREAD + 2 * SPREAD * jitter))
        if self.state is ClientState.CONNECTING:
            moved = min(moved, max(0.0, self._give_up_at - now))  # one last try at the very end
        return moved

    def close(self, reason: str = "closed here") -> bool:
        """End it by our own wish; tell whether that is news."""
        if self.state is not ClientState.CLOSED:
            self.reason = reason
        return self._move(Cause.ENDED)

    def _move(self, cause: Cause) -> bool:
        after = TRANSITIONS.get((self.state, cause))
        if after is None:
            return False
        self.state = after
        return True


def why(failure: SmartIpcError) -> str:
    """Return what is to be said of a try that failed, without naming the address again."""
    return failure.reason if isinstance(failure, (ConnectFailed, ConnectionLost)) else str(failure)


def in_vain(failure: SmartIpcError, address: str) -> SmartIpcError:
    """Return what the first connection fails with, when this was its last try."""
    return failure if isinstance(failure, HOPELESS) else ConnectFailed(address, why(failure))
