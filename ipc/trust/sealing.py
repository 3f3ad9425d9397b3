"""Sealing: encryption of single payloads, for those that cross hosts or a broker that must not read or change them.

A sealed payload is bytes, which travel like any other; connections, contracts and the protocol know nothing of it. Keys
are not made, kept or exchanged here, and there is no forward secrecy: whoever learns the key reads what was recorded.

Every sealer draws a random session, derives the session's own key from the shared one, and counts: so no nonce is ever
used twice, whoever shares the key, and an opener knows what it has seen. The cipher is ChaCha20-Poly1305 of the
`cryptography` distribution (the extra "crypto"); the layout is in docs/reference/wire-protocol.md.
"""

from __future__ import annotations

import hmac
import importlib
import os
import struct
import threading
from collections import OrderedDict
from typing import Any, TypeVar, overload

from smartipc.ipc.errors import AuthenticationFailed, InvalidPayload, LocalProtocolError
from smartipc.ipc.wire import codec
from smartipc.ipc.wire.attachments import Payload

T = TypeVar("T")

LEAST_KEY = 32
"""Bytes of the shortest key."""
WINDOW = 1024
"""How far behind the newest payload of a session an older one may come."""
SESSIONS = 4096
"""Sessions whose counts an opener keeps, the latest heard."""
PER_SESSION = 2**31
"""Payloads of one session; then a sealer begins another, with another key."""
_VERSION = 1
_HEAD = struct.Struct(">B16sQ")
_TAG = 16


class Sealing:
    """A key, for sealing payloads and opening those that others have sealed with it. For any number of threads.

    Args:
        key: the shared secret, at least 32 bytes of randomness or their text: `secrets.token_hex(32)`.

    Raises:
        LocalProtocolError: the key is too short, or the extra "crypto" is not installed.
    """

    def __init__(self, key: bytes | str) -> None:
        secret = key.encode() if isinstance(key, str) else bytes(key)
        if len(secret) < LEAST_KEY:
            raise LocalProtocolError(f"a key must have at least {LEAST_KEY} bytes, such as secrets.token_hex(32)")
        try:
            aead: Any = importlib.import_module("cryptography.hazmat.primitives.ciphers.aead")
        except ImportError:
            raise LocalProtocolError("sealing needs the extra: pip install 'smartipc[crypto]'") from None
        self._cipher = aead.ChaCha20Poly1305
        self._invalid: type[Exception] = importlib.import_module("cryptography.exceptions").InvalidTag
        self._secret = secret
        self._lock = threading.Lock()
        self._heard: OrderedDict[bytes, _Heard] = OrderedDict()
        self._own: set[bytes] = set()
        self._begin()

    def __repr__(self) -> str:
        return f"<Sealing: {self._count} sealed in this session, {len(self._heard)} others heard>"

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._session = os.urandom(16)
        self._sender = self._keyed(self._session)
        self._count = 0
        self._own.add(self._session)

    def _leave_to_parent(self) -> None:
        """Begin a session, in a forked child: a copy of the parent's would count as the parent does."""
        if self._pid != os.getpid():
            self._own.clear()
            self._begin()

    def _keyed(self, session: bytes) -> Any:
        """Return the cipher of a session: HKDF-SHA256 (RFC 5869), one block."""
        extracted = hmac.digest(session, self._secret, "sha256")
        return self._cipher(hmac.digest(extracted, b"smartipc/1 sealing\x01", "sha256"))

    def seal(self, payload: Any, name: str, *, reply: bool = False) -> bytes:
        """Encode and encrypt a payload.

        Args:
            payload: what a contract's type may be; without big buffers, which would travel beside it in the clear.
            name: of the method or topic that it is for; it opens under no other.
            reply: it is the answer of that method, and not what is asked.

        Raises:
            InvalidPayload: it has no MessagePack form, or has buffers.
        """
        encoded = codec.encode(payload, method=name)
        if isinstance(encoded, Payload):
            raise InvalidPayload("$", "big buffers cannot be sealed; seal their bytes", method=name, processed="no")
        with self._lock:
            self._leave_to_parent()
            if self._count >= PER_SESSION:
                self._begin()
            self._count += 1
            session, count, cipher = self._session, self._count, self._sender
        head = _HEAD.pack(_VERSION, session, count)
        return head + bytes(cipher.encrypt(_nonce(count), encoded, head + _bound(name, reply=reply)))

    @overload
    def open(self, sealed: bytes, name: str, payload_type: type[T], *, reply: bool = False) -> T: ...

    @overload
    def open(self, sealed: bytes, name: str, *, reply: bool = False) -> Any: ...

    def open(self, sealed: bytes, name: str, payload_type: Any = Any, *, reply: bool = False) -> Any:
        """Decrypt and decode what another Sealing of this key has sealed, once.

        Args:
            sealed: as it came.
            name: of the method or topic by which it came.
            payload_type: to decode it into.
            reply: it came as the answer of that method.

        Raises:
            AuthenticationFailed: it was sealed with another key or for another name, was changed, comes back to its
                sealer, or was opened before.
            InvalidPayload: it is genuine, but does not fit the type.
        """
        if len(sealed) < _HEAD.size + _TAG:
            raise AuthenticationFailed(_refusal(name))
        head = bytes(sealed[: _HEAD.size])
        version, session, count = _HEAD.unpack(head)
        with self._lock:
            self._leave_to_parent()
            known = self._heard.get(session)
            own = session in self._own
        if version != _VERSION or own:
            raise AuthenticationFailed(_refusal(name))
        cipher = known.cipher if known is not None else self._keyed(session)
        try:
            encoded = cipher.decrypt(_nonce(count), bytes(sealed[_HEAD.size :]), head + _bound(name, reply=reply))
        except self._invalid:
            raise AuthenticationFailed(_refusal(name)) from None
        with self._lock:  # only what is genuine is counted: nobody else can fill the table or move a window
            heard = self._heard.setdefault(session, _Heard(cipher))
            self._heard.move_to_end(session)
            if len(self._heard) > SESSIONS:
                self._heard.popitem(last=False)
            fresh = heard.first_time(count)
        if not fresh:
            raise AuthenticationFailed(f"a sealed payload for {name} was opened before, or comes too late to tell")
        return codec.decode(encoded, payload_type, method=name)


class _Heard:
    """What was opened of one session: the newest count, and a bit for each of the window behind it (RFC 4303)."""

    __slots__ = ("_bits", "_newest", "cipher")

    def __init__(self, cipher: Any) -> None:
        self.cipher = cipher
        self._newest = 0
        self._bits = 0

    def first_time(self, count: int) -> bool:
        """Note a count; tell whether it is new."""
        ahead = count - self._newest
        if ahead > 0:
            self._bits = (self._bits << min(ahead, WINDOW) | 1) & ((1 << WINDOW) - 1)
            self._newest = count
            return True
        if -ahead >= WINDOW or self._bits >> -ahead & 1:
            return False
        self._bits |= 1 << -ahead
        return True


def _nonce(count: int) -> bytes:
    return count.to_bytes(12, "big")


def _bound(name: str, *, reply: bool) -> bytes:
    return (b"reply " if reply else b"ask ") + name.encode()


def _refusal(name: str) -> str:
    return f"not sealed for {name} with this key, or changed on the way"
