"""smartipc: supervised worker processes and typed messages between them.

This package holds the import name and the lazy table of public names. No logic belongs here: `import smartipc`
must stay cheap, because every worker pays for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smartipc.ipc.contracts import Method as Method
    from smartipc.ipc.contracts import Topic as Topic
    from smartipc.ipc.errors import ConfigError as ConfigError
    from smartipc.ipc.errors import SmartIpcError as SmartIpcError

__version__ = "0.1.0"

_PUBLIC = {
    "Method": "smartipc.ipc.contracts",
    "Topic": "smartipc.ipc.contracts",
    "ConfigError": "smartipc.ipc.errors",
    "SmartIpcError": "smartipc.ipc.errors",
}

__all__ = ["ConfigError", "Method", "SmartIpcError", "Topic", "__version__"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'smartipc' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
