"""The handshake of one connection: preface, HELLO, WELCOME, AUTH, AUTH_OK, REJECT. A component, as pure as its hub.

It is here that nothing of a peer is heard, and nothing said to it, before it has shown who it is. What is compared and
answered is in handshake.py, proofs are in auth.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from smartipc.ipc.errors import AuthenticationFailed, FrameTooLarge, ProtocolError, RemoteProtocolError
from smartipc.ipc.protocol import handshake
from smartipc.ipc.protocol.auth import Auth
from smartipc.ipc.protocol.events import Event
from smartipc.ipc.protocol.handshake import Identity
from smartipc.ipc.protocol.outbox import Outbox
from smartipc.ipc.wire import heads
from smartipc.ipc.wire.frames import PREFACE, Kind, frame
from smartipc.ipc.wire.limits import Limits
from smartipc.ipc.wire.receive_buffer import ReceiveBuffer
from smartipc.ipc.wire.text import shown

_EXPECTED = {
    ("server", False): frozenset({Kind.HELLO}),
    ("server", True): frozenset({Kind.AUTH, Kind.FATAL}),
    ("client", False): frozenset({Kind.WELCOME, Kind.REJECT, Kind.FATAL}),
    ("client", True): frozenset({Kind.AUTH_OK, Kind.REJECT, Kind.FATAL}),
}
"""Kinds that may come before the handshake is over, by our role and whether HELLO and WELCOME are exchanged."""


class Greeting:
    """What one connection knows of its handshake.

    Args:
        role: "client" speaks first.
        identity: what this side says of itself.
        limits: bounds of the connection.
        out: where frames wait to be sent.
        auth: for the token handshake, or None.
        admit: returns why the peer must not come in, or "".
        opened: called once with the peer, its message limit, the features of both and the events so far.
        ended: called with the error, the reason and the events so far, when one side refuses the other.
    """

    def __init__(
        self,
        role: Literal["client", "server"],
        identity: Identity,
        limits: Limits,
        out: Outbox,
        *,
        auth: Auth | None,
        admit: Callable[[Identity], str] | None,
        opened: Callable[[Identity, int, list[str], list[Event]], None],
        ended: Callable[[ProtocolError | AuthenticationFailed, str, list[Event]], None],
    ) -> None:
        self.offered: tuple[str, ...] = ()
        """The optional parts of the protocol that this side offers."""
        self.held: list[bytes | bytearray] | None = None if auth is None else []
        """Handshake bytes to send while all else must wait for the peer's proof; None when nothing must."""
        self.preface_due = True
        """Whether the peer's first bytes are still to come."""
        self.done = False
        """Whether both sides know each other."""
        self._role: Literal["client", "server"] = role
        self._identity = identity
        self._limits = limits
        self._out = out
        self._auth = auth
        self._admit = admit
        self._opened = opened
        self._ended = ended
        self._preface_sent = False
        self._spoken = b""
        self._left = limits.preauth
        self._answer: tuple[Identity, int, list[str]] | None = None

    def __repr__(self) -> str:
        return f"<Greeting {self._role}{' done' if self.done else ''}>"

    def begin(self) -> None:
        """Queue the connecting side's HELLO."""
        hello = handshake.hello(self._identity, self._limits, self._auth, self.offered)
        self._send(Kind.HELLO, heads.encoder.encode(hello))

    def first(self, data: bytes) -> bytes:
        """Put the preface before a frame, if nothing was sent before it."""
        return data if self._preface_sent else PREFACE + data

    def read_preface(self, buffer: ReceiveBuffer) -> bool:
        """Take the peer's preface; return whether all of it is there.

        Raises:
            RemoteProtocolError: it is another protocol's.
        """
        start = bytes(buffer.data[buffer.offset : buffer.offset + len(PREFACE)])
        if start != PREFACE[: len(start)]:
            raise RemoteProtocolError(f"not SIPC/1: the peer began with {start!r}")
        if len(start) < len(PREFACE):
            return False
        buffer.offset += len(PREFACE)
        self.preface_due = False
        return True

    def check(self, size: int, kind: int) -> None:
        """Judge a header that comes before the handshake is over.

        Raises:
            RemoteProtocolError: this kind must not come yet.
            FrameTooLarge: strangers may not say that much.
        """
        if kind not in _EXPECTED[self._role, self._answer is not None]:
            raise RemoteProtocolError(f"frame kind 0x{kind:02x} before the handshake")
        if size > self._left:
            raise FrameTooLarge(size, self._left, "handshake frame")

    def release(self, *, forget: bool = False) -> None:
        """Let what waited for the handshake go out behind it; with `forget`, drop it instead."""
        if forget:
            self._out.clear()
        if self.held is not None:
            self._out.control[:0] = self.held
            self.held = None

    # frames

    def on_hello(self, ident: int, head: bytes, payload: bytes, now: float, events: list[Event]) -> None:
        """Answer the connecting side, or refuse it."""
        self._only_once()
        theirs = heads.decode(head, heads.Hello)
        try:
            answer = handshake.welcome(theirs, self._identity, self._limits, self._auth, self.offered)
            peer = self._admitted(theirs)
        except (RemoteProtocolError, AuthenticationFailed) as error:
            self._reject(error, events)
            return
        heard = PREFACE + frame(Kind.HELLO, ident, head, payload)
        self._send(Kind.WELCOME, heads.encoder.encode(answer))
        if self._auth is None:
            self._finish(peer, theirs.message_limit, answer.features, events)
        else:
            self._left -= len(heard)
            self._auth.bind(heard, self._spoken)
            self._answer = (peer, theirs.message_limit, answer.features)

    def on_welcome(self, ident: int, head: bytes, payload: bytes, now: float, events: list[Event]) -> None:
        """Take the accepting side's answer, and prove ourselves where there is a token."""
        self._only_once()
        theirs = heads.decode(head, heads.Welcome)
        handshake.check_welcome(theirs, self._auth, self.offered)
        peer = self._admitted(theirs)
        if self._auth is None:
            self._finish(peer, theirs.message_limit, theirs.features, events)
        else:
            heard = PREFACE + frame(Kind.WELCOME, ident, head, payload)
            self._left -= len(heard)
            self._auth.bind(self._spoken, heard)
            self._answer = (peer, theirs.message_limit, theirs.features)
            self._prove(Kind.AUTH)

    def on_auth(self, ident: int, head: bytes, payload: bytes, now: float, events: list[Event]) -> None:
        """Check the connecting side's proof and give ours."""
        self._only_once()
        assert self._auth is not None
        assert self._answer is not None
        try:
            self._auth.check("client", heads.decode(head, heads.Proof).mac)
        except AuthenticationFailed as error:
            self._reject(error, events)
            return
        self._prove(Kind.AUTH_OK)
        self._finish(*self._answer, events)

    def on_auth_ok(self, ident: int, head: bytes, payload: bytes, now: float, events: list[Event]) -> None:
        """Check the accepting side's proof."""
        self._only_once()
        assert self._auth is not None
        assert self._answer is not None
        self._auth.check("server", heads.decode(head, heads.Proof).mac)
        self._finish(*self._answer, events)

    def on_reject(self, ident: int, head: bytes, payload: bytes, now: float, events: list[Event]) -> None:
        """Take the accepting side's no."""
        self._only_once()
        reject = heads.decode(head, heads.Reject)
        reason = shown(reject.reason)
        self.release(forget=True)
        error = (AuthenticationFailed if reject.authentication else RemoteProtocolError)(
            f"refused by the peer: {reason}"
        )
        self._ended(error, reason, events)

    def _only_once(self) -> None:
        if self.done:
            raise RemoteProtocolError("a second handshake")

    def _admitted(self, theirs: heads.Hello | heads.Welcome) -> Identity:
        peer = handshake.identity_of(theirs)
        refusal = self._admit(peer) if self._admit is not None else ""
        if refusal:
            raise AuthenticationFailed(refusal)
        return peer

    def _prove(self, kind: Literal[Kind.AUTH, Kind.AUTH_OK]) -> None:
        assert self._auth is not None
        assert self.held is not None
        self.held.append(frame(kind, 0, heads.encoder.encode(heads.Proof(self._auth.proof(self._role)))))

    def _reject(self, error: RemoteProtocolError | AuthenticationFailed, events: list[Event]) -> None:
        """Answer a peer that must not come in with one REJECT frame, and end."""
        self.release(forget=True)
        reject = heads.Reject(error.reason, 0, handshake.MINOR, isinstance(error, AuthenticationFailed))
        self._send(Kind.REJECT, heads.encoder.encode(reject))
        self._ended(error, error.reason, events)

    def _finish(self, peer: Identity, message_limit: int, features: list[str], events: list[Event]) -> None:
        self.release()
        self.done = True
        self._opened(peer, message_limit, features, events)

    def _send(self, kind: Kind, head: bytes) -> None:
        data = self.first(frame(kind, 0, head))
        self._preface_sent = True
        self._spoken += data
        (self._out.control if self.held is None else self.held).append(data)
