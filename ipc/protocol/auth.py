"""The token handshake of one connection: two proofs over one transcript. Values in, values out; no I/O, no randomness.

Both sides know a secret and never send it. After HELLO and WELCOME each has every handshake byte of both directions,
two nonces among them, and the name of the accepting end. Over these the connecting side sends its proof in AUTH, the
accepting side answers with its own in AUTH_OK:

    transcript = SHA256("smartipc/1 transcript" + client's bytes + server's bytes + endpoint), each after its size
    AUTH       = HMAC-SHA256(token, "smartipc/1 client" + transcript)
    AUTH_OK    = HMAC-SHA256(token, "smartipc/1 server" + transcript)

The role in each proof forbids reflection, the nonces forbid replay, the transcript forbids changing what was offered,
and the endpoint forbids passing everything on to a server elsewhere. See docs/explanation/handshake.md.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Literal

from smartipc.ipc.errors import AuthenticationFailed, LocalProtocolError

NONCE_SIZE = 32
MECHANISM = "token"
NEEDED = "a token is needed here"
NOT_USED = "no token is used here"
FAILED = "the token is wrong"

_LABELS: dict[Literal["client", "server"], bytes] = {"client": b"smartipc/1 client", "server": b"smartipc/1 server"}


class Auth:
    """One side's part of the token handshake of one connection.

    Args:
        token: the shared secret.
        nonce: 32 bytes from a good random source, never used before.
        endpoint: the kernel's name of the accepting end, the same at both ends.
        same_user: whether the kernel says that the peer is a process of our own user: only those see tracebacks.

    Raises:
        LocalProtocolError: the token is empty, or the nonce of another size.
    """

    def __init__(self, token: str | bytes, nonce: bytes, endpoint: str, *, same_user: bool = False) -> None:
        self.same_user = same_user
        self._key = token.encode() if isinstance(token, str) else bytes(token)
        if not self._key:
            raise LocalProtocolError("an empty token protects nothing")
        if len(nonce) != NONCE_SIZE:
            raise LocalProtocolError(f"a nonce has {NONCE_SIZE} bytes, not {len(nonce)}")
        self.nonce = nonce
        self._endpoint = endpoint.encode(errors="surrogateescape")
        self._transcript = b""

    def __repr__(self) -> str:
        return f"<Auth{' with a transcript' if self._transcript else ''}>"

    def bind(self, client: bytes, server: bytes) -> None:
        """Take all handshake bytes of both directions, prefaces included: what the proofs are about."""
        whole = hashlib.sha256(b"smartipc/1 transcript")
        for part in (client, server, self._endpoint):
            whole.update(len(part).to_bytes(8, "little"))
            whole.update(part)
        self._transcript = whole.digest()

    def proof(self, role: Literal["client", "server"]) -> bytes:
        """Return what shows that `role` knows the token. `bind` comes first."""
        assert self._transcript
        return hmac.digest(self._key, _LABELS[role] + self._transcript, "sha256")

    def check(self, role: Literal["client", "server"], proof: bytes) -> None:
        """Compare, in constant time, what `role` has shown.

        Raises:
            AuthenticationFailed: it does not know the token, or the handshake was tampered with.
        """
        if not hmac.compare_digest(self.proof(role), proof):
            raise AuthenticationFailed(FAILED)
