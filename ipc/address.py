"""Addresses, parsed once. This version knows unix:// paths and fd:// numbers; the others join with their transports."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Address:
    """A parsed address: the scheme and what it means to that scheme."""

    scheme: str
    target: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.target}"


def parse(text: str) -> Address:
    """Parse "unix:///path" or "fd://3".

    Raises:
        ValueError: another scheme, or nothing behind it.
    """
    scheme, mark, target = text.partition("://")
    if not mark or not target:
        raise ValueError(f"{text!r} is not an address such as unix:///run/app.sock")
    if scheme == "unix":
        if not target.startswith("/"):
            raise ValueError(f"{text!r}: a unix address needs an absolute path")
    elif scheme == "fd":
        if not target.isdecimal():
            raise ValueError(f"{text!r}: an fd address needs a number")
    else:
        raise ValueError(f"{text!r}: scheme {scheme!r} is not supported yet; use unix:// or fd://")
    return Address(scheme, target)
