"""The types of configuration values: each checks a node, names what is wrong, and describes itself as JSON Schema.

One definition serves decoding, the schema for editors and the reference page. Which keys exist is keys.py.
"""

from __future__ import annotations

import re
import signal
from abc import ABC, abstractmethod
from collections.abc import Mapping as AbstractMapping
from dataclasses import dataclass
from typing import Any

from smartipc.supervisor.configuration.nodes import Items, Mapping, Node, Value
from smartipc.supervisor.configuration.problems import Problems, did_you_mean

INVALID: Any = object()
"""What check returns after it has added a problem."""

_DURATION = re.compile(
    r"(?:(?P<h>\d+(?:\.\d+)?)h)?(?:(?P<m>\d+(?:\.\d+)?)m(?!s))?(?:(?P<s>\d+(?:\.\d+)?)s)?(?:(?P<ms>\d+(?:\.\d+)?)ms)?\Z"
)
_DURATION_HINT = "write 250ms, 10s, 1m30s, 2h, or seconds"


def shown(node: Node) -> str:
    """Return how a wrong value is named in a message."""
    match node:
        case Value(value=None):
            return "nothing"
        case Value(value=bool() as value):
            return "true" if value else "false"
        case Value(value=str() as text):
            return repr(text if len(text) <= 60 else text[:57] + "...")
        case Value():
            return str(node.value)
        case Items():
            return "a list"
        case Mapping():
            return "a mapping"


class Kind(ABC):
    """A type of value."""

    @abstractmethod
    def check(self, node: Node, path: str, problems: Problems) -> Any:
        """Return the decoded value, or INVALID after adding at least one problem."""

    @abstractmethod
    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema of what is accepted."""

    @abstractmethod
    def words(self) -> str:
        """Return what is expected, for messages and the reference."""

    def wrong(self, node: Node, path: str, problems: Problems, hint: str = "") -> Any:
        """Add the usual problem."""
        problems.add(node.place, path, f"expected {self.words()}, got {shown(node)}", hint)
        return INVALID


@dataclass(frozen=True, slots=True)
class Text(Kind):
    """A string; `pattern` and `form` restrict it. A number or boolean must be quoted."""

    pattern: str = ""
    form: str = "text"
    scalars: bool = False
    """Take numbers and booleans too, as they would be written (environment values)."""

    def check(self, node: Node, path: str, problems: Problems) -> Any:
        if isinstance(node, Value) and self.scalars and isinstance(node.value, (bool, int, float)):
            return str(node.value).lower() if isinstance(node.value, bool) else str(node.value)
        if not isinstance(node, Value) or not isinstance(node.value, str):
            is_scalar = isinstance(node, Value) and node.value is not None
            return self.wrong(node, path, problems, "put it in quotes" if is_scalar else "")
        if "\0" in node.value or (self.pattern and not re.fullmatch(self.pattern, node.value)):
            return self.wrong(node, path, problems)
        return node.value

    def schema(self) -> dict[str, Any]:
        kinds = ["string", "number", "boolean"] if self.scalars else "string"
        return {"type": kinds, **({"pattern": f"^(?:{self.pattern})$|\\$"} if self.pattern else {})}

    def words(self) -> str:
        return self.form


@dataclass(frozen=True, slots=True)
class Number(Kind):
    """A number, whole or not, within bounds."""

    whole: bool = False
    least: float | None = None
    above: float | None = None
    most: float | None = None
    word: str = ""
    """A word that is taken as well."""

    def check(self, node: Node, path: str, problems: Problems) -> Any:
        node = node.typed() if isinstance(node, Value) else node
        if self.word and isinstance(node, Value) and node.value == self.word:
            return self.word
        types = (int,) if self.whole else (int, float)
        if not isinstance(node, Value) or isinstance(node.value, bool) or not isinstance(node.value, types):
            return self.wrong(node, path, problems)
        value = node.value
        if (
            (self.least is not None and value < self.least)
            or (self.above is not None and value <= self.above)
            or (self.most is not None and value > self.most)
        ):
            return self.wrong(node, path, problems)
        return value

    def schema(self) -> dict[str, Any]:
        bounds = {"minimum": self.least, "exclusiveMinimum": self.above, "maximum": self.most}
        number = {"type": "integer" if self.whole else "number"}
        limits = {name: bound for name, bound in bounds.items() if bound is not None}
        return {"anyOf": [{**number, **limits}, *([{"const": self.word}] if self.word else []), _VARIABLE]}

    def words(self) -> str:
        what = "a whole number" if self.whole else "a number"
        if self.word:
            return f"{what} or {self.word!r}"
        if self.above is not None:
            return f"{what} above {self.above:g}"
        if self.least is not None and self.most is not None:
            return f"{what} from {self.least:g} to {self.most:g}"
        return f"{what} of at least {self.least:g}" if self.least is not None else what


_VARIABLE = {"type": "string", "pattern": "\\$\\{"}


@dataclass(frozen=True, slots=True)
class Duration(Kind):
    """Seconds, positive: 250ms 10s 1m30s 2h or a number."""

    def check(self, node: Node, path: str, problems: Problems) -> Any:
        node = node.typed() if isinstance(node, Value) else node
        if not isinstance(node, Value) or isinstance(node.value, bool) or node.value is None:
            return self.wrong(node, path, problems, _DURATION_HINT)
        if isinstance(node.value, str):
            match = _DURATION.match(node.value)
            if not node.value or match is None:
                return self.wrong(node, path, problems, _DURATION_HINT)
            factors = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
            seconds = sum(float(match[unit]) * factor for unit, factor in factors.items() if match[unit])
        else:
            seconds = float(node.value)
        if not 0 < seconds < 1e9:
            problems.add(node.place, path, f"a duration must be positive, got {shown(node)}", _DURATION_HINT)
            return INVALID
        return seconds

    def schema(self) -> dict[str, Any]:
        return {
            "anyOf": [
                {"type": "number", "exclusiveMinimum": 0},
                {"type": "string", "pattern": r"^(\d+(\.\d+)?(h|ms|m|s))+$|\$"},
            ]
        }

    def words(self) -> str:
        return "a duration"


@dataclass(frozen=True, slots=True)
class Boolean(Kind):
    """true or false, nothing else."""

    def check(self, node: Node, path: str, problems: Problems) -> Any:
        node = node.typed() if isinstance(node, Value) else node
        if not isinstance(node, Value) or not isinstance(node.value, bool):
            return self.wrong(node, path, problems, "only true and false are booleans")
        return node.value

    def schema(self) -> dict[str, Any]:
        return {"type": "boolean"}

    def words(self) -> str:
        return "true or false"


@dataclass(frozen=True, slots=True)
class Choice(Kind):
    """One of some words."""

    options: tuple[str, ...]

    def check(self, node: Node, path: str, problems: Problems) -> Any:
        value = node.value if isinstance(node, Value) else None
        if isinstance(value, str) and value in self.options:
            return value
        hint = did_you_mean(value, self.options) if isinstance(value, str) else ""
        return self.wrong(node, path, problems, hint)

    def schema(self) -> dict[str, Any]:
        return {"anyOf": [{"enum": list(self.options)}, _VARIABLE]}

    def words(self) -> str:
        return " or ".join(self.options)


@dataclass(frozen=True, slots=True)
class SignalName(Kind):
    """A signal by name, with or without SIG."""

    def check(self, node: Node, path: str, problems: Problems) -> Any:
        if isinstance(node, Value) and isinstance(node.value, str):
            name = node.value if node.value.startswith("SIG") else f"SIG{node.value}"
            if name in ("SIGKILL", "SIGSTOP"):
                return self.wrong(node, path, problems, "nobody can act on it; to kill soon, shorten stop.timeout")
            if name in signal.Signals.__members__:
                return name
        known = [name.removeprefix("SIG") for name in signal.Signals.__members__]
        return self.wrong(node, path, problems, did_you_mean(str(getattr(node, "value", "")), known))

    def schema(self) -> dict[str, Any]:
        return {"type": "string"}

    def words(self) -> str:
        return "a signal name such as TERM or INT"


@dataclass(frozen=True, slots=True)
class ListOf(Kind):
    """A list; `single` also takes one bare item; `least` is the fewest."""

    item: Kind
    single: bool = False
    least: int = 0

    def check(self, node: Node, path: str, problems: Problems) -> Any:
        if not isinstance(node, Items):
            if self.single and isinstance(node, Value) and node.value is not None:
                one = self.item.check(node, path, problems)
                return INVALID if one is INVALID else (one,)
            return self.wrong(node, path, problems, "write [a, b] or one item a line with `- `")
        if len(node.items) < self.least:
            problems.add(node.place, path, f"needs at least {self.least} item")
            return INVALID
        values = [self.item.check(item, f"{path}[{index}]", problems) for index, item in enumerate(node.items)]
        return INVALID if any(value is INVALID for value in values) else tuple(values)

    def schema(self) -> dict[str, Any]:
        items: dict[str, Any] = {"type": "array", "items": self.item.schema()}
        if self.least:
            items["minItems"] = self.least
        return {"anyOf": [items, self.item.schema()]} if self.single else items

    def words(self) -> str:
        return f"a list of {self.item.words()}"


@dataclass(frozen=True, slots=True)
class MapOf(Kind):
    """A mapping with free keys of a given form."""

    value: Kind
    key: str = ".+"
    key_words: str = "a name"

    def check(self, node: Node, path: str, problems: Problems) -> Any:
        if not isinstance(node, Mapping):
            return self.wrong(node, path, problems)
        found: dict[str, Any] = {}
        for name, value in node.entries.items():
            if not re.fullmatch(self.key, name):
                problems.add(node.keys[name], f"{path}.{name}", f"{name!r} is not {self.key_words}")
            found[name] = self.value.check(value, f"{path}.{name}", problems)
        return found  # also with entries that are INVALID: the later checks go on with the others

    def schema(self) -> dict[str, Any]:
        return {
            "type": "object",
            "additionalProperties": self.value.schema(),
            "propertyNames": {"pattern": f"^(?:{self.key})$"},
        }

    def words(self) -> str:
        return f"a mapping of names to {self.value.words()}"


@dataclass(frozen=True, slots=True)
class Plain(Kind):
    """Any plain data: scalars, lists, mappings."""

    def check(self, node: Node, path: str, problems: Problems) -> Any:
        match node:
            case Value():
                return node.value
            case Items():
                return [self.check(item, path, problems) for item in node.items]
            case Mapping():
                return {name: self.check(value, path, problems) for name, value in node.entries.items()}

    def schema(self) -> dict[str, Any]:
        return {}

    def words(self) -> str:
        return "any value"


@dataclass(frozen=True, slots=True)
class Field:
    """A key of a record: its kind, meaning, and default as text."""

    kind: Kind
    meaning: str
    default: str = ""


@dataclass(frozen=True, slots=True)
class Record(Kind):
    """A mapping with known keys. Returns a dict of the decoded ones."""

    fields: AbstractMapping[str, Field]
    required: tuple[str, ...] = ()
    one_of: tuple[str, ...] = ()
    """Of these, exactly one."""

    def check(self, node: Node, path: str, problems: Problems) -> Any:
        if not isinstance(node, Mapping):
            return self.wrong(node, path, problems)
        before = len(problems.found)
        found: dict[str, Any] = {}
        for name, value in node.entries.items():
            below = f"{path}.{name}" if path else name
            if name in self.fields:
                found[name] = self.fields[name].kind.check(value, below, problems)
            else:
                problems.add(node.keys[name], below, f"unknown key {name!r}", did_you_mean(name, self.fields))
        for name in self.required:
            if name not in node.entries:
                problems.add(node.place, path, f"key {name!r} is missing")
        if self.one_of and sum(name in node.entries for name in self.one_of) != 1:
            problems.add(node.place, path, f"needs exactly one of {', '.join(self.one_of)}")
        return (
            found
            if len(problems.found) == before
            else {k: v for k, v in found.items() if v is not INVALID} | {"": INVALID}
        )

    def schema(self) -> dict[str, Any]:
        properties = {
            name: {**field.kind.schema(), "description": field.meaning} for name, field in self.fields.items()
        }
        required = {"required": list(self.required)} if self.required else {}
        return {"type": "object", "additionalProperties": False, "properties": properties, **required}

    def words(self) -> str:
        return f"a mapping with {', '.join(self.fields)}"


@dataclass(frozen=True, slots=True)
class Either(Kind):
    """A short form by scalar or list, or the long form by mapping; with `by_items` the long form is a list."""

    short: Kind
    long: Kind
    by_items: bool = False

    def check(self, node: Node, path: str, problems: Problems) -> Any:
        chosen = self.long if isinstance(node, Items if self.by_items else Mapping) else self.short
        return chosen.check(node, path, problems)

    def schema(self) -> dict[str, Any]:
        return {"anyOf": [self.short.schema(), self.long.schema()]}

    def words(self) -> str:
        return f"{self.short.words()}, or {self.long.words()}"
