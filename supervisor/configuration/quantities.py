"""Kinds of configuration values with a grammar of their own: sizes, addresses, schedules, masks.

Each is a `Kind` like those of fields.py; what the words mean for a process is the host's business.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from cronsim import CronSim, CronSimError

from smartipc.supervisor.configuration.fields import INVALID, Kind, ListOf, Text, shown
from smartipc.supervisor.configuration.nodes import Items, Node, Value
from smartipc.supervisor.configuration.problems import Problems

_SIZE = re.compile(r"(\d+(?:\.\d+)?)(B|KiB|MiB|GiB)\Z")
_FACTORS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_SIZE_HINT = "write 64KiB, 512MiB, 2GiB, or bytes"


@dataclass(frozen=True, slots=True)
class Size(Kind):
    """Bytes, positive: 64KiB 512MiB 2GiB or a number."""

    def check(self, node: Node, path: str, problems: Problems) -> Any:
        """Return whole bytes."""
        node = node.typed() if isinstance(node, Value) else node
        if not isinstance(node, Value) or isinstance(node.value, (bool, float)) or node.value is None:
            return self.wrong(node, path, problems, _SIZE_HINT)
        if isinstance(node.value, str):
            match = _SIZE.match(node.value)
            if match is None:
                return self.wrong(node, path, problems, _SIZE_HINT)
            found = int(float(match[1]) * _FACTORS[match[2]])
        else:
            found = int(node.value)
        if found <= 0:
            problems.add(node.place, path, f"a size must be positive, got {shown(node)}", _SIZE_HINT)
            return INVALID
        return found

    def schema(self) -> dict[str, Any]:
        """Return a number or a text with a unit."""
        text = {"type": "string", "pattern": r"^\d+(\.\d+)?(B|KiB|MiB|GiB)$|\$"}
        return {"anyOf": [{"type": "integer", "exclusiveMinimum": 0}, text]}

    def words(self) -> str:
        """Say what is expected."""
        return "a size"


_RATE = re.compile(r"(\d+(?:\.\d+)?)/(s|m|h)\Z")
_RATE_HINT = "write 1000/s, 30/m or 5/h"


@dataclass(frozen=True, slots=True)
class Rate(Kind):
    """How many in a time, positive: 1000/s 30/m 5/h."""

    def check(self, node: Node, path: str, problems: Problems) -> Any:
        """Return how many a second."""
        match = _RATE.match(node.value) if isinstance(node, Value) and isinstance(node.value, str) else None
        if match is None:
            return self.wrong(node, path, problems, _RATE_HINT)
        found = float(match[1]) / {"s": 1.0, "m": 60.0, "h": 3600.0}[match[2]]
        if found <= 0:
            problems.add(node.place, path, f"a rate must be positive, got {shown(node)}", _RATE_HINT)
            return INVALID
        return found

    def schema(self) -> dict[str, Any]:
        """Return a text with a unit."""
        return {"type": "string", "pattern": r"^\d+(\.\d+)?/(s|m|h)$|\$"}

    def words(self) -> str:
        """Say what is expected."""
        return "a rate"


@dataclass(frozen=True, slots=True)
class Pattern(Kind):
    """A regular expression."""

    def check(self, node: Node, path: str, problems: Problems) -> Any:
        """Return its text."""
        if not isinstance(node, Value) or not isinstance(node.value, str) or not node.value:
            return self.wrong(node, path, problems)
        try:
            re.compile(node.value)
        except re.error as error:
            problems.add(node.place, path, f"{node.value!r} is not a regular expression: {error}")
            return INVALID
        return node.value

    def schema(self) -> dict[str, Any]:
        """Return a string."""
        return {"type": "string", "minLength": 1}

    def words(self) -> str:
        """Say what is expected."""
        return "a regular expression"


@dataclass(frozen=True, slots=True)
class Url(Kind):
    """An http:// URL."""

    def check(self, node: Node, path: str, problems: Problems) -> Any:
        """Return its text."""
        text = node.value if isinstance(node, Value) else None
        if not isinstance(text, str) or not text.isascii() or any(c.isspace() for c in text):
            return self.wrong(node, path, problems)
        try:
            parts = urlsplit(text)
            sound = parts.scheme == "http" and bool(parts.hostname) and parts.port != 0
        except ValueError:
            sound = False
        return text if sound else self.wrong(node, path, problems, "write http://127.0.0.1:8000/health")

    def schema(self) -> dict[str, Any]:
        """Return a string with that scheme."""
        return {"type": "string", "pattern": r"^http://|\$"}

    def words(self) -> str:
        """Say what is expected."""
        return "an http:// URL"


@dataclass(frozen=True, slots=True)
class HostPort(Kind):
    """host:port, with brackets around an IPv6 address; `least` is the lowest port, 0 where one may be chosen for us."""

    least: int = 1

    def check(self, node: Node, path: str, problems: Problems) -> Any:
        """Return (host, port)."""
        text = node.value if isinstance(node, Value) else None
        found = split_host_port(text, least=self.least) if isinstance(text, str) else None
        return found if found is not None else self.wrong(node, path, problems, "write 127.0.0.1:8000")

    def schema(self) -> dict[str, Any]:
        """Return a string with a port."""
        return {"type": "string", "pattern": r"^.+:\d+$|\$"}

    def words(self) -> str:
        """Say what is expected."""
        return "host:port"


@dataclass(frozen=True, slots=True)
class ListenAddress(Kind):
    """Where a socket listens: tcp://host:port, unix:///path or unix:@name."""

    def check(self, node: Node, path: str, problems: Problems) -> Any:
        """Return its text."""
        text = node.value if isinstance(node, Value) else None
        if isinstance(text, str):
            if text.startswith("tcp://") and split_host_port(text.removeprefix("tcp://"), least=0) is not None:
                return text
            if (text.startswith("unix:///") and len(text) > 8) or (text.startswith("unix:@") and len(text) > 6):
                return text
        return self.wrong(node, path, problems, "write tcp://127.0.0.1:8000, unix:///run/web.sock or unix:@web")

    def schema(self) -> dict[str, Any]:
        """Return a string with one of the schemes."""
        return {"type": "string", "pattern": r"^(tcp://|unix:///|unix:@)|\$"}

    def words(self) -> str:
        """Say what is expected."""
        return "an address to listen at"


@dataclass(frozen=True, slots=True)
class Mask(Kind):
    """A file mode mask in octal, quoted: "022"."""

    def check(self, node: Node, path: str, problems: Problems) -> Any:
        """Return it as a number."""
        text = node.value if isinstance(node, Value) else None
        if not isinstance(text, str) or not re.fullmatch(r"0?[0-7]{3}", text):
            return self.wrong(node, path, problems, 'put it in quotes: "022"')
        return int(text, 8)

    def schema(self) -> dict[str, Any]:
        """Return a string of octal digits."""
        return {"type": "string", "pattern": r"^0?[0-7]{3}$|\$"}

    def words(self) -> str:
        """Say what is expected."""
        return "an octal mask such as '022'"


@dataclass(frozen=True, slots=True)
class Command(Kind):
    """One command as a list of words, or a list of such lists; always returned as the latter."""

    def check(self, node: Node, path: str, problems: Problems) -> Any:
        """Return a tuple of argv tuples."""
        argv = ListOf(Text(), least=1)
        if isinstance(node, Items) and node.items and all(isinstance(item, Items) for item in node.items):
            return ListOf(argv).check(node, path, problems)
        if isinstance(node, Items) and not node.items:
            return ()
        one = argv.check(node, path, problems)
        return INVALID if one is INVALID else (one,)

    def schema(self) -> dict[str, Any]:
        """Return either form."""
        argv = {"type": "array", "items": {"type": "string"}}
        return {"anyOf": [argv, {"type": "array", "items": argv}]}

    def words(self) -> str:
        """Say what is expected."""
        return "a command as a list, or a list of such"


@dataclass(frozen=True, slots=True)
class CronLine(Kind):
    """Five fields of cron, or six with seconds first, as cronsim reads them (Debian's cron is its model)."""

    def check(self, node: Node, path: str, problems: Problems) -> Any:
        """Return its text."""
        text = node.value if isinstance(node, Value) else None
        if not isinstance(text, str):
            return self.wrong(node, path, problems, "put it in quotes")
        try:
            CronSim(text, datetime(2000, 1, 1))  # noqa: DTZ001 - only the form matters
        except CronSimError as error:
            problems.add(node.place, path, f"{text!r} is not a cron line: {error}", 'such as "*/5 * * * *"')
            return INVALID
        return text

    def schema(self) -> dict[str, Any]:
        """Return a string of fields."""
        return {"type": "string", "pattern": r"\S+(\s+\S+){4}|\$"}

    def words(self) -> str:
        """Say what is expected."""
        return "a cron line such as '*/5 * * * *'"


def split_host_port(text: str, *, least: int = 1) -> tuple[str, int] | None:
    """Return ("127.0.0.1", 80) for "127.0.0.1:80" and ("::1", 80) for "[::1]:80", or None."""
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        return None
    if not host or not re.fullmatch(r"[0-9]{1,5}", port) or not least <= int(port) <= 65535:
        return None
    return host, int(port)
