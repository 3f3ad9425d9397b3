"""Where one may listen and connect, and with what."""

from __future__ import annotations

import pytest
from certificates import client_context, server_context

from smartipc.ipc.address import parse
from smartipc.ipc.errors import AuthenticationFailed, ConnectFailed
from smartipc.ipc.trust.entrance import listen
from smartipc.ipc.trust.policy import check_connecting, check_listening


@pytest.mark.parametrize(
    ("address", "token", "tls", "says"),
    [
        ("unix:///x", None, False, ""),
        ("unix:@x", None, False, ""),
        ("ipc://x", None, False, ""),
        ("pipe://x", None, False, ""),
        ("fd://3", None, False, ""),
        ("tcp://127.0.0.1:0", "t", False, ""),
        ("tcp://[::1]:0", b"t", False, ""),
        ("tcp://localhost:0", "t", True, ""),
        ("tcp://0.0.0.0:0", "t", True, ""),
        ("tls://0.0.0.0:0", "t", True, ""),
        ("tcp://127.0.0.1:0", None, False, "give a token"),
        ("tcp://127.0.0.1:0", "", False, "give a token"),
        ("tcp://127.0.0.1:0", None, True, "give a token"),
        ("tls://127.0.0.1:0", None, True, "give a token"),
        ("tls://127.0.0.1:0", "t", False, "SSLContext"),
        ("tcp://0.0.0.0:0", "t", False, "off loopback"),
        ("tcp://[::]:0", "t", False, "off loopback"),
        ("tcp://192.0.2.1:0", "t", False, "off loopback"),
    ],
)
def test_listening(address: str, token: str | bytes | None, tls: bool, says: str) -> None:
    context = server_context() if tls else None
    if not says:
        check_listening(parse(address), token=token, tls=context)
        return
    with pytest.raises(ConnectFailed) as caught:
        check_listening(parse(address), token=token, tls=context)
    assert says in str(caught.value)
    with pytest.raises(ConnectFailed):
        listen(address, token=token, tls=context)


@pytest.mark.parametrize(
    ("address", "token", "tls", "error"),
    [
        ("unix:///x", None, False, None),
        ("tcp://127.0.0.1:1", "t", False, None),
        ("tcp://192.0.2.1:1", "t", True, None),
        ("tls://192.0.2.1:1", "t", False, None),
        ("tcp://127.0.0.1:1", None, False, AuthenticationFailed),
        ("tls://127.0.0.1:1", None, True, AuthenticationFailed),
        ("tcp://192.0.2.1:1", "t", False, ConnectFailed),
    ],
)
def test_connecting(address: str, token: str | None, tls: bool, error: type[Exception] | None) -> None:
    context = client_context() if tls else None
    if error is None:
        check_connecting(parse(address), token=token, tls=context)
        return
    with pytest.raises(error):
        check_connecting(parse(address), token=token, tls=context)
