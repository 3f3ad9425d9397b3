"""What an address demands before anybody listens or connects there. Rules only."""

from __future__ import annotations

import ssl

from smartipc.ipc.address import Address
from smartipc.ipc.errors import AuthenticationFailed, ConnectFailed


def check_listening(address: Address, *, token: str | bytes | None, tls: ssl.SSLContext | None) -> None:
    """Refuse to listen where anybody could come in, or read along.

    Raises:
        ConnectFailed: TCP without a token, TCP off loopback without TLS, or tls:// without a context.
    """
    if address.scheme not in ("tcp", "tls"):
        return
    if address.scheme == "tls" and tls is None:
        raise ConnectFailed(str(address), "refusing to listen: tls:// needs tls=, an ssl.SSLContext with a certificate")
    if not token:
        raise ConnectFailed(
            str(address), "refusing to listen: every process of every user can reach TCP; give a token="
        )
    if tls is None and not address.loopback:
        raise ConnectFailed(
            str(address),
            "refusing to listen: off loopback the network could read and change everything; give tls=, "
            "an ssl.SSLContext with a certificate, or listen on 127.0.0.1",
        )


def check_connecting(address: Address, *, token: str | bytes | None, tls: ssl.SSLContext | None) -> None:
    """Refuse to connect where whoever listens would be believed, or the network could read along.

    Raises:
        AuthenticationFailed: TCP without a token.
        ConnectFailed: TCP off loopback without TLS.
    """
    if address.scheme not in ("tcp", "tls"):
        return
    if not token:
        raise AuthenticationFailed(f"{address} needs a token: anybody may listen on a TCP port")
    if address.scheme == "tcp" and tls is None and not address.loopback:
        raise ConnectFailed(str(address), "refusing to connect off loopback without TLS; use tls:// or give tls=")
