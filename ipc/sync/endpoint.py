"""The public verbs of the blocking flavour, written once: the twin of endpoint.py, without await.

A verb checks and encodes, then hands a Call to a Router (see router.py), which knows where things go. No links, waiting
or retries in here.

Longer than other files: overloads and docstrings of a dozen verbs; the code of each is short.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, cast, overload

from smartipc.ipc.contracts import Channel, Method, Stream, Topic, check_count, misuse
from smartipc.ipc.dispatch import (
    Registry,
    check_servable,
    check_subscriber,
    contract_of,
    decoded_reply,
    request_payload,
    seconds_for,
)
from smartipc.ipc.drivers.blocking import Link
from smartipc.ipc.errors import LocalProtocolError, RequestTimeout, SmartIpcError, WorkerDied
from smartipc.ipc.flows import Reception, opening
from smartipc.ipc.message import IpcMessage, Outcome, Peer
from smartipc.ipc.options import LOOK_AHEAD, CallOptions, MapOptions, SubscribeOptions
from smartipc.ipc.publications import headed, published
from smartipc.ipc.resilience.dead_letters import DeadLetters
from smartipc.ipc.sync.call import LONG, Call
from smartipc.ipc.sync.hearing import Messages
from smartipc.ipc.sync.mapping import SyncRun, mapped
from smartipc.ipc.sync.publishing import Publisher
from smartipc.ipc.sync.router import Router
from smartipc.ipc.sync.streaming import IpcChannel, Items, Opener
from smartipc.ipc.tracing import current_deadline, with_trace
from smartipc.ipc.transports.memory import new_buffer
from smartipc.ipc.wire import codec

if TYPE_CHECKING:
    from smartipc.ipc.wire.buffer import Buffer

Req = TypeVar("Req")
Rep = TypeVar("Rep")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
Item = TypeVar("Item")
Send = TypeVar("Send")
Receive = TypeVar("Receive")


class Endpoint:
    """One end of conversations. Not made by itself: see SmartIpc, IpcClient, IpcServer.

    Args:
        registry: the handlers.
        router: where things go.
    """

    def __init__(self, registry: Registry, router: Router) -> None:
        self._registry = registry
        self._router = router
        self._subscribers: list[Messages[Any]] = []
        self._delivering = False
        self._letters: DeadLetters | None = None
        self._letter_name = ""
        self._gatherer: Publisher | None = None
        """What gathers messages of a flood, where there is one."""

    # requests

    @overload
    def request(self, method: Method[Req, Rep], payload: Req, **options: Unpack[CallOptions]) -> Rep: ...

    @overload
    def request(
        self, method: str, payload: Any = None, *, reply_type: type[T], **options: Unpack[CallOptions]
    ) -> T: ...

    @overload
    def request(self, method: str, payload: Any = None, **options: Unpack[CallOptions]) -> Any: ...

    def request(
        self,
        method: Method[Any, Any] | str,
        payload: Any = None,
        *,
        timeout: float | None = None,
        to: Peer | None = None,
        slot: int | None = None,
        key: str | None = None,
        headers: dict[str, str] | None = None,
        reply_type: Any = None,
    ) -> Any:
        """Ask an instance of a worker and return its reply.

        Args:
            method: a contract, or "worker.method".
            payload: must fit the contract.
            timeout: seconds; default the contract's, and never more than what the request being handled has left.
            to: ask this peer, of `ipc.peers` or of `server.clients`.
            slot: pin this instance.
            key: equal keys go to the same instance while the ready ones stay the same.
            headers: strings that the handler sees in its message.
            reply_type: decode the reply into this type, for a method given by name.

        An exception that interrupts the wait (KeyboardInterrupt) cancels the call.

        Raises:
            RequestTimeout: no reply in time, or no instance became ready in time.
            WorkerDied, ConnectionLost: the instance was lost; `processed` says what is known of the call.
            NoSuchWorker, NoSuchMethod, Overloaded, InvalidPayload, RemoteError: what they say.
            LocalProtocolError: the handle was inherited through fork.
            Exception: an error that the contract declares, as itself.
        """
        if self._gatherer is not None:
            self._gatherer.end_burst()
        if (
            timeout is None
            and to is None
            and slot is None
            and key is None
            and headers is None
            and type(method) is Method
        ):
            value = self._router.ask(method, payload)
            if value is not LONG:
                return value
        if reply_type is not None:
            codec.check_type(reply_type, "reply_type")
        contract = method if isinstance(method, Method) else None
        call = _call(method, payload, contract, timeout=timeout, to=to, slot=slot, key=key, headers=headers)
        return decoded_reply(self._router.request(call), contract, reply_type, call.method)

    def notify(
        self,
        method: Method[Req, Any] | str,
        payload: Req | Any = None,
        *,
        timeout: float | None = None,
        to: Peer | None = None,
        slot: int | None = None,
        key: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        """Send a one-way message to an instance; returns when it is written, not when it is handled.

        Raises:
            RequestTimeout: no instance became ready within `timeout` seconds; the message is a dead letter.
            NoSuchWorker, WorkerDied, InvalidPayload, FrameTooLarge: as request.
        """
        if self._gatherer is not None:
            self._gatherer.end_burst()
        contract = method if isinstance(method, Method) else None
        call = _call(method, payload, contract, timeout=timeout, to=to, slot=slot, key=key, headers=headers)
        try:
            self._router.notify(call)
        except (RequestTimeout, WorkerDied) as error:
            if self._letters is not None:
                reason = f"{type(error).__name__}: {error}"
                self._letters.add(
                    "notify", call.method, call.payload, sender=self._letter_name, reason=reason, attempts=0
                )
            raise

    def broadcast(
        self, method: Method[Req, Rep] | str, payload: Req | Any = None, *, timeout: float | None = None
    ) -> list[Outcome[Rep]]:
        """Ask every live instance of a worker, or every client, and return one Outcome each; partial results are kept.

        Raises:
            NoSuchWorker, InvalidPayload: as request; errors of single instances are in their outcomes.
        """
        if self._gatherer is not None:
            self._gatherer.end_burst()
        contract = method if isinstance(method, Method) else None
        calls = self._router.everyone(_call(method, payload, contract, timeout=timeout))
        waiting = list(calls)
        try:
            for call in calls:
                self._router.start(call)
            while waiting := [call for call in waiting if not call.done]:
                self._router.drive(waiting)
        finally:
            for call in waiting:
                self._router.cancel(call)
        return [_outcome(call, contract) for call in calls]

    @overload
    def map(
        self, method: Method[Req, Rep], payloads: Iterable[Req], **options: Unpack[MapOptions]
    ) -> Iterator[Rep]: ...

    @overload
    def map(
        self, method: str, payloads: Iterable[Any], *, reply_type: Any = None, **options: Unpack[MapOptions]
    ) -> Iterator[Any]: ...

    def map(
        self,
        method: Method[Any, Any] | str,
        payloads: Iterable[Any],
        *,
        concurrency: int = LOOK_AHEAD,
        ordered: bool = True,
        timeout: float | None = None,
        to: Peer | None = None,
        reply_type: Any = None,
    ) -> Iterator[Any]:
        """Call once per payload, at most `concurrency` under way, and yield the replies, in order if `ordered`.

        Payloads are drawn only as places come free. The first failure is raised at its place; leaving the iteration
        early (closing the iterator) cancels what is under way. No threads: the calls are pipelined.

        For a method given by name `reply_type` is the type to decode the replies into.

        Raises:
            LocalProtocolError: `concurrency` is below 1, or `method` is neither a Method nor a name.
            Exception: as request.
        """
        check_count("concurrency", concurrency)
        method = contract_of(method, reply_type)
        contract = method

        def budget() -> float:
            if self._gatherer is not None:
                self._gatherer.end_burst()  # what was said before is sent before
            return _budget(contract, timeout)

        run = SyncRun(self._router, contract, budget, concurrency=concurrency, ordered=ordered, to=to)
        return mapped(run, iter(payloads))

    # streams and channels

    @overload
    def open_stream(
        self, stream: Stream[Req, Item], request: Req, **options: Unpack[CallOptions]
    ) -> Opener[Items[Item]]: ...

    @overload
    def open_stream(
        self, stream: str, request: Any = None, *, item_type: type[T], **options: Unpack[CallOptions]
    ) -> Opener[Items[T]]: ...

    @overload
    def open_stream(
        self, stream: Stream[None, Item], request: None = None, **options: Unpack[CallOptions]
    ) -> Opener[Items[Item]]: ...

    @overload
    def open_stream(self, stream: str, request: Any = None, **options: Unpack[CallOptions]) -> Opener[Items[Any]]: ...

    def open_stream(
        self,
        stream: Stream[Any, Any] | str,
        request: Any = None,
        *,
        timeout: float | None = None,
        to: Peer | None = None,
        slot: int | None = None,
        key: str | None = None,
        headers: dict[str, str] | None = None,
        item_type: Any = None,
    ) -> Opener[Items[Any]]:
        """Open a stream: `with ipc.open_stream(contract, request) as items: for item in items`.

        A reader that is slow makes the handler wait. Leaving the block tells the handler that no more is wanted.

        Args:
            stream: a contract, or "worker.stream".
            request: must fit the contract.
            timeout: seconds until an instance must have accepted; the stream itself has no deadline.
            to: open it at this peer, of `ipc.peers` or of `server.clients`.
            slot: pin this instance.
            key: equal keys go to the same instance while the ready ones stay the same.
            headers: strings that the handler sees in its message.
            item_type: decode the items into this type, for a stream given by name.

        Raises (on entering):
            RequestTimeout: no instance accepted in time.
            WorkerDied, ConnectionLost, NoSuchWorker, NoSuchMethod, Overloaded, InvalidPayload: what they say.
        """
        name, encoded, item, declared = opening(stream, request, item_type)
        router = self._router

        if self._gatherer is not None:
            self._gatherer.end_burst()

        def make(link: Link) -> Items[Any]:
            return Items(link, name, Reception(item, name=name, declared=declared), None, router, router)

        budget, traced = _budget(None, timeout), with_trace(headers)
        return Opener(
            router, make, lambda: Call(name, encoded, timeout=budget, to=to, slot=slot, key=key, headers=traced)
        )

    def open_channel(
        self,
        channel: Channel[Send, Receive],
        *,
        timeout: float | None = None,
        to: Peer | None = None,
        slot: int | None = None,
        key: str | None = None,
    ) -> Opener[IpcChannel[Send, Receive]]:
        """Open a channel: `with ipc.open_channel(contract) as channel`, then send, receive, iterate.

        Leaving the block resets what is still open; a channel that both sides have closed is left in peace.

        Args:
            channel: the contract.
            timeout: seconds until an instance must have accepted; the channel itself has no deadline.
            to: open it at this peer, of `ipc.peers` or of `server.clients`.
            slot: pin this instance.
            key: equal keys go to the same instance while the ready ones stay the same.

        Raises (on entering):
            RequestTimeout, WorkerDied, ConnectionLost, NoSuchWorker, NoSuchMethod, Overloaded: as open_stream.
        """
        if not isinstance(channel, Channel):
            raise LocalProtocolError(misuse(channel, "a Channel: both ends need its types"))
        name, declared = channel.name, tuple(channel.errors)
        router = self._router
        if self._gatherer is not None:
            self._gatherer.end_burst()

        def make(link: Link) -> IpcChannel[Send, Receive]:
            reception: Reception[Receive] = Reception(channel.receive, name=name, declared=declared, duplex=True)
            return IpcChannel(link, name, reception, channel.send, router, router)

        budget, traced = _budget(None, timeout), with_trace(None)
        return Opener(
            router, make, lambda: Call(name, codec.EMPTY, timeout=budget, to=to, slot=slot, key=key, headers=traced)
        )

    # buffers

    def buffer(self, nbytes: int) -> Buffer:
        """Return writable memory that is sent in place, without any copy, in whatever payload the Buffer is put.

        Fill it through `view`, or an array made of that: `numpy.frombuffer(buffer.view, dtype)`. An array made so may
        be sent as `Buffer(array)`, also in place. Once sent it must not be changed until every receiver is through
        with it. Where memory cannot be shared, or the pool is used up, it is private memory, which is copied.

        Raises:
            ValueError: `nbytes` is negative.
        """
        return new_buffer(nbytes)

    # topics

    def publish(
        self,
        topic: Topic[T] | str,
        payload: T | Any,
        *,
        retain: bool = False,
        headers: dict[str, str] | None = None,
    ) -> None:
        """Send to every subscription of the topic; waits while one whose policy is "block" has its window full.

        The message is written when this returns, but for a worker that publishes without end: then it is written with
        those that follow it, before anything else that the handle says or waits for, and within a millisecond unless
        something keeps the interpreter from other threads.

        `headers` are strings that the subscribers see in their messages. Calls and messages from a handler, or from a
        subscriber's function, belong to its trace.

        With `retain` the value is kept as the topic's last, for whoever subscribes later, also when this process is
        gone by then. An interrupt may leave the later subscriptions without it.

        Raises:
            InvalidPayload: it does not fit the topic's type.
            FrameTooLarge: it exceeds the limit of a message, or the headers have more than 4 KiB.
            LocalProtocolError: `retain` where nothing is kept, or the headers are not strings by strings.
        """
        gatherer = self._gatherer
        if gatherer is not None and not retain and headers is None and gatherer.add(topic, payload):
            return
        name, encoded = published(topic, payload)
        self._router.publish(name, encoded, headers=headed(headers), retain=retain)
        if gatherer is not None and not retain and headers is None and type(topic) is Topic:
            gatherer.follow(topic)

    def publish_nowait(
        self,
        topic: Topic[T] | str,
        payload: T | Any,
        *,
        retain: bool = False,
        headers: dict[str, str] | None = None,
    ) -> int:
        """Send to every subscription, or to none, and return how many.

        Raises:
            Overloaded: a subscription has its window full, or its socket; nothing was sent.
            InvalidPayload, LocalProtocolError: as publish.
        """
        name, encoded = published(topic, payload)
        return self._router.publish_nowait(name, encoded, headers=headed(headers), retain=retain)

    @overload
    def subscribe(self, topic: Topic[T], **options: Unpack[SubscribeOptions]) -> Messages[T]: ...

    @overload
    def subscribe(self, topic: str, **options: Unpack[SubscribeOptions]) -> Messages[Any]: ...

    def subscribe(
        self,
        topic: Topic[Any] | str,
        *,
        queue: str | None = None,
        max_pending: int | None = None,
        overflow: str = "block",
    ) -> Messages[Any]:
        """Subscribe to a topic or a pattern: `with ipc.subscribe(topic) as messages: for message in messages`.

        Once entered, every later publish by any live worker reaches it, and it begins with the last retained values.

        Args:
            topic: a contract, a topic or a pattern: `*` is one token, `>` one or more at the end.
            queue: share with all subscriptions of this queue, on whatever worker: each message goes to one of them, the
                one with the least unconsumed, then in turn.
            max_pending: messages kept for a slow reader, default 1024; of each publisher with "block", else in all.
            overflow: what happens beyond that. "block": the publisher waits. "drop_oldest", "drop_newest": that is
                lost. "latest": only the newest of each concrete topic is kept at all. "close": the reader gets
                SlowConsumer behind the messages that were kept. A loss is in `missed` of the next message.

        Raises:
            LocalProtocolError: an unknown policy, no room at all, an empty queue name, or no topic.
            ValueError: the pattern is malformed or reserved.
        """
        if not isinstance(topic, (str, Topic)):
            raise LocalProtocolError(misuse(topic, "a Topic or a pattern such as 'orders.>'"))
        return self._router.subscribe(topic, queue=queue, max_pending=max_pending, overflow=overflow)

    def subscriber(
        self,
        topic: Topic[Any] | str,
        *,
        queue: str | None = None,
        max_pending: int | None = None,
        overflow: str = "block",
    ) -> Callable[[F], F]:
        """Call the decorated function with each (payload) or (payload, message), from `ready` on, one at a time.

        Its failure makes the message a dead letter, and the next one comes. Options and errors: see `subscribe`.
        """
        if not isinstance(topic, (str, Topic)):
            raise LocalProtocolError(misuse(topic, 'a Topic or a pattern, as in @ipc.subscriber("orders.>")'))

        def register(function: F) -> F:
            refuse_async(function, "a subscriber")
            messages = self.subscribe(topic, queue=queue, max_pending=max_pending, overflow=overflow)
            messages.function = function
            messages.wants_message = check_subscriber(topic, function)
            self._subscribers.append(messages)
            if self._delivering:
                messages.__enter__()
            return function

        return register

    # serving

    @overload
    def handler(
        self, method: Method[Req, Rep]
    ) -> Callable[[Callable[[Req], Rep] | Callable[[Req, IpcMessage[Req]], Rep]], Callable[..., Rep]]: ...

    @overload
    def handler(
        self, method: Stream[Req, Item]
    ) -> Callable[
        [Callable[[Req], Iterable[Item]] | Callable[[Req, IpcMessage[Req]], Iterable[Item]]],
        Callable[..., Iterable[Item]],
    ]: ...

    @overload
    def handler(
        self, method: Channel[Send, Receive]
    ) -> Callable[[Callable[[IpcChannel[Receive, Send]], None]], Callable[..., None]]: ...

    @overload
    def handler(self, method: str) -> Callable[[F], F]: ...

    def handler(self, method: Method[Any, Any] | Stream[Any, Any] | Channel[Any, Any] | str) -> Callable[[Any], Any]:
        """Register the decorated plain function; a generator for a stream.

        It takes (payload) or (payload, message); (channel) for a channel. A contract carries the full address; a plain
        name is relative to this worker, and a generator function registered by one serves a stream. Handlers run one
        at a time, in the home thread: a generator is stepped between requests as its reader gives credit, a channel
        function runs until it returns, so requests wait for it (other links are read meanwhile).

        A stream's generator is closed when its reader goes. A channel function's return closes the channel from its
        side, an exception resets it; `send` and `receive` raise StreamReset when the other side has given it up.

        Raises:
            TypeError: an `async def`: a blocking endpoint has no event loop to run it.
            LocalProtocolError: the name is taken or another worker's, `method` is no contract and no name, the
                signature does not fit, or an annotation contradicts the contract.
        """
        check_servable(method)

        def register(function: Any) -> Any:
            refuse_async(function, "a handler")
            self._registry.add(method, function)
            return function

        return register

    # for the three that inherit

    def _deliver(self) -> None:
        """Enter the subscriptions of `subscriber` functions, now and from now on."""
        self._delivering = True
        for messages in self._subscribers:
            messages.__enter__()


def _call(
    method: Method[Any, Any] | str,
    payload: Any,
    contract: Method[Any, Any] | None,
    *,
    timeout: float | None,
    to: Peer | None = None,
    slot: int | None = None,
    key: str | None = None,
    headers: dict[str, str] | None = None,
) -> Call:
    name, encoded = request_payload(method, payload)
    return Call(
        name,
        encoded,
        timeout=_budget(contract, timeout),
        to=to,
        slot=slot,
        key=key,
        headers=with_trace(headers),
        idempotent=contract is not None and contract.idempotent,
        declared=contract.errors if contract is not None else (),
    )


def _budget(contract: Method[Any, Any] | None, timeout: float | None) -> float:
    return seconds_for(contract, timeout, deadline=current_deadline.get(), now=time.monotonic())


def _outcome(call: Call, contract: Method[Any, Any] | None) -> Outcome[Any]:
    try:
        return Outcome(call.instance, decoded_reply(call.result(), contract, None, call.method))
    except Exception as error:
        if not isinstance(error, SmartIpcError) and not isinstance(error, call.declared):
            raise
        return Outcome(call.instance, error=cast("SmartIpcError", error))


def refuse_async(function: Callable[..., Any], what: str) -> None:
    """Refuse a function that would need an event loop.

    Raises:
        TypeError: it is async.
    """
    plain = inspect.unwrap(function)
    if inspect.iscoroutinefunction(plain) or inspect.isasyncgenfunction(plain):
        name = getattr(function, "__qualname__", repr(function))
        raise TypeError(
            f"{name} is async, but {what} of a blocking endpoint must be a plain function: "
            "use the async flavour, or drop the async"
        )
