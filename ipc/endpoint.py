"""The public verbs of the async flavour, written once: what a worker, a client and a server can say and hear.

A verb checks and encodes, then hands over to a Router (see router.py), which knows where things go. No links, waiting
or retries in here. The blocking twin is sync/endpoint.py; a test keeps the two from drifting.

Longer than other files: overloads and docstrings of a dozen verbs; the code of each is short.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, cast, overload

from smartipc.ipc.bursts import NotifyBurst
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
from smartipc.ipc.drivers.aio import Link
from smartipc.ipc.drivers.base import RemoteFault, Resume
from smartipc.ipc.drivers.inheritance import Refusing, in_child
from smartipc.ipc.errors import ConnectionLost, LocalProtocolError, RequestTimeout, SmartIpcError, WorkerDied
from smartipc.ipc.flows import Reception, opening
from smartipc.ipc.hearing import Messages, deliver
from smartipc.ipc.mapping import AsyncRun, mapped
from smartipc.ipc.message import IpcMessage, Outcome, Peer
from smartipc.ipc.options import LOOK_AHEAD, CallOptions, MapOptions, SubscribeOptions
from smartipc.ipc.publications import headed, published
from smartipc.ipc.publishing import TopicBurst
from smartipc.ipc.resilience.dead_letters import DeadLetters
from smartipc.ipc.router import Router
from smartipc.ipc.streaming import IpcChannel, Items, Opener
from smartipc.ipc.tracing import Handled, current_deadline, outside, with_trace, within
from smartipc.ipc.transports.memory import new_buffer
from smartipc.ipc.wire import codec

if TYPE_CHECKING:
    from smartipc.ipc.wire.buffer import Buffer

Req = TypeVar("Req")
Rep = TypeVar("Rep")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
H = TypeVar("H")
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
        self._loop = asyncio.get_running_loop()
        self._subscribers: list[tuple[Messages[Any], Callable[..., Any], bool]] = []
        self._background: set[asyncio.Task[None]] = set()
        self._delivering = False
        self._burst: NotifyBurst | None = None
        self._burst_method: Method[Any, Any] | None = None
        self._topic_burst: TopicBurst | None = None
        self._published_within: Handled | None = None
        """What was being handled when the last message was published: a burst is of one trace."""
        self._letters: DeadLetters | None = None
        self._letter_name = ""
        self._inherited = False
        in_child(self, Endpoint._leave_to_parent)

    def _leave_to_parent(self) -> None:
        """Refuse everything from now on: this is a copy in a forked child."""
        self._inherited = True
        self._router = cast("Router", Refusing())
        self._burst = self._topic_burst = None

    # requests

    @overload
    async def request(self, method: Method[Req, Rep], payload: Req, **options: Unpack[CallOptions]) -> Rep: ...

    @overload
    async def request(
        self, method: str, payload: Any = None, *, reply_type: type[T], **options: Unpack[CallOptions]
    ) -> T: ...

    @overload
    async def request(self, method: str, payload: Any = None, **options: Unpack[CallOptions]) -> Any: ...

    async def request(
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

        Cancelling the caller cancels the handler.

        Raises:
            RequestTimeout: no reply in time, or no instance became ready in time.
            WorkerDied, ConnectionLost: the instance was lost; `processed` says what is known of the call.
            NoSuchWorker, NoSuchMethod, Overloaded, InvalidPayload, RemoteError: what they say.
            Exception: an error that the contract declares, as itself.
        """
        if self._topic_burst is not None:
            self._end_burst()
        if reply_type is not None:
            codec.check_type(reply_type, "reply_type")
        name, encoded = request_payload(method, payload)
        headers = with_trace(headers)
        contract = method if isinstance(method, Method) else None
        budget = _budget(contract, timeout)
        resume: Resume | None = None
        direct = self._router.direct(name) if to is None and slot is None and key is None else None
        if direct is not None and not direct.link.closed:
            link, target = direct.link, direct.target
            began = self._loop.time()
            ident = 0
            try:
                ident, future = link.begin(name, encoded, timeout=budget, headers=headers)
                reply = await future
            except (RemoteFault, RequestTimeout, ConnectionLost) as failure:
                resume = Resume(target, failure, began)
            except asyncio.CancelledError:
                link.cancel(ident)
                raise
            else:
                if direct.circuit is not None:
                    direct.circuit.passed(began)
                return decoded_reply(reply, contract, reply_type, name)
        reply = await self._router.request(
            name,
            encoded,
            timeout=budget,
            to=to,
            slot=slot,
            key=key,
            headers=headers,
            idempotent=contract is not None and contract.idempotent,
            declared=contract.errors if contract is not None else (),
            resume=resume,
        )
        return decoded_reply(reply, contract, reply_type, name)

    async def notify(
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

        Cancelling it while it waits for an instance sends nothing; later it may have been sent.

        Raises:
            RequestTimeout: no instance became ready within `timeout` seconds; the message is a dead letter.
            NoSuchWorker, WorkerDied, InvalidPayload, FrameTooLarge: as request.
        """
        burst = self._burst
        if burst is not None and method is self._burst_method and to is None and slot is None and key is None:
            if headers is None and timeout is None and within() is None and burst.add(payload):
                return
            self._burst = None
        if self._topic_burst is not None:
            self._end_burst()
        name, encoded = request_payload(method, payload)
        headers = with_trace(headers)
        plain = to is None and slot is None and key is None and timeout is None and current_deadline.get() is None
        direct = self._router.direct(name) if plain else None
        if direct is not None and not direct.link.closed:
            link = direct.link
            with contextlib.suppress(ConnectionLost):  # it ended just now: nothing was written
                link.notify(name, encoded, headers=headers)
                if link.congested:
                    await link.drained()
                elif direct.only and link.connection.batch_is_open and isinstance(method, Method):
                    self._burst = NotifyBurst(link, method.request)
                    self._burst_method = method
                return
        contract = method if isinstance(method, Method) else None
        until = time.monotonic() + _budget(contract, timeout)
        while True:
            left = max(0.0, until - time.monotonic())
            try:
                link = await self._router.reach(name, timeout=left, to=to, slot=slot, key=key)
            except (RequestTimeout, WorkerDied) as error:
                if self._letters is not None:
                    self._letters.add(
                        "notify", name, encoded, sender=self._letter_name, reason=_reason(error), attempts=0
                    )
                raise
            with contextlib.suppress(ConnectionLost):  # it ended just now: nothing was written
                link.notify(name, encoded, headers=headers)
                await link.drained()
                return

    async def broadcast(
        self, method: Method[Req, Rep] | str, payload: Req | Any = None, *, timeout: float | None = None
    ) -> list[Outcome[Rep]]:
        """Ask every live instance of a worker, or every client, and return one Outcome each; partial results are kept.

        Cancelling it cancels every call that is still under way.

        Raises:
            NoSuchWorker, InvalidPayload: as request; errors of single instances are in their outcomes.
        """
        name, encoded = request_payload(method, payload)
        contract = method if isinstance(method, Method) else None
        declared = contract.errors if contract is not None else ()
        answers = await self._router.broadcast(
            name, encoded, timeout=_budget(contract, timeout), headers=with_trace(None), declared=declared
        )
        return [_outcome(instance, answer, contract, name) for instance, answer in answers]

    @overload
    def map(
        self, method: Method[Req, Rep], payloads: Iterable[Req] | AsyncIterable[Req], **options: Unpack[MapOptions]
    ) -> AsyncIterator[Rep]: ...

    @overload
    def map(
        self,
        method: str,
        payloads: Iterable[Any] | AsyncIterable[Any],
        *,
        reply_type: Any = None,
        **options: Unpack[MapOptions],
    ) -> AsyncIterator[Any]: ...

    def map(
        self,
        method: Method[Any, Any] | str,
        payloads: Iterable[Any] | AsyncIterable[Any],
        *,
        concurrency: int = LOOK_AHEAD,
        ordered: bool = True,
        timeout: float | None = None,
        to: Peer | None = None,
        reply_type: Any = None,
    ) -> AsyncIterator[Any]:
        """Call once per payload, at most `concurrency` under way, and yield the replies, in order if `ordered`.

        Payloads are drawn only as places come free. The first failure is raised at its place; leaving the iteration
        early cancels what is under way.

        For a method given by name `reply_type` is the type to decode the replies into.

        Raises:
            LocalProtocolError: `concurrency` is below 1, or `method` is neither a Method nor a name.
            Exception: as request.
        """
        check_count("concurrency", concurrency)
        method = contract_of(method, reply_type)
        run = AsyncRun(
            self._router.direct if to is None else None,
            functools.partial(self._router.request, to=to),
            method,
            lambda: _budget(method, timeout),
            concurrency=concurrency,
            ordered=ordered,
        )
        if self._topic_burst is not None:
            self._end_burst()
        return mapped(run, payloads)

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
        """Open a stream: `async with ipc.open_stream(contract, request) as items: async for item in items`.

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
        return Opener(
            self._router,
            lambda link: Items(link, name, Reception(item, name=name, declared=declared), None, self._router),
            name,
            encoded,
            timeout=_budget(None, timeout),
            to=to,
            slot=slot,
            key=key,
            headers=with_trace(headers),
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
        """Open a channel: `async with ipc.open_channel(contract) as channel`, then send, receive, iterate.

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

        def make(link: Link) -> IpcChannel[Send, Receive]:
            reception: Reception[Receive] = Reception(channel.receive, name=name, declared=declared, duplex=True)
            return IpcChannel(link, name, reception, channel.send, self._router)

        return Opener(
            self._router,
            make,
            name,
            codec.EMPTY,
            timeout=_budget(None, timeout),
            to=to,
            slot=slot,
            key=key,
            headers=with_trace(None),
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

    async def publish(
        self,
        topic: Topic[T] | str,
        payload: T | Any,
        *,
        retain: bool = False,
        headers: dict[str, str] | None = None,
    ) -> None:
        """Send to every subscription of the topic; waits while one whose policy is "block" has its window full.

        `headers` are strings that the subscribers see in their messages. Calls and messages from a handler, or from a
        subscriber's function, belong to its trace.

        With `retain` the value is kept as the topic's last, for whoever subscribes later, also when this process is
        gone by then. Cancelling it may leave the later subscriptions without the message, never a part of it.

        Raises:
            InvalidPayload: it does not fit the topic's type.
            FrameTooLarge: it exceeds the limit of a message, or the headers have more than 4 KiB.
            LocalProtocolError: `retain` where nothing is kept, or the headers are not strings by strings.
        """
        burst = self._topic_burst
        if burst is not None:
            if topic is burst.topic and not retain and headers is None and burst.add(payload):
                return
            self._end_burst()
        name, encoded = published(topic, payload)
        await self._router.publish(name, encoded, headers=headed(headers), retain=retain)
        before, self._published_within = self._published_within, within()
        if isinstance(topic, Topic) and not retain and headers is None and before is self._published_within:
            self._topic_burst = self._router.burst(topic)

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
            Overloaded: a subscription whose policy is "block" has its window full; nothing was sent.
            InvalidPayload, LocalProtocolError: as publish.
        """
        self._topic_burst = None
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
        """Subscribe to a topic or a pattern: `async with ipc.subscribe(t) as messages: async for message in messages`.

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
            wants = check_subscriber(topic, function)
            messages = self.subscribe(topic, queue=queue, max_pending=max_pending, overflow=overflow)
            self._subscribers.append((messages, function, wants))
            if self._delivering:
                self._feed(messages, function, wants)
            return function

        return register

    # serving

    @overload
    def handler(
        self, method: Method[Req, Rep]
    ) -> Callable[
        [Callable[[Req], Rep | Awaitable[Rep]] | Callable[[Req, IpcMessage[Req]], Rep | Awaitable[Rep]]],
        Callable[..., Rep | Awaitable[Rep]],
    ]: ...

    @overload
    def handler(
        self, method: Stream[Req, Item]
    ) -> Callable[
        [
            Callable[[Req], AsyncIterable[Item] | Iterable[Item]]
            | Callable[[Req, IpcMessage[Req]], AsyncIterable[Item] | Iterable[Item]]
        ],
        Callable[..., AsyncIterable[Item] | Iterable[Item]],
    ]: ...

    @overload
    def handler(
        self, method: Channel[Send, Receive]
    ) -> Callable[[Callable[[IpcChannel[Receive, Send]], Awaitable[None]]], Callable[..., Awaitable[None]]]: ...

    @overload
    def handler(self, method: str) -> Callable[[F], F]: ...

    def handler(self, method: Method[Any, Any] | Stream[Any, Any] | Channel[Any, Any] | str) -> Callable[[Any], Any]:
        """Register the decorated function: `def` or `async def` for a method, a generator for a stream.

        They take (payload) or (payload, message); `async def` for a channel takes (channel). A contract carries the
        full address; a plain name is relative to this worker, and a generator function registered by one serves a
        stream. A plain `def` and each step of a plain generator run on the event loop: keep them short.

        A stream's generator is closed when its reader goes. A channel function's return closes the channel from its
        side, an exception resets it; when the other side gives the channel up, a waiting `send` or `receive` raises
        StreamReset, and a function that waits for something else is cancelled.

        Raises:
            LocalProtocolError: the name is taken or another worker's, `method` is no contract and no name, the
                signature does not fit, or an annotation contradicts the contract.
        """
        check_servable(method)

        def register(function: Any) -> Any:
            self._registry.add(method, function)
            return function

        return register

    # for the three that inherit

    def _deliver(self) -> None:
        """Enter the subscriptions of `subscriber` functions, now and from now on."""
        self._delivering = True
        for messages, function, wants_message in self._subscribers:
            self._feed(messages, function, wants_message)

    def _feed(self, messages: Messages[Any], function: Callable[..., Any], wants_message: bool) -> None:
        worker = self._letter_name.rpartition(":")[0]
        work = deliver(messages, function, wants_message=wants_message, letters=self._letters, worker=worker)
        self._keep(self._loop.create_task(work, context=outside()))

    def _end_burst(self) -> None:
        self._topic_burst = None
        self._router.flush()

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def _budget(contract: Method[Any, Any] | None, timeout: float | None) -> float:
    return seconds_for(contract, timeout, deadline=current_deadline.get(), now=time.monotonic())


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _outcome(
    instance: str, answer: bytes | BaseException, contract: Method[Any, Any] | None, name: str
) -> Outcome[Any]:
    if isinstance(answer, BaseException):
        return Outcome(instance, error=cast("SmartIpcError", answer))
    try:
        return Outcome(instance, decoded_reply(answer, contract, None, name))
    except SmartIpcError as error:
        return Outcome(instance, error=error)
