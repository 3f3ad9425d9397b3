"""smartipc: supervised worker processes and typed messages between them.

This package holds the import name and the lazy table of public names. No logic belongs here: `import smartipc`
must stay cheap, because every worker pays for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smartipc.ipc.client import IpcClient as IpcClient
    from smartipc.ipc.client import connect as connect
    from smartipc.ipc.contracts import Channel as Channel
    from smartipc.ipc.contracts import Method as Method
    from smartipc.ipc.contracts import Stream as Stream
    from smartipc.ipc.contracts import Topic as Topic
    from smartipc.ipc.errors import AuthenticationFailed as AuthenticationFailed
    from smartipc.ipc.errors import CallError as CallError
    from smartipc.ipc.errors import CircuitOpen as CircuitOpen
    from smartipc.ipc.errors import ConfigError as ConfigError
    from smartipc.ipc.errors import ConnectFailed as ConnectFailed
    from smartipc.ipc.errors import ConnectionLost as ConnectionLost
    from smartipc.ipc.errors import EndOfStream as EndOfStream
    from smartipc.ipc.errors import FrameTooLarge as FrameTooLarge
    from smartipc.ipc.errors import InvalidPayload as InvalidPayload
    from smartipc.ipc.errors import LocalProtocolError as LocalProtocolError
    from smartipc.ipc.errors import NoSuchMethod as NoSuchMethod
    from smartipc.ipc.errors import NoSuchWorker as NoSuchWorker
    from smartipc.ipc.errors import OrderFailed as OrderFailed
    from smartipc.ipc.errors import Overloaded as Overloaded
    from smartipc.ipc.errors import PermissionDenied as PermissionDenied
    from smartipc.ipc.errors import ProtocolError as ProtocolError
    from smartipc.ipc.errors import RateLimited as RateLimited
    from smartipc.ipc.errors import RemoteError as RemoteError
    from smartipc.ipc.errors import RemoteProtocolError as RemoteProtocolError
    from smartipc.ipc.errors import RequestCancelled as RequestCancelled
    from smartipc.ipc.errors import RequestTimeout as RequestTimeout
    from smartipc.ipc.errors import SlowConsumer as SlowConsumer
    from smartipc.ipc.errors import SmartIpcError as SmartIpcError
    from smartipc.ipc.errors import StreamReset as StreamReset
    from smartipc.ipc.errors import WorkerDied as WorkerDied
    from smartipc.ipc.handle import SmartIpc as SmartIpc
    from smartipc.ipc.message import IpcMessage as IpcMessage
    from smartipc.ipc.message import Outcome as Outcome
    from smartipc.ipc.message import Peer as Peer
    from smartipc.ipc.server import IpcServer as IpcServer
    from smartipc.ipc.server import serve as serve
    from smartipc.ipc.streaming import IpcChannel as IpcChannel
    from smartipc.ipc.transports.base import IpcTransport as IpcTransport
    from smartipc.ipc.transports.child import ChildProcessTransport as ChildProcessTransport
    from smartipc.ipc.transports.pipe import NamedPipeTransport as NamedPipeTransport
    from smartipc.ipc.transports.tcp import TcpTransport as TcpTransport
    from smartipc.ipc.transports.unix import UnixSocketTransport as UnixSocketTransport
    from smartipc.ipc.trust.sealing import Sealing as Sealing
    from smartipc.ipc.wire.buffer import Buffer as Buffer
    from smartipc.ipc.wire.limits import Limits as Limits
    from smartipc.supervisor.embedded import Supervisor as Supervisor

__version__ = "0.1.0"

_PUBLIC = {
    "AuthenticationFailed": "smartipc.ipc.errors",
    "Buffer": "smartipc.ipc.wire.buffer",
    "CallError": "smartipc.ipc.errors",
    "Channel": "smartipc.ipc.contracts",
    "ChildProcessTransport": "smartipc.ipc.transports.child",
    "CircuitOpen": "smartipc.ipc.errors",
    "ConfigError": "smartipc.ipc.errors",
    "ConnectFailed": "smartipc.ipc.errors",
    "ConnectionLost": "smartipc.ipc.errors",
    "EndOfStream": "smartipc.ipc.errors",
    "FrameTooLarge": "smartipc.ipc.errors",
    "InvalidPayload": "smartipc.ipc.errors",
    "IpcClient": "smartipc.ipc.client",
    "IpcChannel": "smartipc.ipc.streaming",
    "IpcMessage": "smartipc.ipc.message",
    "IpcServer": "smartipc.ipc.server",
    "IpcTransport": "smartipc.ipc.transports.base",
    "Limits": "smartipc.ipc.wire.limits",
    "LocalProtocolError": "smartipc.ipc.errors",
    "Method": "smartipc.ipc.contracts",
    "NamedPipeTransport": "smartipc.ipc.transports.pipe",
    "NoSuchMethod": "smartipc.ipc.errors",
    "NoSuchWorker": "smartipc.ipc.errors",
    "OrderFailed": "smartipc.ipc.errors",
    "Outcome": "smartipc.ipc.message",
    "Overloaded": "smartipc.ipc.errors",
    "Peer": "smartipc.ipc.message",
    "PermissionDenied": "smartipc.ipc.errors",
    "ProtocolError": "smartipc.ipc.errors",
    "RateLimited": "smartipc.ipc.errors",
    "RemoteError": "smartipc.ipc.errors",
    "RemoteProtocolError": "smartipc.ipc.errors",
    "RequestCancelled": "smartipc.ipc.errors",
    "RequestTimeout": "smartipc.ipc.errors",
    "Sealing": "smartipc.ipc.trust.sealing",
    "SlowConsumer": "smartipc.ipc.errors",
    "SmartIpc": "smartipc.ipc.handle",
    "SmartIpcError": "smartipc.ipc.errors",
    "Stream": "smartipc.ipc.contracts",
    "StreamReset": "smartipc.ipc.errors",
    "Supervisor": "smartipc.supervisor.embedded",
    "TcpTransport": "smartipc.ipc.transports.tcp",
    "Topic": "smartipc.ipc.contracts",
    "UnixSocketTransport": "smartipc.ipc.transports.unix",
    "WorkerDied": "smartipc.ipc.errors",
    "connect": "smartipc.ipc.client",
    "serve": "smartipc.ipc.server",
}

__all__ = [
    "AuthenticationFailed",
    "Buffer",
    "CallError",
    "Channel",
    "ChildProcessTransport",
    "CircuitOpen",
    "ConfigError",
    "ConnectFailed",
    "ConnectionLost",
    "EndOfStream",
    "FrameTooLarge",
    "InvalidPayload",
    "IpcChannel",
    "IpcClient",
    "IpcMessage",
    "IpcServer",
    "IpcTransport",
    "Limits",
    "LocalProtocolError",
    "Method",
    "NamedPipeTransport",
    "NoSuchMethod",
    "NoSuchWorker",
    "OrderFailed",
    "Outcome",
    "Overloaded",
    "Peer",
    "PermissionDenied",
    "ProtocolError",
    "RateLimited",
    "RemoteError",
    "RemoteProtocolError",
    "RequestCancelled",
    "RequestTimeout",
    "Sealing",
    "SlowConsumer",
    "SmartIpc",
    "SmartIpcError",
    "Stream",
    "StreamReset",
    "Supervisor",
    "TcpTransport",
    "Topic",
    "UnixSocketTransport",
    "WorkerDied",
    "__version__",
    "connect",
    "serve",
]


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
