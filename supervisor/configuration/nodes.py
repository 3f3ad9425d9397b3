"""Read a YAML file into nodes that remember their place. First stage of the pipeline; knows no key of ours.

Strict where YAML is loose: only `true` and `false` are booleans, keys are unique strings, one document a file, no
tags, bounded aliases.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import yaml

from smartipc.supervisor.configuration.problems import Place, Problems

Scalar: TypeAlias = str | int | float | bool | None
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9_]*)\Z")
_FLOAT = re.compile(r"[-+]?([0-9][0-9_]*)?\.?[0-9]+([eE][-+]?[0-9]+)?\Z")
MAX_NODES = 100_000
"""Nodes of one file after aliases are followed: bounds alias bombs."""


@dataclass(frozen=True, slots=True)
class Value:
    """A scalar. `plain` tells that it was written without quotes, and is resolved to its type.

    `variable` tells that it was written in quotes, with a variable in it: inside { } YAML asks for the quotes, so they
    do not tell text from numbers.
    """

    place: Place
    value: Scalar
    plain: bool = True
    variable: bool = False

    def typed(self) -> Value:
        """Return it as it would be without quotes, where only a number or a boolean makes sense."""
        if self.variable and isinstance(self.value, str):
            return Value(self.place, resolve(self.value))
        return self


@dataclass(frozen=True, slots=True)
class Items:
    """A sequence."""

    place: Place
    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Mapping:
    """A mapping by key, with the places of the keys."""

    place: Place
    entries: dict[str, Node]
    keys: dict[str, Place]


Node: TypeAlias = Value | Items | Mapping


def read(path: Path, shown: str, problems: Problems) -> Mapping | None:
    """Read a file; on any error add problems, and return None if nothing usable is left."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        problems.add(Place(shown), "", f"cannot be read: {error.strerror}", "check the path")
        return None
    except UnicodeDecodeError as error:
        problems.add(Place(shown), "", f"is not UTF-8 text (byte {error.start})", "save it as UTF-8")
        return None
    return parse(text, shown, problems)


def parse(text: str, shown: str, problems: Problems) -> Mapping | None:
    """Read a text; on any error add problems, and return None if nothing usable is left."""
    try:
        documents = list(yaml.compose_all(text, Loader=yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(shown, mark.line + 1, mark.column + 1) if mark is not None else Place(shown)
        hint = (
            "indent with spaces" if "\\t" in str(error.problem) or "'\t'" in str(error.problem) else "check the syntax"
        )
        if "got '{'" in str(error.problem) and "${" in text.splitlines()[place.line - 1]:
            hint = 'inside { } and [ ], write variables in quotes: "${NAME}"'
        problems.add(place, "", f"not valid YAML: {error.problem}", hint)
        return None
    except (yaml.YAMLError, RecursionError) as error:
        first = (
            (str(error).splitlines() or ["unreadable"])[0]
            if not isinstance(error, RecursionError)
            else "nested too deep"
        )
        problems.add(Place(shown), "", f"not valid YAML: {first}", "check the syntax")
        return None
    if not documents or documents[0] is None:
        problems.add(Place(shown), "", "is empty", "a configuration needs at least `workers:`")
        return None
    if len(documents) > 1:
        mark = documents[1].start_mark
        problems.add(Place(shown, mark.line + 1, mark.column + 1), "", "holds more than one document", "remove `---`")
        return None
    root = _Converter(shown, problems).convert(documents[0], "")
    if root is not None and not isinstance(root, Mapping):
        problems.add(root.place, "", "must be a mapping", "start with `workers:`")
        return None
    return root


class _Converter:
    def __init__(self, shown: str, problems: Problems) -> None:
        self._shown = shown
        self._problems = problems
        self._count = 0
        self._open: set[int] = set()

    def convert(self, node: yaml.Node, path: str) -> Node | None:
        place = self._place(node)
        self._count += 1
        if self._count > MAX_NODES or id(node) in self._open:
            if self._count <= MAX_NODES + 1:
                self._problems.add(place, path, "aliases make it endless or too large", "write it out")
            return None
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, place, path)
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                found = [self.convert(item, f"{path}[{index}]") for index, item in enumerate(node.value)]
                return Items(place, tuple(item for item in found if item is not None))
            return self._mapping(node, place, path)
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: yaml.Node, place: Place, path: str) -> Mapping:
        entries: dict[str, Node] = {}
        keys: dict[str, Place] = {}
        for key_node, value_node in node.value:
            at = self._place(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                self._problems.add(at, path, "a key must be a plain word")
                continue
            key = key_node.value
            below = f"{path}.{key}" if path else key
            if key == "<<" and key_node.style is None:
                self._problems.add(at, path, "merge keys (<<) are not supported", "use `defaults:`")
                continue
            if key in entries or key in keys:
                self._problems.add(at, below, f"duplicate key, first at line {keys[key].line}", "remove one")
                continue
            keys[key] = at
            value = self.convert(value_node, below)
            if value is not None:
                entries[key] = value
        return Mapping(place, entries, keys)

    def _scalar(self, node: yaml.ScalarNode, place: Place, path: str) -> Value:
        if node.style is not None:
            return Value(place, node.value, plain=False)
        if (node.start_mark is not None and str(node.tag).startswith("!")) or "python/" in str(node.tag):
            self._problems.add(place, path, f"tag {node.tag} is not allowed", "remove it")
        return Value(place, resolve(node.value))

    def _place(self, node: yaml.Node) -> Place:
        return Place(self._shown, node.start_mark.line + 1, node.start_mark.column + 1)


def resolve(text: str) -> Scalar:
    """Give an unquoted scalar its type: null, true, false, decimal numbers; everything else is text."""
    match text:
        case "" | "null" | "~":
            return None
        case "true":
            return True
        case "false":
            return False
    if _INTEGER.match(text):
        return int(text.replace("_", ""))
    if _FLOAT.match(text):
        return float(text.replace("_", ""))
    return text
