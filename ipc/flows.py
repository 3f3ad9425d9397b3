"""What both flavours know of streams and channels: registering, checking items, how an end or a fault is told.

Decides and converts; never waits, sends or runs a handler. What one end says is in ends.py, the waiting in streaming.py
and producing.py and their twins, credit and frames in protocol.streams.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec

from smartipc.ipc.contracts import Channel, Stream, misuse
from smartipc.ipc.errors import (
    CallError,
    ConnectionLost,
    EndOfStream,
    InvalidPayload,
    LocalProtocolError,
    RemoteError,
    RequestCancelled,
    SmartIpcError,
    StreamReset,
)
from smartipc.ipc.message import IpcMessage, epoch
from smartipc.ipc.protocol.events import (
    DataReceived,
    OpenReceived,
    StreamEnded,
    StreamEvent,
    StreamFailed,
    StreamLost,
    StreamStopped,
)
from smartipc.ipc.protocol.handshake import Identity
from smartipc.ipc.tracing import TRACE_HEADER, trace_of
from smartipc.ipc.wire import codec
from smartipc.ipc.wire.faults import error_of, fault_of
from smartipc.ipc.wire.heads import Fault

T = TypeVar("T")

LEFT = Fault(1, "StreamReset", "the other side left", processed=2)
"""What the peer is told when a block is left or a handler is cancelled."""


@dataclass(frozen=True, slots=True)
class FlowHandler:
    """A registered stream or channel function and what is known of its contract.

    `request` is the type of the opening payload, `sends` and `receives` those of the items as the handler sees them.
    """

    name: str
    function: Callable[..., Any]
    duplex: bool
    request: Any
    sends: Any
    receives: Any
    wants_message: bool
    errors: tuple[type[BaseException], ...] = ()

    def arguments(self, event: OpenReceived, peer: Identity | None) -> tuple[Any, ...]:
        """Decode the opening of a stream into the handler's arguments.

        Raises:
            InvalidPayload: it does not fit.
        """
        try:
            payload = codec.decode(event.payload, self.request, method=self.name)
        except InvalidPayload as error:
            raise InvalidPayload(error.path, error.reason, method=self.name, processed="no") from None
        if not self.wants_message:
            return (payload,)
        message = IpcMessage(
            payload=payload,
            id=event.id,
            sender=peer.name if peer is not None else "",
            headers={name: value for name, value in (event.headers or {}).items() if name != TRACE_HEADER},
            trace=trace_of(peer, event),
            timestamp=epoch(event.received_at),
        )
        return payload, message


def is_generator(function: Callable[..., Any]) -> bool:
    """Tell whether a function registered by a plain name serves a stream."""
    plain = inspect.unwrap(function)
    return inspect.isasyncgenfunction(plain) or inspect.isgeneratorfunction(plain)


def flow_handler(
    contract: Stream[Any, Any] | Channel[Any, Any] | str, name: str, function: Callable[..., Any], request: Any
) -> FlowHandler:
    """Describe a stream or channel function; `request` is its annotation, for a stream given by name.

    Raises:
        LocalProtocolError: the signature does not fit.
        TypeError: msgspec cannot decode into a type of the contract.
    """
    if isinstance(contract, Channel):
        if _positional(function, "channel handler") != 1:
            raise LocalProtocolError(f"channel handler {place_of(function)} must take (channel)")
        codec.decoder_for(contract.send)
        return FlowHandler(
            name, function, True, type(None), contract.receive, contract.send, False, tuple(contract.errors)
        )
    wants_message = wants_a_message(function, "handler")
    if isinstance(contract, Stream):
        request, item, errors = contract.request, contract.item, tuple(contract.errors)
    else:
        item, errors = Any, ()
    codec.decoder_for(request)
    return FlowHandler(name, function, False, request, item, Any, wants_message, errors)


def wants_a_message(function: Callable[..., Any], what: str) -> bool:
    """Tell whether a function takes (payload, message) rather than (payload).

    Args:
        function: the user's.
        what: what it is to be, for people.

    Raises:
        LocalProtocolError: it takes something else, or is no function.
    """
    count = _positional(function, what)
    if not 1 <= count <= 2:
        raise LocalProtocolError(f"{what} {place_of(function)} must take (payload) or (payload, message)")
    return count == 2


def place_of(function: Callable[..., Any]) -> str:
    """Return the name of a function, and where it is written."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    name = getattr(function, "__qualname__", repr(function))
    return f"{name} ({code.co_filename}:{code.co_firstlineno})" if code is not None else name


def _positional(function: Callable[..., Any], what: str) -> int:
    """Count the parameters that must be given by position; a builtin without a signature is taken to want one."""
    if not callable(function):
        raise LocalProtocolError(f"a {what} must be a function, got {function!r}")
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:
        return 1
    return sum(1 for one in parameters if one.kind in kinds and one.default is inspect.Parameter.empty)


def opening(contract: Stream[Any, Any] | str, request: Any, item_type: Any) -> tuple[str, bytes, Any, tuple[Any, ...]]:
    """Return name, encoded request, item type and declared errors of a stream to open.

    Raises:
        InvalidPayload: the request does not fit; nothing was sent.
        LocalProtocolError: `contract` is neither a Stream nor a name, or the item type is none.
    """
    if not isinstance(contract, (str, Stream)):
        raise LocalProtocolError(misuse(contract, "a Stream or a name such as 'worker.stream'"))
    if item_type is not None:
        codec.check_type(item_type, "item_type")
    if isinstance(contract, str):
        wanted = Any if item_type is None else item_type
        return contract, codec.encode(request, method=contract), wanted, ()
    return contract.name, encode_item(request, contract.request, contract.name), contract.item, tuple(contract.errors)


def encode_item(value: Any, wanted: Any, name: str) -> bytes:
    """Encode an item, checked against its type on this side.

    Raises:
        InvalidPayload: it does not fit; nothing was sent.
    """
    encoded = codec.encode(value, method=name)
    if wanted is not Any and type(value) is not wanted:
        try:
            codec.decode(encoded, wanted, method=name)
        except InvalidPayload as error:
            raise InvalidPayload(error.path, error.reason, method=name, processed="no") from None
    return encoded


class Reception(Generic[T]):
    """What arrived at one end of a stream or channel, and how each direction ended.

    Args:
        wanted: type of the items.
        name: address of the stream.
        declared: error types of the contract.
        duplex: a channel: an error of its handler that is not declared is a StreamReset.
    """

    __slots__ = ("_declared", "_duplex", "_name", "_wanted", "end", "instance", "items", "refusal")

    def __init__(
        self, wanted: Any, *, name: str, declared: tuple[type[BaseException], ...] = (), duplex: bool = False
    ) -> None:
        self.items: deque[bytes] = deque()
        self.end: BaseException | None = None
        """Why nothing more comes: raise it once `items` is empty."""
        self.refusal: BaseException | None = None
        """Why nothing more can be sent."""
        self.instance = ""
        self._wanted = wanted
        self._name = name
        self._declared = declared
        self._duplex = duplex

    def __repr__(self) -> str:
        return f"<Reception of {self._name}: {len(self.items)} waiting{', over' if self.end is not None else ''}>"

    @property
    def ready(self) -> bool:
        """Whether there is an item or a reason why none comes."""
        return bool(self.items) or self.end is not None

    @property
    def alive(self) -> bool:
        """Whether the peer has not given the whole stream up."""
        return self.end is None or isinstance(self.end, EndOfStream)

    def on_event(self, event: StreamEvent) -> None:
        """Keep an item, or the fact that a direction is over."""
        match event:
            case DataReceived():
                self.items.append(event.payload)
            case StreamEnded():
                self.end = EndOfStream()
            case StreamStopped():
                self.refusal = StreamReset("the other side takes no more items")
            case StreamFailed():
                self.end = self.refusal = self._error(event.fault)
            case StreamLost():
                processed: Any = "maybe" if event.written else "no"
                lost = ConnectionLost(
                    self.instance or "the peer",
                    "it ended under an open stream",
                    method=self._name,
                    instance=self.instance or None,
                    processed=processed,
                )
                self.end = self.refusal = lost
            case _:  # accepted: the opener waits for that by itself
                pass

    def retell(self, end: BaseException, known: BaseException) -> None:
        """Put what is known by now in the place of an end: that a process died, and how, for a lost connection."""
        if self.end is end:
            self.end = known
        if self.refusal is end:
            self.refusal = known

    def decode(self, payload: bytes) -> T:
        """Decode an item.

        Raises:
            InvalidPayload: it does not fit the type; the next one may.
        """
        item: T = codec.decode(payload, self._wanted, method=self._name)
        return item

    def _error(self, fault: Fault) -> BaseException:
        error = error_of(fault, method=self._name, instance=self.instance or None, declared=self._declared)
        if self._duplex and isinstance(error, (RemoteError, RequestCancelled)):
            why = (
                f"{error.type_name}: {error.message}" if isinstance(error, RemoteError) else "its handler was cancelled"
            )
            reset = StreamReset(why)
            reset.__cause__ = error
            return reset
        return error


def fault_of_handler(error: BaseException, instance: str, errors: tuple[type[BaseException], ...]) -> Fault:
    """Describe what a handler raised. It ran, whatever became of the calls that it made itself."""
    fault = fault_of(error, instance=instance, expose_traceback=True, declared=errors)
    if isinstance(error, CallError):
        return msgspec.structs.replace(fault, processed=2, retryable=False)
    return fault


def fault_of_opening(error: SmartIpcError, instance: str) -> Fault:
    """Describe why a stream's or channel's handler was not called."""
    return fault_of(error, instance=instance, expose_traceback=True)


def cancelled(name: str, instance: str) -> Fault:
    """Describe that a stream's handler was cancelled where it runs."""
    return fault_of(RequestCancelled(method=name), instance=instance)
