"""Addresses, parsed once: what a text names, and the errors for texts that name nothing. No I/O, no environment.

ipc://name               the platform's own transport, in a private directory of the user
unix:///path/to/socket   a Unix socket by path
unix:@name               a Unix socket in Linux's abstract namespace
pipe://name-or-/path     a pair of FIFOs; a named pipe on Windows
tcp://host:port          TCP; IPv6 hosts in brackets
tls://host:port          TLS 1.3 over TCP
fd://N                   an inherited, connected socket
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Literal

Scheme = Literal["ipc", "unix", "pipe", "tcp", "tls", "fd"]
SCHEMES: tuple[Scheme, ...] = ("ipc", "unix", "pipe", "tcp", "tls", "fd")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")
_FORMS = {
    "ipc": "ipc://name",
    "unix": "unix:///path/to/socket or unix:@name",
    "pipe": "pipe://name or pipe:///path/to/fifo",
    "tcp": "tcp://host:port",
    "tls": "tls://host:port",
    "fd": "fd://3",
}


@dataclass(frozen=True, slots=True)
class Address:
    """A parsed address: the scheme and what it means to that scheme.

    `target` is a path, a name, "@name", "host:port" or a number; `host` and `port` are set for tcp and tls only.
    """

    scheme: Scheme
    target: str
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        if self.scheme == "unix" and self.target.startswith("@"):
            return f"unix:{self.target}"
        return f"{self.scheme}://{self.target}"

    @property
    def loopback(self) -> bool:
        """Whether no byte can leave this host: every scheme but tcp and tls to another host than this one."""
        if self.scheme not in ("tcp", "tls"):
            return True
        if self.host.lower() == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.partition("%")[0]).is_loopback
        except ValueError:
            return False


def parse(text: str) -> Address:
    """Parse an address of any scheme.

    Raises:
        ValueError: it names nothing; the sentence says what was expected.
    """
    if not isinstance(text, str):
        raise ValueError(f"{text!r} is not an address: expected a text such as unix:///run/app.sock")  # noqa: TRY004 - one error for whatever is wrong with an address
    scheme, mark, target = text.partition("://")
    if not mark and text.startswith("unix:@"):
        scheme, target = "unix", text.removeprefix("unix:")
    elif not mark:
        raise ValueError(f"{text!r} is not an address such as unix:///run/app.sock or tcp://127.0.0.1:7000")
    match scheme:
        case "ipc":
            return Address("ipc", _name(text, scheme, target))
        case "unix":
            return Address("unix", _unix(text, target))
        case "pipe":
            return Address(
                "pipe", _path(text, scheme, target) if target.startswith("/") else _name(text, scheme, target)
            )
        case "tcp" | "tls":
            return of_host("tls" if scheme == "tls" else "tcp", *_host_and_port(text, scheme, target))
        case "fd":
            if not (target.isascii() and target.isdecimal() and len(target) <= 7):
                raise _wrong(text, scheme, "a descriptor is a number")
            return Address("fd", str(int(target)))
        case _:
            raise ValueError(f"{text!r}: there is no scheme {scheme!r}; use one of {', '.join(SCHEMES)}")


def of_host(scheme: Scheme, host: str, port: int) -> Address:
    """Return the address of a host, which may be an IPv6 one, and a port."""
    shown = f"[{host}]" if ":" in host else host
    return Address(scheme, f"{shown}:{port}", host, port)


def _unix(text: str, target: str) -> str:
    if not target.startswith("@"):
        return _path(text, "unix", target)
    if target == "@" or "\0" in target:
        raise _wrong(text, "unix", "an abstract name is not empty and holds no NUL")
    if len(target.encode(errors="surrogateescape")) > 107:
        raise _wrong(text, "unix", "an abstract name has at most 107 bytes")
    return target


def _path(text: str, scheme: str, target: str) -> str:
    if not target.startswith("/"):
        raise _wrong(text, scheme, "the path must be absolute")
    if "\0" in target or target.endswith("/"):
        raise _wrong(text, scheme, "the path must name a file")
    return target


def _name(text: str, scheme: str, target: str) -> str:
    if not _NAME.match(target) or ".." in target:
        raise _wrong(text, scheme, "a name has letters, digits, dots, dashes and underscores, 100 at most")
    return target


def _host_and_port(text: str, scheme: str, target: str) -> tuple[str, int]:
    if target.startswith("["):
        host, bracket, rest = target[1:].partition("]")
        if not bracket or not rest.startswith(":"):
            raise _wrong(text, scheme, "an IPv6 host is written [::1]:port")
        number = rest[1:]
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise _wrong(text, scheme, f"{host!r} is no IPv6 address") from None
    else:
        host, _, number = target.rpartition(":")
        if ":" in host:
            raise _wrong(text, scheme, "an IPv6 host goes in brackets: [::1]:port")
        if not host or any(one.isspace() or one in "/@\0" for one in host):
            raise _wrong(text, scheme, "host and port are both needed; 0.0.0.0 or [::] means every interface")
    if not (number.isascii() and number.isdecimal()) or int(number[:6]) > 65535:
        raise _wrong(text, scheme, f"port {number!r} is not a number up to 65535")
    return host, int(number)


def _wrong(text: str, scheme: str, why: str) -> ValueError:
    return ValueError(f"{text!r}: {why}; expected {_FORMS[scheme]}")
