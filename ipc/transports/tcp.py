"""TCP, bare or under TLS 1.3. Who must show a token or a certificate is decided in trust.policy, not here."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import time

from smartipc.ipc.address import Scheme, of_host
from smartipc.ipc.errors import ConnectFailed
from smartipc.ipc.transports.base import IpcTransport, SocketListener, Stream
from smartipc.ipc.transports.tls import TlsConduit

_NOT_SENT = 128 * 1024
"""Bytes that the kernel takes before they are on their way: what is queued behind them can still be overtaken."""
_OPTIONS = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3), ("TCP_NOTSENT_LOWAT", _NOT_SENT))


class TcpTransport(IpcTransport):
    """Connect to or listen on a host and port.

    Args:
        host: name or address; IPv6 without brackets.
        port: 0 lets the kernel choose, for listening.
        tls: speak TLS 1.3 with it. None means none.
    """

    instant = False

    def __init__(self, host: str, port: int, *, tls: ssl.SSLContext | None = None) -> None:
        self.host = host
        self.port = port
        self.tls = tls

    def __repr__(self) -> str:
        return f"TcpTransport({self.host!r}, {self.port}{', tls=…' if self.tls is not None else ''})"

    @property
    def _scheme(self) -> Scheme:
        return "tls" if self.tls is not None else "tcp"

    def dial(self, timeout: float = 5.0) -> Stream:
        """Connect, and under TLS verify the server; see IpcTransport.dial. Waits for names, the network, the peer."""
        until = time.monotonic() + timeout
        address = str(of_host(self._scheme, self.host, self.port))
        try:
            sock = socket.create_connection((self.host, self.port), timeout=max(0.001, timeout))
        except OSError as error:  # gaierror and TimeoutError too
            raise ConnectFailed(address, error.strerror or str(error)) from error
        if sock.getsockname() == sock.getpeername():
            sock.close()  # the kernel may give a dialling socket the very port that it dials, where nobody listens
            raise ConnectFailed(address, "nobody listens there")
        try:
            _tune(sock)
            if self.tls is None:
                return sock
            return _shaken(TlsConduit(sock, self.tls, server_name=self.host), address, until)
        except OSError as error:
            sock.close()
            raise ConnectFailed(address, error.strerror or str(error)) from error
        except BaseException:
            sock.close()
            raise

    def listen(self, backlog: int = 512) -> SocketListener:
        """Bind and listen; see IpcTransport.listen."""
        address = str(of_host(self._scheme, self.host, self.port))
        try:
            family, kind, number, _, place = socket.getaddrinfo(
                self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            sock = socket.socket(family, kind, number)
        except OSError as error:
            raise ConnectFailed(address, error.strerror or str(error)) from error
        try:
            if os.name == "posix":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(place)
            sock.setblocking(False)
            sock.listen(backlog)
        except OSError as error:
            sock.close()
            raise ConnectFailed(address, error.strerror or str(error)) from error
        return _TcpListener(sock, str(of_host(self._scheme, self.host, sock.getsockname()[1])), self.tls)


class _TcpListener(SocketListener):
    """A listening TCP socket that begins TLS sessions, where asked to."""

    def __init__(self, sock: socket.socket, address: str, tls: ssl.SSLContext | None) -> None:
        super().__init__(sock, address)
        self._tls = tls

    def accept(self) -> Stream:
        sock = super().accept()
        assert isinstance(sock, socket.socket)
        try:
            _tune(sock)
            return sock if self._tls is None else TlsConduit(sock, self._tls, server_name=None)
        except OSError:
            sock.close()
            raise


def _tune(sock: socket.socket) -> None:
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # A host that vanished without a word is noticed by the kernel, in about a minute.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _OPTIONS:
        if hasattr(socket, option):
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _shaken(conduit: TlsConduit, address: str, until: float) -> TlsConduit:
    """Finish the handshake of a connecting conduit by `until`."""
    poller = select.poll()
    poller.register(conduit.fileno(), select.POLLIN)
    try:
        while not (done := conduit.handshake()) and poller.poll(max(0.0, until - time.monotonic()) * 1000):
            pass
    except BaseException:
        conduit.close()
        raise
    if not done:
        conduit.close()
        raise ConnectFailed(address, "no TLS handshake in time")
    return conduit
