"""The JSON Schema for editors and the table of keys for the reference, both from keys.py.

`python -m smartipc.supervisor.configuration.schema` prints the schema; with `reference` it prints the table.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from smartipc.supervisor.configuration import keys
from smartipc.supervisor.configuration.fields import Either, Kind, MapOf, Record


def schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a configuration file."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "smartipc configuration",
        **keys.APP.schema(),
    }


def text() -> str:
    """Return the schema as the file config/workers.schema.json holds it."""
    return json.dumps(schema(), indent=2) + "\n"


def reference() -> str:
    """Return the Markdown table of all keys."""
    rows = ["| key | value | default | meaning |", "|---|---|---|---|"]
    rows += _rows(keys.APP, "")
    return "\n".join(rows) + "\n"


def _rows(record: Record, prefix: str) -> list[str]:
    rows = []
    for name, field in record.fields.items():
        path = f"{prefix}{name}"
        inner = _inner(field.kind)
        words = _short(field.kind)
        default = f"`{field.default}`" if field.default else ""
        rows.append(f"| `{path}` | {words} | {default} | {field.meaning} |".replace("<", "&lt;"))
        if inner is not None and name != "defaults":
            below = f"{path}.NAME." if isinstance(field.kind, MapOf) else f"{path}."
            rows += _rows(inner, below)
    return rows


def _inner(kind: Kind) -> Record | None:
    match kind:
        case Record():
            return kind
        case MapOf(value=Record() as record):
            return record
        case Either(long=Record() as record):
            return record
    return None


def _short(kind: Kind) -> str:
    match kind:
        case Record():
            return "mapping"
        case MapOf(value=Record()):
            return "mapping by name"
        case Either(short=short, long=Record()):
            return f"{short.words()}, or mapping"
    return kind.words().replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(reference() if sys.argv[1:] == ["reference"] else text())
