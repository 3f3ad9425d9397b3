"""Addresses: what is understood, how it is written back, and what is refused with which hint."""

from __future__ import annotations

import pytest

from smartipc.ipc.address import Address, of_host, parse


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ipc://orders", Address("ipc", "orders")),
        ("ipc://a.b-c_1", Address("ipc", "a.b-c_1")),
        ("unix:///run/app.sock", Address("unix", "/run/app.sock")),
        ("unix:///run/with space/ü.sock", Address("unix", "/run/with space/ü.sock")),
        ("unix:@abstract/name", Address("unix", "@abstract/name")),
        ("unix://@abstract", Address("unix", "@abstract")),
        ("pipe://orders", Address("pipe", "orders")),
        ("pipe:///run/orders", Address("pipe", "/run/orders")),
        ("tcp://127.0.0.1:7000", Address("tcp", "127.0.0.1:7000", "127.0.0.1", 7000)),
        ("tcp://example.org:0", Address("tcp", "example.org:0", "example.org", 0)),
        ("tls://[::1]:65535", Address("tls", "[::1]:65535", "::1", 65535)),
        ("fd://3", Address("fd", "3")),
        ("fd://007", Address("fd", "7")),
    ],
)
def test_it_is_understood(text: str, expected: Address) -> None:
    assert parse(text) == expected
    assert parse(str(parse(text))) == parse(text)


@pytest.mark.parametrize(
    "text", ["unix:@a", "unix:///a", "tcp://[::1]:1", "tls://h:1", "ipc://x", "pipe://x", "fd://4"]
)
def test_it_is_written_as_it_was(text: str) -> None:
    assert str(parse(text)) == text


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "is not an address"),
        ("/run/app.sock", "is not an address"),
        ("udp://1.2.3.4:5", "there is no scheme 'udp'"),
        ("TCP://h:1", "there is no scheme 'TCP'"),
        ("ipc://", "letters, digits"),
        ("ipc://../etc", "letters, digits"),
        ("ipc://a..b", "letters, digits"),
        ("ipc://a/b", "letters, digits"),
        ("ipc://" + "x" * 101, "100 at most"),
        ("unix://relative.sock", "must be absolute"),
        ("unix:///run/", "must name a file"),
        ("unix:///run/\0x", "must name a file"),
        ("unix:@", "abstract name is not empty"),
        ("unix:@a\0b", "holds no NUL"),
        ("unix:@" + "x" * 107, "at most 107 bytes"),
        ("pipe://a/b", "letters, digits"),
        ("pipe:///x/", "must name a file"),
        ("tcp://host", "host and port are both needed"),
        ("tcp://:80", "host and port are both needed"),
        ("tcp://h/x:80", "host and port are both needed"),
        ("tcp://h:", "port '' is not a number"),
        ("tcp://h:65536", "up to 65535"),
        ("tcp://h:99999999999999999999", "up to 65535"),
        ("tcp://h:-1", "is not a number"),
        ("tcp://h:\u0663", "is not a number"),
        ("tcp://::1:80", "brackets"),
        ("tcp://[::1:80", "is written [::1]:port"),
        ("tcp://[::1]80", "is written [::1]:port"),
        ("tcp://[host]:80", "is no IPv6 address"),
        ("fd://", "is a number"),
        ("fd://-1", "is a number"),
        ("fd://stdin", "is a number"),
        ("fd://99999999", "is a number"),
    ],
)
def test_it_is_refused_with_a_hint(text: str, hint: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is checked below, brackets and all
        parse(text)
    assert hint in str(caught.value)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "local"),
    [
        ("ipc://x", True),
        ("unix:///x", True),
        ("fd://3", True),
        ("tcp://127.0.0.1:1", True),
        ("tcp://127.8.9.1:1", True),
        ("tcp://LocalHost:1", True),
        ("tls://[::1]:1", True),
        ("tcp://0.0.0.0:1", False),
        ("tcp://[::]:1", False),
        ("tcp://10.0.0.1:1", False),
        ("tls://localhost.example.org:1", False),
    ],
)
def test_whether_bytes_can_leave_the_host(text: str, local: bool) -> None:
    assert parse(text).loopback is local


def test_a_bound_host_becomes_an_address() -> None:
    assert str(of_host("tcp", "::1", 80)) == "tcp://[::1]:80"
    assert str(of_host("tls", "host", 80)) == "tls://host:80"


@pytest.mark.parametrize("wrong", [None, 3, b"unix:///a"])
def test_what_is_no_text_is_no_address(wrong: object) -> None:
    with pytest.raises(ValueError, match="is not an address: expected a text"):
        parse(wrong)  # type: ignore[arg-type]
