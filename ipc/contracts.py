"""Contracts: frozen values that both ends of a call or topic share.

A contract names an address and its types. Nothing here encodes, sends or registers; see wire.codec and the handles.
"""

from __future__ import annotations

import math
import re
from dataclasses import KW_ONLY, dataclass
from typing import Generic, TypeVar

from smartipc.ipc.errors import LocalProtocolError

Request = TypeVar("Request")
Reply = TypeVar("Reply")
Payload = TypeVar("Payload")
Item = TypeVar("Item")
Send = TypeVar("Send")
Receive = TypeVar("Receive")

DEFAULT_TIMEOUT = 30.0
"""Seconds that a request may take where nothing else is said."""

_ADDRESS = re.compile(r"[A-Za-z_$][A-Za-z0-9_-]*(\.[A-Za-z0-9_][A-Za-z0-9_-]*)*\Z")
_TOPIC = re.compile(r"[^\s.*>]+(\.[^\s.*>]+)*\Z")
MAX_NAME = 256
"""Longest address or topic, in characters; also enforced on the wire."""


def _check_name(kind: str, name: object, pattern: re.Pattern[str]) -> None:
    if not isinstance(name, str):
        raise TypeError(f"{kind} name must be a str, not {type(name).__name__}")
    if len(name) > MAX_NAME or not pattern.match(name):
        raise ValueError(f"{name!r} is not a valid {kind} name: dot-separated tokens, at most {MAX_NAME} characters")


def _check_errors(name: str, errors: object) -> None:
    if not isinstance(errors, (tuple, list)) or not all(
        isinstance(one, type) and issubclass(one, BaseException) for one in errors
    ):
        raise TypeError(f"errors of {name} must be a tuple of exception types, got {errors!r}")


@dataclass(frozen=True, slots=True)
class Method(Generic[Request, Reply]):
    """Declare a request/reply method.

    Args:
        name: the full address, "worker.method"; the method part may hold dots.
        request: type of the payload: a msgspec Struct, a dataclass or any annotated type.
        reply: type of the result; `None` for a method that returns nothing.
        timeout: seconds a request may take unless the caller says otherwise.
        idempotent: whether a lost call may be retried on another instance.
        errors: exception types that the handler may raise and the caller gets back as themselves.

    Raises:
        ValueError: the name is malformed, or the timeout not positive and finite.
        TypeError: the name is no text, or `errors` are not exception types.
    """

    name: str
    request: type[Request]
    reply: type[Reply]
    _: KW_ONLY
    timeout: float = DEFAULT_TIMEOUT
    idempotent: bool = False
    errors: tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        _check_name("method", self.name, _ADDRESS)
        _check_errors(self.name, self.errors)
        if not 0 < self.timeout < math.inf:
            raise ValueError(f"timeout of {self.name} must be positive seconds, got {self.timeout!r}")


@dataclass(frozen=True, slots=True)
class Stream(Generic[Request, Item]):
    """Declare a stream: one request, then any number of items from the handler, as fast as the reader consumes.

    Args:
        name: the full address, "worker.stream".
        request: type of the payload that opens it; `None` for nothing.
        item: type of each item.
        errors: exception types that the handler may raise and the reader gets back as themselves.

    Raises:
        ValueError: the name is malformed.
        TypeError: the name is no text, or `errors` are not exception types.
    """

    name: str
    request: type[Request]
    item: type[Item]
    _: KW_ONLY
    errors: tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        _check_name("stream", self.name, _ADDRESS)
        _check_errors(self.name, self.errors)


@dataclass(frozen=True, slots=True)
class Channel(Generic[Send, Receive]):
    """Declare a channel: both sides send and receive items, each direction with its own flow control and end.

    Args:
        name: the full address, "worker.channel".
        send: type of what the opener sends; the handler receives it.
        receive: type of what the opener receives; the handler sends it.
        errors: exception types that the handler may raise and the opener gets back as themselves.

    Raises:
        ValueError: the name is malformed.
        TypeError: the name is no text, or `errors` are not exception types.
    """

    name: str
    send: type[Send]
    receive: type[Receive]
    _: KW_ONLY
    errors: tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        _check_name("channel", self.name, _ADDRESS)
        _check_errors(self.name, self.errors)


@dataclass(frozen=True, slots=True)
class Topic(Generic[Payload]):
    """Declare a topic: dot-separated tokens without wildcards, and the type of its messages.

    Raises:
        ValueError: the name is malformed, or in the reserved namespace "$sys.".
    """

    name: str
    payload: type[Payload]

    def __post_init__(self) -> None:
        _check_name("topic", self.name, _TOPIC)
        _check_own(self.name)


_VERBS = {
    Method: "request, notify, broadcast or map",
    Stream: "open_stream",
    Channel: "open_channel",
    Topic: "publish or subscribe",
}


def misuse(given: object, wanted: str) -> str:
    """Say what is wrong with something that was given in the place of a contract or a name.

    Args:
        given: what it was.
        wanted: what the place takes, for people.
    """
    verbs = _VERBS.get(type(given))
    if verbs is not None:
        assert isinstance(given, (Method, Stream, Channel, Topic))
        return f"{given.name} is a {type(given).__name__}, and goes with {verbs}; expected {wanted}"
    return f"expected {wanted}, got {given!r}"


def check_count(name: str, count: object) -> None:
    """Look at a number of things that the user gave.

    Raises:
        LocalProtocolError: it is no whole number, or below 1.
    """
    if not isinstance(count, int) or count < 1:
        raise LocalProtocolError(f"{name} must be a whole number of at least 1, got {count!r}")


def _check_own(topic: str) -> None:
    if topic.partition(".")[0] == "$sys":
        raise ValueError("topics under $sys. belong to the library")


def check_pattern(pattern: str) -> str:
    """Return `pattern` if it is a valid topic pattern: `*` is one token, `>` is one or more at the end.

    Raises:
        ValueError: an empty token, a wildcard inside a token, `>` before the end, too long, or in the reserved
            namespace "$sys.".
    """
    _check_own(pattern)
    tokens = pattern.split(".")
    for index, token in enumerate(tokens):
        wild = token in ("*", ">")
        if not token or (not wild and not _TOPIC.match(token)) or (token == ">" and index != len(tokens) - 1):
            raise ValueError(f"{pattern!r} is not a valid topic pattern: '*' is one token, '>' the rest at the end")
    if len(pattern) > MAX_NAME:
        raise ValueError(f"topic pattern longer than {MAX_NAME} characters")
    return pattern
