"""What the annotations of a user's function say, and whether they contradict the contract that it is registered for.

Decides only. A contradiction is what no value can satisfy; whatever cannot be told, or is not written, passes. Counting
parameters is in flows.py.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any

import msgspec

from smartipc.ipc.contracts import Channel, Method, Stream, Topic
from smartipc.ipc.errors import LocalProtocolError

UNKNOWN: Any = Any
"""What is not annotated, or cannot be resolved where it is read."""
_WAITED_FOR = (collections.abc.Awaitable, collections.abc.Coroutine)
_ITERATED = (collections.abc.Iterable, collections.abc.AsyncIterable)
_NUMBERS = {int: (float, complex), float: (complex,), bool: (int, float, complex)}
"""What PEP 484 lets stand for what."""
_PLAIN: tuple[tuple[tuple[type, ...], str], ...] = (
    ((str,), "text"),
    ((bytes, bytearray, memoryview), "bytes"),
    ((list, tuple, set, frozenset), "array"),
    ((bool,), "bool"),
    ((int,), "integer"),
    ((float,), "float"),
    ((type(None),), "nothing"),
)


def parameters_of(function: Callable[..., Any]) -> list[Any]:
    """Return the types of a function's parameters in order, without `self`."""
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # a builtin without a signature
        return []
    hints = _hints(function)
    return [hints.get(name, UNKNOWN) for name in names]


def check(
    contract: Method[Any, Any] | Stream[Any, Any] | Channel[Any, Any] | Topic[Any],
    function: Callable[..., Any],
    place: str,
) -> None:
    """Compare a function with its contract.

    Args:
        contract: what it is registered for.
        function: the user's; what is not annotated passes.
        place: of the function, for people.

    Raises:
        LocalProtocolError: a type says the opposite of the contract's; both are named.
    """
    parameters, returned = parameters_of(function), _hints(function).get("return", UNKNOWN)
    first = parameters[0] if parameters else UNKNOWN
    if isinstance(contract, Channel):
        _check_channel(contract, first, place)
        return
    what = "payload" if isinstance(contract, Topic) else "request"
    wanted = contract.payload if isinstance(contract, Topic) else contract.request
    if not _may_be(wanted, first):
        raise _contradiction(contract.name, what, wanted, place, f"takes {_name(first)}")
    if isinstance(contract, Method):
        result = _within(returned, _WAITED_FOR, -1)
        if not _may_be(result, contract.reply, encoded=True):
            raise _contradiction(contract.name, "reply", contract.reply, place, f"returns {_name(result)}")
    elif isinstance(contract, Stream):
        item = _within(_within(returned, _WAITED_FOR, -1), _ITERATED, 0)
        if not _may_be(item, contract.item, encoded=True):
            raise _contradiction(contract.name, "item", contract.item, place, f"yields {_name(item)}")


def _check_channel(contract: Channel[Any, Any], given: Any, place: str) -> None:
    """A handler's channel is the opener's, the other way round: it sends what the opener receives."""
    arguments = typing.get_args(given)
    if len(arguments) != 2:
        return
    sends, receives = arguments
    if not _may_be(sends, contract.receive, encoded=True):
        raise _contradiction(contract.name, "opener's receive", contract.receive, place, f"sends {_name(sends)}")
    if not _may_be(contract.send, receives):
        raise _contradiction(contract.name, "opener's send", contract.send, place, f"receives {_name(receives)}")


def _contradiction(name: str, what: str, wanted: Any, place: str, does: str) -> LocalProtocolError:
    return LocalProtocolError(f"the {what} of {name} is {_name(wanted)}, but its handler {place} {does}")


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Return what is annotated and can be resolved, each by itself: one name that is unknown here hides no other."""
    plain = inspect.unwrap(function)
    if not hasattr(plain, "__annotations__") and callable(plain):
        plain = getattr(plain, "__call__", plain)  # noqa: B004 - an object whose class is callable
    try:
        written = dict(getattr(plain, "__annotations__", {}))
    except NameError:  # evaluated when asked for, from Python 3.14 on
        return {}
    names = getattr(plain, "__globals__", {})
    found = {}
    for name, annotation in written.items():
        one = types.SimpleNamespace(__annotations__={name: annotation})
        try:
            found.update(typing.get_type_hints(one, names))
        except Exception:  # noqa: S112 - an annotation is any expression of the user's; it says nothing then
            continue
    return found


def _within(given: Any, kinds: tuple[type, ...], index: int) -> Any:
    """Return the argument of a generic of these kinds, such as the item of an AsyncIterator; else what was given."""
    origin, arguments = typing.get_origin(given), typing.get_args(given)
    return arguments[index] if isinstance(origin, type) and arguments and issubclass(origin, kinds) else given


def _may_be(given: Any, wanted: Any, *, encoded: bool = False) -> bool:
    """Tell whether some value of one type can stand where the other is expected.

    Args:
        given: what comes.
        wanted: what it is taken for.
        encoded: it is sent, so all that matters is what it looks like on the wire: a dict may stand for a Struct.
    """
    givens, wanteds = _members(given), _members(wanted)
    if UNKNOWN in givens or UNKNOWN in wanteds:
        return True
    return any(_one_may_be(a, b, encoded) for a in givens for b in wanteds)


def _members(kind: Any) -> list[Any]:
    """Return the members of a union, without the wrappers that a checker looks through."""
    if kind is None:
        return [type(None)]
    if isinstance(kind, typing.NewType):
        return _members(kind.__supertype__)
    if isinstance(kind, typing.TypeVar) or kind in (Any, object, typing.NoReturn, typing.Never):
        return [UNKNOWN]
    origin = typing.get_origin(kind)
    if origin is typing.Annotated:
        return _members(typing.get_args(kind)[0])
    if origin in (typing.Union, types.UnionType):
        return [one for member in typing.get_args(kind) for one in _members(member)]
    if origin is typing.Literal:
        return [type(value) for value in typing.get_args(kind)]
    if typing.is_typeddict(kind):
        return [dict]
    return [kind] if isinstance(origin or kind, type) else [UNKNOWN]


def _one_may_be(given: Any, wanted: Any, encoded: bool) -> bool:
    a, b = typing.get_origin(given) or given, typing.get_origin(wanted) or wanted
    try:
        alike = issubclass(a, b) or b in _NUMBERS.get(a, ())
    except TypeError:  # a protocol that is not to be asked at run time
        return True
    if not alike:
        return encoded and _looks_alike(a, b)
    if a is not b:
        return True
    left, right = typing.get_args(given), typing.get_args(wanted)
    if len(left) != len(right) or Ellipsis in (*left, *right):
        return True
    return all(_may_be(x, y, encoded=encoded) for x, y in zip(left, right, strict=True))


def _looks_alike(a: type, b: type) -> bool:
    """Tell whether values of one type may read as the other's on the wire; of types that nobody knows they may."""
    if _is_record(a) and _is_record(b):
        return False  # neither is the other's kind
    one, other = _looks(a), _looks(b)
    return one == other or (not one and b is not type(None)) or (not other and a is not type(None))


def _is_record(kind: type) -> bool:
    return issubclass(kind, msgspec.Struct) or dataclasses.is_dataclass(kind)


def _looks(kind: type) -> str:
    """Return what values of a type are on the wire, "" if that is the type's own business."""
    if issubclass(kind, msgspec.Struct) and kind.__struct_config__.array_like:
        return "array"
    if _is_record(kind) or issubclass(kind, collections.abc.Mapping):
        return "map"
    for plain, look in _PLAIN:
        if issubclass(kind, plain):
            return look
    return ""


def _name(kind: Any) -> str:
    return inspect.formatannotation(kind) if kind is not type(None) else "None"
