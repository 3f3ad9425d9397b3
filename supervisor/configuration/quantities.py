"""Kinds of configuration values with a grammar of their own: sizes, addresses, schedules, masks.

Each is a `Kind` like those of fields.py; what the words mean for a process is the host's business.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from smartipc.supervisor.configuration.fields import INVALID, Kind, shown
from smartipc.supervisor.configuration.nodes import Node, Value
from smartipc.supervisor.configuration.problems import Problems

_SIZE = re.compile(r"(\d+(?:\.\d+)?)(B|KiB|MiB|GiB)\Z")
_FACTORS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_SIZE_HINT = "write 64KiB, 512MiB, 2GiB, or bytes"


@dataclass(frozen=True, slots=True)
class Size(Kind):
    """Bytes, positive: 64KiB 512MiB 2GiB or a number."""

    def check(self, node: Node, path: str, problems: Problems) -> Any:
        """Return whole bytes."""
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
