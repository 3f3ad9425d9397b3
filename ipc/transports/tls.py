"""TLS 1.3 over a connected socket, as a conduit. Certificates and keys are the caller's SSLContext, not ours."""

from __future__ import annotations

import errno
import itertools
import socket
import ssl
import threading
from collections.abc import Iterable
from typing import Any

from smartipc.ipc.transports.base import Conduit

_RECORD = 16 * 1024
_GATHER = 64 * 1024


class TlsConduit(Conduit):
    """A TLS session over a non-blocking socket.

    Args:
        sock: connected; owned from here on.
        context: the caller's; only TLS 1.3 is accepted, whatever it allows.
        server_name: whom the certificate must name, on the connecting side; None on the accepting one.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, *, server_name: str | None) -> None:
        self._tls = context.wrap_socket(
            sock, server_side=server_name is None, do_handshake_on_connect=False, server_hostname=server_name
        )
        # OpenSSL forbids two threads in one session, and a reader and a writer may come together.
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<TlsConduit {self._tls.version() or 'shaking hands'}{' closed' if self.fileno() < 0 else ''}>"

    @property
    def socket(self) -> socket.socket:
        """The socket below, for addresses only."""
        return self._tls

    def fileno(self) -> int:
        """Return the socket's descriptor; see Conduit."""
        return self._tls.fileno()

    def handshake(self) -> bool:
        """Go on with the TLS handshake; see Conduit.

        What a handshake says fits into an empty socket, so only reading is ever waited for.
        """
        with self._lock:
            try:
                self._tls.do_handshake()
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return False
            except ssl.SSLError as error:
                raise OSError(errno.EPROTO, f"TLS: {_reason(error)}") from error
            version = self._tls.version()
            if version != "TLSv1.3":
                raise OSError(errno.EPROTO, f"TLS: the peer speaks {version}, TLS 1.3 is needed")
            return True

    def recv(self, size: int, flags: int = 0, /) -> bytes:  # noqa: ARG002 - never blocks anyway
        """Return what has been decrypted; see Conduit.

        Nothing decrypted stays behind: the descriptor would not become readable for it.
        """
        parts: list[bytes] = []
        total = 0
        with self._lock:
            while total < size or self._tls.pending():
                try:
                    part = self._tls.recv(_RECORD)
                except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                    break
                except ssl.SSLError as error:
                    raise OSError(errno.EPROTO, f"TLS: {_reason(error)}") from error
                if not part:
                    return b"".join(parts)
                parts.append(part)
                total += len(part)
        if not parts:
            raise BlockingIOError
        return b"".join(parts)

    def send(self, data: bytes | bytearray | memoryview, flags: int = 0, /) -> int:  # noqa: ARG002 - never blocks anyway
        """Encrypt and send; see Conduit."""
        view = memoryview(data)
        sent = 0
        with self._lock:
            while sent < len(view):
                try:
                    sent += self._tls.send(view[sent : sent + _GATHER])
                except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                    break
                except ssl.SSLError as error:
                    raise OSError(errno.EPROTO, f"TLS: {_reason(error)}") from error
        if not sent and view.nbytes:
            raise BlockingIOError
        return sent

    def sendmsg(
        self,
        pieces: Iterable[bytes | bytearray | memoryview],
        ancillary: Iterable[Any] = (),  # noqa: ARG002 - the shape of socket.sendmsg
        flags: int = 0,
        /,
    ) -> int:
        """Encrypt and send what fits a few records; see Conduit. A repeated call gathers at least as much."""
        whole = list(pieces)
        sizes = itertools.accumulate(map(len, whole))
        enough = next((index + 1 for index, size in enumerate(sizes) if size >= _GATHER), len(whole))
        return self.send(whole[0] if enough == 1 else b"".join(whole[:enough]), flags)

    def shutdown(self, how: int, /) -> None:
        """End both directions; see Conduit."""
        # Below the session: SSLSocket.shutdown would pull it from under the other thread.
        socket.socket.shutdown(self._tls, how)

    def close(self) -> None:
        """Close the socket; see Conduit."""
        self._tls.close()


def _reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate refused: {error.verify_message}"
    return (error.reason or error.strerror or str(error)).lower().replace("_", " ")
