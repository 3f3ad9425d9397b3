"""The blocking twins of the public objects: same file names, same roles."""

from __future__ import annotations

from smartipc.ipc.sync.handle import SmartIpc as SmartIpc

__all__ = ["SmartIpc"]
