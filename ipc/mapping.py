"""`map` of the async endpoints: many calls under way without a task for each.

A call takes the short way: encoded, put on a direct link, its answer put into its `Place` by that link. Whatever cannot
go that way, or fails there, gets a task that goes the long way. Choosing instances and meaning of failures: routing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

from smartipc.ipc.contracts import Method
from smartipc.ipc.dispatch import request_payload
from smartipc.ipc.drivers.base import Direct, Resume
from smartipc.ipc.errors import ConnectionLost, SmartIpcError
from smartipc.ipc.tracing import with_trace
from smartipc.ipc.wire import codec

_SHARE = 32
"""Of that many calls under way, one more goes to the instance that was chosen last before it is chosen anew."""
_MOST = 16


class Place:
    """One call of a map. A link sets its result or exception, as it would a future's."""

    __slots__ = ("_run", "began", "direct", "encoded", "error", "finished", "ident", "task", "value")

    def __init__(self, run: Run) -> None:
        self._run = run
        self.direct: Direct | None = None
        self.ident = 0
        self.encoded = b""
        self.began = 0.0
        self.task: asyncio.Task[None] | None = None
        self.value: Any = None
        self.error: BaseException | None = None
        self.finished = False

    def done(self) -> bool:
        """Tell whether it has its answer."""
        return self.finished

    def set_result(self, reply: bytes) -> None:
        """Take the reply's payload."""
        direct = self.direct
        if direct is not None and direct.circuit is not None:
            direct.circuit.passed(self.began)
        try:
            self.value = codec.decode(reply, self._run.method.reply, method=self._run.method.name)
        except SmartIpcError as error:
            self.error = error
        self._finish()

    def set_exception(self, failure: SmartIpcError) -> None:
        """Go the long way on from a failure of the short one."""
        self._run.detour(self, self._run.resumed(self, self.direct, failure))

    async def follow(self, work: Awaitable[Any]) -> None:
        """Take what the long way returns or raises."""
        try:
            self.value = await work
        except Exception as error:
            self.error = error
        self._finish()

    def _finish(self) -> None:
        self.finished = True
        self._run.arrived(self)

    def result(self) -> Any:
        """Return the reply or raise the error."""
        if self.error is not None:
            raise self.error
        return self.value


class Run:
    """The calls under way of one map.

    Args:
        direct: gives the link for the next call, or None.
        long: `request` of the router.
        request: `request` of the endpoint.
        method: the contract.
        budget: gives the seconds for the next call.
        share: calls in a row that may go to the same instance.
    """

    def __init__(
        self,
        direct: Callable[[str], Direct | None] | None,
        long: Callable[..., Awaitable[bytes]],
        request: Callable[[Any], Awaitable[Any]],
        method: Method[Any, Any],
        budget: Callable[[], float],
        share: int,
    ) -> None:
        self.method = method
        self.places: set[Place] = set()
        self.finished: deque[Place] = deque()
        self._direct = direct
        self._long = long
        self._request = request
        self._budget = budget
        self._share = share
        self._chosen: Direct | None = None
        self._again = 0
        self._wake: asyncio.Future[None] | None = None
        self.wanted: Place | None = None
        """The one that is waited for; None for any."""

    def start(self, payload: Any) -> Place:
        """Begin a call."""
        place = Place(self)
        self.places.add(place)
        direct = self._choose()
        headers = with_trace(None)
        if direct is None or headers is not None:
            self.detour(place, self._request(payload))
            return place
        try:
            _, place.encoded = request_payload(self.method, payload)
            place.direct = direct
            place.began = asyncio.get_running_loop().time()
            place.ident = direct.link.post(self.method.name, place.encoded, place, timeout=self._budget())
        except ConnectionLost:
            self.detour(place, self._request(payload))
        except SmartIpcError as error:
            place.error = error
            place.finished = True
            self.arrived(place)
        return place

    def _choose(self) -> Direct | None:
        chosen = self._chosen
        if chosen is not None and self._again > 0 and not chosen.link.closed:
            self._again -= 1
            return chosen
        self._again = self._share - 1
        self._chosen = self._direct(self.method.name) if self._direct is not None else None
        return self._chosen

    def detour(self, place: Place, work: Awaitable[Any]) -> None:
        """Let a task bring the answer."""
        place.direct = None
        place.task = asyncio.get_running_loop().create_task(place.follow(work))

    async def resumed(self, place: Place, direct: Direct | None, failure: SmartIpcError) -> Any:
        """Go on with a call whose first attempt failed."""
        method = self.method
        assert direct is not None
        reply = await self._long(
            method.name,
            place.encoded,
            timeout=self._budget(),
            idempotent=method.idempotent,
            declared=method.errors,
            resume=Resume(direct.target, failure, place.began),
        )
        return codec.decode(reply, method.reply, method=method.name)

    def arrived(self, place: Place) -> None:
        """Note an answer."""
        self.finished.append(place)
        if self._wake is not None and (self.wanted is None or self.wanted is place) and not self._wake.done():
            self._wake.set_result(None)

    async def wait(self, wanted: Place | None) -> None:
        """Wait for the answer of one call, or of any."""
        self.wanted = wanted
        while not (self.finished if wanted is None else wanted.finished):
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake

    async def cancel(self) -> None:
        """Give up what is under way."""
        tasks = []
        for place in self.places:
            if place.finished:
                continue
            if place.task is not None:
                place.task.cancel()
                tasks.append(place.task)
            elif place.direct is not None:
                place.direct.link.cancel(place.ident)
        await asyncio.gather(*tasks, return_exceptions=True)


def share_of(concurrency: int) -> int:
    """Return how many calls in a row may go to one instance without unbalancing the others."""
    return max(1, min(_MOST, concurrency // _SHARE))


async def mapped(
    run: Run, payloads: Iterable[Any] | AsyncIterable[Any], *, concurrency: int, ordered: bool
) -> AsyncGenerator[Any, None]:
    """Yield the replies, at most `concurrency` calls under way or waiting for their turn; see Endpoint.map."""
    source = aiter(payloads) if isinstance(payloads, AsyncIterable) else iter(payloads)
    queue: deque[Place] = deque()
    more = True
    try:
        while True:
            while more and len(run.places) < concurrency:
                try:
                    payload = next(source) if not isinstance(source, AsyncIterator) else await anext(source)
                except (StopIteration, StopAsyncIteration):
                    more = False
                else:
                    queue.append(run.start(payload))
            if not run.places:
                return
            if ordered:
                place = queue.popleft()
                if not place.finished:
                    await run.wait(place)
                run.finished.clear()
                run.places.discard(place)
                yield place.result()
                continue
            await run.wait(None)
            queue.clear()
            ready, run.finished = run.finished, deque()
            run.places.difference_update(ready)
            while ready:
                yield ready.popleft().result()
    finally:
        await run.cancel()
