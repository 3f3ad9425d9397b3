"""Replace ${NAME}, ${NAME:-default} and $$ in scalars. Any other $ stays."""

from __future__ import annotations

import re
from collections.abc import Mapping as Environment

from smartipc.supervisor.configuration.nodes import Items, Mapping, Node, Value, resolve
from smartipc.supervisor.configuration.problems import Problems

_PATTERN = re.compile(r"\$\$|\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-((?:[^{}])*))?\}")


def interpolate(node: Node, environ: Environment[str, str], problems: Problems, path: str = "") -> Node:
    """Return the node with every scalar interpolated; an unquoted one is given its type anew."""
    match node:
        case Value():
            return _scalar(node, environ, problems, path)
        case Items():
            return Items(
                node.place,
                tuple(interpolate(item, environ, problems, f"{path}[{i}]") for i, item in enumerate(node.items)),
            )
        case Mapping():
            entries = {
                key: interpolate(value, environ, problems, f"{path}.{key}" if path else key)
                for key, value in node.entries.items()
            }
            return Mapping(node.place, entries, node.keys)


def _scalar(node: Value, environ: Environment[str, str], problems: Problems, path: str) -> Value:
    if not isinstance(node.value, str) or "$" not in node.value:
        return node

    def replace(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        name, default = match[1], match[2]
        value = environ.get(name)
        if value:
            return value
        if default is not None:
            return default
        if value is None:
            problems.add(node.place, path, f"variable {name} is not set", f"set it, or write ${{{name}:-default}}")
        return ""

    text = _PATTERN.sub(replace, node.value)
    if text == node.value or not node.plain:
        return Value(node.place, text, node.plain, variable=text != node.value)
    return Value(node.place, resolve(text), plain=True)
