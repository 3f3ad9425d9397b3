"""`map` of the blocking endpoints: rows of calls (rows.py) over links that whoever waits reads, without threads.

What goes the long way is a Call that the router drives, as `request` would.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Any

from smartipc.ipc.contracts import Method
from smartipc.ipc.drivers.base import Direct, Resume
from smartipc.ipc.errors import SmartIpcError
from smartipc.ipc.message import Peer
from smartipc.ipc.rows import Failed, Row, Run
from smartipc.ipc.sync.call import Call
from smartipc.ipc.sync.router import Router
from smartipc.ipc.tracing import with_trace
from smartipc.ipc.wire import codec


class SyncRun(Run):
    """The calls under way of one map.

    Args:
        router: where they go.
        to: the peer that is asked; None for any. The others: see Run.
    """

    def __init__(
        self,
        router: Router,
        method: Method[Any, Any],
        budget: Callable[[], float],
        *,
        concurrency: int,
        ordered: bool,
        to: Peer | None,
    ) -> None:
        direct = router.direct if to is None else None
        super().__init__(direct, method, budget, concurrency=concurrency, ordered=ordered)
        self._router = router
        self._to = to
        self._diverted: deque[tuple[Row, int, Resume | None]] = deque()
        """What is to go the long way; appended to by whatever thread reads."""
        self._calls: dict[Call, tuple[Row, int]] = {}

    def post(self, row: Row, direct: Direct, timeout: float) -> None:
        """Send a row; see Run."""
        if isinstance(row.encoded, bytes):
            direct.link.post(self.method.name, row.encoded, row, timeout=timeout)
        else:
            direct.link.post_all(self.method.name, row.encoded, len(row.values), row, timeout=timeout)

    def detour(self, row: Row, index: int, resume: Resume | None = None) -> None:
        """Leave one call to `wait`; see Run."""
        self._diverted.append((row, index, resume))

    def wake(self) -> None:
        """Do nothing: whoever reads for another thread wakes it."""

    def wait(self) -> None:
        """Wait until `take` would give something."""
        while True:
            while self._diverted:
                self._divert_to_router(*self._diverted.popleft())
            for call in [call for call in self._calls if call.done]:
                row, index = self._calls.pop(call)
                row.settle(index, self._outcome(call))
            if self.ready:
                return
            links = {row.direct.link for row in self.open if row.left and row.direct is not None}
            self._router.drive(tuple(self._calls), links, lambda: self.ready or bool(self._diverted))

    def _divert_to_router(self, row: Row, index: int, resume: Resume | None) -> None:
        method = self.method
        try:
            call = Call(
                method.name,
                row.payload_of(index),
                timeout=self.budget(),
                to=self._to,
                headers=with_trace(None),
                idempotent=method.idempotent,
                declared=method.errors,
            )
            if resume is None:
                self._router.start(call)
            else:
                call.deadline = resume.began + call.timeout
                self._router.resume(call, resume)
        except SmartIpcError as error:
            row.settle(index, Failed(error))
        else:
            self._calls[call] = row, index

    def _outcome(self, call: Call) -> Any:
        if call.error is not None:
            return Failed(call.error)
        try:
            return codec.decode(call.result(), self.method.reply, method=self.method.name)
        except SmartIpcError as error:
            return Failed(error)

    def cancel(self) -> None:
        """Give up what is under way."""
        self.withdraw()
        for call in self._calls:
            self._router.cancel(call)


def mapped(run: SyncRun, source: Iterator[Any]) -> Generator[Any, None, None]:
    """Yield the replies; see Endpoint.map."""
    more = True
    try:
        while True:
            if more:
                more = run.fill(source)
            if not run.count:
                return
            run.wait()
            for value in run.take():
                run.count -= 1
                if type(value) is Failed:
                    raise value.error
                yield value
                if more and run.count <= run.low:
                    more = run.fill(source)
    finally:
        run.cancel()
