"""The blocking twins of the public objects: same file names, same roles."""

from __future__ import annotations

from smartipc.ipc.sync.client import IpcClient as IpcClient
from smartipc.ipc.sync.client import connect as connect
from smartipc.ipc.sync.handle import SmartIpc as SmartIpc
from smartipc.ipc.sync.server import IpcServer as IpcServer
from smartipc.ipc.sync.server import serve as serve
from smartipc.ipc.sync.streaming import IpcChannel as IpcChannel

__all__ = ["IpcChannel", "IpcClient", "IpcServer", "SmartIpc", "connect", "serve"]
