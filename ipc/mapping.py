"""`map` of the async endpoints: rows of calls (rows.py) over links of the running loop, without a task for each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

from smartipc.ipc.contracts import Method
from smartipc.ipc.drivers.base import Direct, Resume
from smartipc.ipc.rows import Failed, Row, Run
from smartipc.ipc.tracing import with_trace
from smartipc.ipc.wire import codec


class AsyncRun(Run):
    """The calls under way of one map.

    Args:
        long: `request` of the router, with what the map was told about where calls go; the others: see Run.
    """

    def __init__(
        self,
        direct: Callable[[str], Direct | None] | None,
        long: Callable[..., Awaitable[bytes]],
        method: Method[Any, Any],
        budget: Callable[[], float],
        *,
        concurrency: int,
        ordered: bool,
    ) -> None:
        super().__init__(direct, method, budget, concurrency=concurrency, ordered=ordered)
        self._long = long
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake: asyncio.Future[None] | None = None

    async def fill_from(self, source: AsyncIterator[Any]) -> bool:
        """As `fill`, from a source that may suspend."""
        while self.count < self.concurrency:
            try:
                self.begin(await anext(source))
            except StopAsyncIteration:
                return False
        return True

    def post(self, row: Row, direct: Direct, timeout: float) -> None:
        """Send a row; see Run."""
        if isinstance(row.encoded, bytes):
            direct.link.post(self.method.name, row.encoded, row, timeout=timeout)
        else:
            direct.link.post_all(self.method.name, row.encoded, len(row.values), row, timeout=timeout)

    def detour(self, row: Row, index: int, resume: Resume | None = None) -> None:
        """Let a task bring one call's answer; see Run."""
        task = asyncio.get_running_loop().create_task(self._follow(row, index, row.payload_of(index), resume))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _follow(self, row: Row, index: int, encoded: bytes, resume: Resume | None) -> None:
        method = self.method
        try:
            reply = await self._long(
                method.name,
                encoded,
                timeout=self.budget(),
                headers=with_trace(None),
                idempotent=method.idempotent,
                declared=method.errors,
                resume=resume,
            )
            value = codec.decode(reply, method.reply, method=method.name)
        except Exception as error:
            value = Failed(error)
        row.settle(index, value)

    def wake(self) -> None:
        """Let `wait` look again; see Run."""
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def wait(self) -> None:
        """Wait until `take` would give something."""
        while not self.ready:
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake

    async def cancel(self) -> None:
        """Give up what is under way."""
        self.withdraw()
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def mapped(run: AsyncRun, payloads: Iterable[Any] | AsyncIterable[Any]) -> AsyncGenerator[Any, None]:
    """Yield the replies; see Endpoint.map."""
    from_afar = aiter(payloads) if isinstance(payloads, AsyncIterable) else None
    source = iter(()) if isinstance(payloads, AsyncIterable) else iter(payloads)
    more = True
    try:
        while True:
            if more:
                more = run.fill(source) if from_afar is None else await run.fill_from(from_afar)
            if not run.count:
                return
            await run.wait()
            for value in run.take():
                run.count -= 1
                if type(value) is Failed:
                    raise value.error
                yield value
                if more and run.count <= run.low:
                    more = run.fill(source) if from_afar is None else await run.fill_from(from_afar)
    finally:
        await run.cancel()
