"""From a received request to a handler's arguments, and from its result to a reply: shared by both handles.

Decides and converts; never waits, sends or runs a handler. Each handle calls what is looked up here in its own way.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from smartipc.ipc import signatures
from smartipc.ipc.contracts import DEFAULT_TIMEOUT, Channel, Method, Stream, Topic, misuse
from smartipc.ipc.errors import InvalidPayload, LocalProtocolError, NoSuchMethod, RequestTimeout
from smartipc.ipc.flows import FlowHandler, fault_of_handler, flow_handler, is_generator, place_of, wants_a_message
from smartipc.ipc.message import IpcMessage, Peer, epoch
from smartipc.ipc.protocol.events import NotifyReceived, RequestReceived
from smartipc.ipc.protocol.handshake import Identity
from smartipc.ipc.tracing import TRACE_HEADER, trace_of
from smartipc.ipc.wire import codec
from smartipc.ipc.wire.faults import fault_of
from smartipc.ipc.wire.heads import Fault

ENDING = (KeyboardInterrupt, SystemExit)
"""What ends a program, whoever raises it. Whatever else a handler of an async worker raises stays its own affair."""
LONGEST = 20 * 86400.0
"""Seconds of the longest deadline; what is asked for beyond is cut to it. Kernels count 24 days in milliseconds."""


@dataclass(frozen=True, slots=True)
class Handler:
    """A registered function and what is known of its contract."""

    name: str
    function: Callable[..., Any]
    request: Any
    reply: Any
    wants_message: bool
    is_async: bool
    errors: tuple[type[BaseException], ...] = ()
    plain: bool = False
    """A `def` that takes only the payload: it can be called where the request was read."""
    idempotent: bool = False
    """A one-way message whose handler failed is given to it again."""
    decode: Callable[[bytes], Any] = msgspec.msgpack.decode
    """Turns a small payload into the request, or raises: then codec.decode knows what is wrong with it."""


class Registry:
    """The handlers of one worker, by full method name.

    Args:
        worker: plain names are relative to it; "" takes names as they are.
        instance: named in faults.
    """

    def __init__(self, worker: str, instance: str) -> None:
        self.handlers: dict[str, Handler] = {}
        self.served = 0
        """Requests, one-way messages and openings that have come so far."""
        self.flows: dict[str, FlowHandler] = {}
        """The streams and channels that are served."""
        self._worker = worker
        self._instance = instance

    def __repr__(self) -> str:
        return f"<Registry of {self._instance}: {', '.join(sorted(self.handlers)) or 'no handlers'}>"

    def add(
        self, contract: Method[Any, Any] | Stream[Any, Any] | Channel[Any, Any] | str, function: Callable[..., Any]
    ) -> Handler | FlowHandler:
        """Register a function: (payload) or (payload, message) for methods and streams, (channel) for channels.

        A generator function registered by a plain name serves a stream.

        Raises:
            LocalProtocolError: the name is taken, belongs to another worker, the signature does not fit, or an
                annotation contradicts the contract.
        """
        name = self._full_name(contract)
        if name in self.handlers or name in self.flows:
            raise LocalProtocolError(f"method {name} has a handler already")
        if isinstance(contract, (Stream, Channel)) or (isinstance(contract, str) and is_generator(function)):
            request = _first(function) if isinstance(contract, str) else Any
            flow = flow_handler(contract, name, function, request)
            if not isinstance(contract, str):
                signatures.check(contract, function, place_of(function))
            self.flows[name] = flow
            return flow
        wants_message = wants_a_message(function, "handler")
        if is_generator(function):
            raise LocalProtocolError(
                f"{name} is a Method, but its handler {place_of(function)} is a generator: return the reply, "
                "or declare a Stream"
            )
        if isinstance(contract, Method):
            request, reply, errors = contract.request, contract.reply, contract.errors
        else:
            request, reply, errors = _first(function), Any, ()
        if isinstance(contract, Method):
            signatures.check(contract, function, place_of(function))
        decode = codec.decoder_for(request).decode
        is_async = inspect.iscoroutinefunction(inspect.unwrap(function))
        plain = not wants_message and not is_async
        safe = isinstance(contract, Method) and contract.idempotent
        handler = Handler(name, function, request, reply, wants_message, is_async, tuple(errors), plain, safe, decode)
        self.handlers[name] = handler
        return handler

    def _full_name(self, contract: Method[Any, Any] | Stream[Any, Any] | Channel[Any, Any] | str) -> str:
        if isinstance(contract, str):
            return f"{self._worker}.{contract}" if self._worker else contract
        if self._worker and not contract.name.startswith(self._worker + "."):
            raise LocalProtocolError(f"method {contract.name} belongs to another worker than {self._worker}")
        return contract.name

    def find_flow(self, name: str, *, duplex: bool) -> FlowHandler | Fault:
        """Return the function of a stream or channel, or the fault that names those there are."""
        self.served += 1
        handler = self.flows.get(name)
        if handler is None or handler.duplex is not duplex:
            known = sorted(one for one, served in self.flows.items() if served.duplex is duplex)
            return self.fault(NoSuchMethod(name, known, instance=self._instance), ())
        return handler

    def find(self, method: str) -> Handler | Fault:
        """Return the handler, or the fault that names what there is."""
        handler = self.handlers.get(method)
        if handler is None:
            known = sorted(self.handlers)
            return self.fault(NoSuchMethod(method, known, instance=self._instance), ())
        return handler

    def arguments(
        self, handler: Handler, event: RequestReceived | NotifyReceived, peer: Identity | None, now: float
    ) -> tuple[Any, ...] | Fault:
        """Decode a request into the handler's arguments, or say why it must not run: expired, or it does not fit."""
        self.served += 1
        if isinstance(event, RequestReceived):
            deadline, ident, attempt = event.deadline, event.id, event.attempt
        else:
            deadline, ident, attempt = None, 0, 1
        if deadline is not None and now >= deadline:
            reason = "the deadline passed before the handler could start"
            expired = RequestTimeout(None, reason, method=handler.name, processed="no")
            return self.fault(expired, ())
        try:
            payload = codec.decode(event.payload, handler.request, method=handler.name)
        except InvalidPayload as error:
            return self.fault(InvalidPayload(error.path, error.reason, method=handler.name, processed="no"), ())
        if not handler.wants_message:
            return (payload,)
        headers = event.headers or {}
        message = IpcMessage(
            payload=payload,
            id=ident,
            sender=peer.name if peer is not None else "",
            headers={name: value for name, value in headers.items() if name != TRACE_HEADER},
            trace=trace_of(peer, event),
            timestamp=epoch(event.received_at),
            deadline=deadline,
            attempt=attempt,
        )
        return payload, message

    def reply(self, handler: Handler, value: Any) -> bytes | Fault:
        """Encode what the handler returned, checked against its contract."""
        if type(value) is handler.reply:
            try:
                return codec.encode_plain(value)
            except codec.UNFIT:
                pass
        try:
            encoded = codec.encode(value, method=handler.name)
            if type(value) is handler.reply:
                return encoded
            if handler.reply is not Any:
                codec.decode(encoded, handler.reply, method=handler.name)
        except InvalidPayload as error:
            wrong = InvalidPayload(error.path, f"the handler's result: {error.reason}", processed="yes")
            return self.fault(wrong, ())
        return encoded

    def failed(self, error: BaseException, declared: tuple[type[BaseException], ...]) -> Fault:
        """Describe what a handler raised."""
        return fault_of_handler(error, self._instance, declared)

    def fault(self, error: BaseException, declared: tuple[type[BaseException], ...]) -> Fault:
        """Describe an error for a caller of the same user, who may see tracebacks."""
        return fault_of(error, instance=self._instance, expose_traceback=True, declared=declared)


def again(arguments: tuple[Any, ...], attempt: int) -> tuple[Any, ...]:
    """Return a handler's arguments for another attempt."""
    if len(arguments) == 1:
        return arguments
    return arguments[0], msgspec.structs.replace(arguments[1], attempt=attempt)


def request_payload(method: Method[Any, Any] | str, payload: Any) -> tuple[str, bytes]:
    """Encode a request's payload, checked against its contract on this side.

    Raises:
        InvalidPayload: it does not fit; nothing was sent.
        LocalProtocolError: `method` is neither a Method nor a name.
    """
    if isinstance(method, str):
        return method, codec.encode(payload, method=method)
    if not isinstance(method, Method):
        raise LocalProtocolError(misuse(method, "a Method or a name such as 'worker.method'"))
    encoded = codec.encode(payload, method=method.name)
    if type(payload) is not method.request and method.request is not Any:
        try:
            codec.decode(encoded, method.request, method=method.name)
        except InvalidPayload as error:
            raise InvalidPayload(error.path, error.reason, method=method.name, processed="no") from None
    return method.name, encoded


def decoded_reply(reply: bytes, contract: Method[Any, Any] | None, reply_type: Any, name: str) -> Any:
    """Decode the reply to a call: into the contract's type, else into `reply_type`, None for whatever it is.

    Raises:
        InvalidPayload: it does not fit.
    """
    wanted = contract.reply if contract is not None else (Any if reply_type is None else reply_type)
    return codec.decode(reply, wanted, method=name)


def contract_of(method: Method[Any, Any] | str, reply_type: Any) -> Method[Any, Any]:
    """Return the contract of a method that may be given by its name.

    Raises:
        LocalProtocolError: it is neither a Method nor a name, or the type is none.
        ValueError: the name is malformed.
    """
    if reply_type is not None:
        codec.check_type(reply_type, "reply_type")
    if isinstance(method, str):
        wanted: Any = Any  # a type like any other, but not for type checkers
        return Method(method, wanted, wanted if reply_type is None else reply_type)
    if not isinstance(method, Method):
        raise LocalProtocolError(misuse(method, "a Method or a name such as 'worker.method'"))
    return method


def seconds_for(
    contract: Method[Any, Any] | None, timeout: float | None, *, deadline: float | None, now: float
) -> float:
    """Return the seconds that a call has: what is asked for, else its contract's, and never more than its caller has.

    Args:
        contract: of the call, if it has one.
        timeout: what is asked for.
        deadline: of the request that is being handled, on the clock of `now`.
        now: monotonic seconds.

    Raises:
        RequestTimeout: there are none left.
        LocalProtocolError: `timeout` is no number of seconds.
    """
    seconds = timeout if timeout is not None else (contract.timeout if contract is not None else DEFAULT_TIMEOUT)
    if not _is_finite(seconds):
        raise LocalProtocolError(f"timeout must be a number of seconds, got {seconds!r}: every call has a deadline")
    seconds = min(seconds, LONGEST if deadline is None else deadline - now)
    if seconds <= 0:
        raise RequestTimeout(timeout, "the deadline has passed already", processed="no")
    return seconds


def _is_finite(seconds: object) -> bool:
    return isinstance(seconds, (int, float)) and seconds < math.inf


def check_servable(contract: object) -> None:
    """Look at what `@ipc.handler` was given.

    Raises:
        LocalProtocolError: it is neither a contract nor a name, such as the function itself.
    """
    if not isinstance(contract, (str, Method, Stream, Channel)):
        raise LocalProtocolError(misuse(contract, 'a contract or a name, as in @ipc.handler("name")'))


def check_subscriber(topic: Topic[Any] | str, function: Callable[..., Any]) -> bool:
    """Look at what `@ipc.subscriber(topic)` decorates; tell whether it takes (payload, message).

    Raises:
        LocalProtocolError: it takes something else, or an annotation contradicts the topic's type.
    """
    wants = wants_a_message(function, "subscriber")
    if isinstance(topic, Topic):
        signatures.check(topic, function, place_of(function))
    return wants


def check_peer(to: object) -> None:
    """Look at what was given as `to=`.

    Raises:
        LocalProtocolError: it is no Peer.
    """
    if not isinstance(to, Peer):
        raise LocalProtocolError(f"to= must be a Peer, of ipc.peers or server.clients, got {to!r}")


@functools.lru_cache(maxsize=1024)
def worker_of(address: str) -> str:
    """Return the worker part of "worker.method".

    Raises:
        LocalProtocolError: there is no method part.
    """
    worker, dot, method = address.partition(".")
    if not (worker and dot and method):
        raise LocalProtocolError(f"{address!r} is not an address: expected 'worker.method'")
    return worker


def pinned(worker: str, to: Peer, slot: int | None) -> int:
    """Return the slot that `to=` stands for.

    Raises:
        LocalProtocolError: it is no Peer, an instance of another worker, or `slot=` says otherwise.
    """
    check_peer(to)
    if to.name != f"{worker}:{to.slot}" or slot not in (None, to.slot):
        raise LocalProtocolError(f"to={to.name} does not go with a call to {worker}")
    return to.slot


def _first(function: Callable[..., Any]) -> Any:
    """Return the annotation of the payload; Any where there is none or it cannot be resolved."""
    return next(iter(signatures.parameters_of(function)), Any)
