"""The supervisor as a caller: an ordinary async handle in its own process, for `smartipc request` and its kin.

It carries what a person types, never what workers say to each other.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import Any, TypeVar

from smartipc.ipc import control
from smartipc.ipc.contracts import Method
from smartipc.ipc.control import Entry, Launch
from smartipc.ipc.errors import LocalProtocolError
from smartipc.ipc.handle import SmartIpc
from smartipc.ipc.hearing import Messages
from smartipc.ipc.message import Outcome
from smartipc.ipc.resilience.dead_letters import DeadLetter
from smartipc.ipc.routing.directory import Directory
from smartipc.ipc.wire import codec
from smartipc.supervisor.directory import Book

P = TypeVar("P")
R = TypeVar("R")
GENERATION = 1


class LocalPort:
    """The control port of the supervisor's own handle: straight into the book."""

    def __init__(self, book: Book, publish_directory: Any) -> None:
        self._book = book
        self._publish_directory = publish_directory

    def notify(self, method: Method[P, Any], payload: P) -> None:
        """Ignore: nobody watches the supervisor's handle."""

    def call(self, method: Method[P, R], payload: P) -> Future[R]:
        """Subscribe or unsubscribe."""
        future: Future[Any] = Future()
        if isinstance(payload, control.SubscribeRequest):
            self._book.subscribe(payload.subscription(control.SUPERVISOR, GENERATION))
            self._publish_directory()
            self._book.barrier(lambda: future.set_result(None) if not future.done() else None)
        elif isinstance(payload, control.UnsubscribeRequest):
            self._book.unsubscribe((control.SUPERVISOR, GENERATION, payload.number))
            self._publish_directory()
            future.set_result(None)
        else:
            future.set_exception(LocalProtocolError(f"{method.name} is not for the supervisor itself"))
        return future

    def turned(self) -> None:
        """Ignore."""


class Operator:
    """Calls, publishes and listens on behalf of commands.

    Args:
        app: the app's name.
        address: where the supervisor's handle listens, for published messages.
        pid: our own.
        book: the directory.
        publish_directory: sends pending changes of the book to everybody.
        retained: folder of the last values of retained topics.
    """

    def __init__(
        self, app: str, address: str, pid: int, book: Book, publish_directory: Any, retained: str = ""
    ) -> None:
        self.directory = Directory()
        launch = Launch(
            app=app,
            worker=control.SUPERVISOR,
            slot=0,
            generation=GENERATION,
            target="",
            run_id="",
            address=address,
            retained=retained,
        )
        book.set(Entry(control.SUPERVISOR, control.SUPERVISOR, 0, GENERATION, pid, "ready", address))
        self._ipc = SmartIpc(launch, self.directory, LocalPort(book, publish_directory))

    def __repr__(self) -> str:
        return f"<Operator {self._ipc!r}>"

    @property
    def ipc(self) -> SmartIpc:
        """The handle itself."""
        return self._ipc

    async def open(self) -> None:
        """Listen."""
        await self._ipc._open()  # noqa: SLF001 - we are its runtime

    async def close(self) -> None:
        """Stop listening and calling."""
        await self._ipc._close(0.5)  # noqa: SLF001 - its life is led here

    async def request(self, call: control.CallRequest) -> control.CallOutcome:
        """Make one call; its error is part of the outcome."""
        try:
            value = await self._ipc.request(call.address, call.payload, slot=call.slot, timeout=call.timeout)
        except Exception as error:  # whatever it is, the person is told
            return _failed("", error)
        return control.CallOutcome("", value)

    async def broadcast(self, call: control.CallRequest) -> list[control.CallOutcome]:
        """Ask every instance.

        Raises:
            NoSuchWorker: there is no such worker.
        """
        outcomes: list[Outcome[Any]] = await self._ipc.broadcast(call.address, call.payload, timeout=call.timeout)
        return [
            control.CallOutcome(one.instance, one.value) if one.error is None else _failed(one.instance, one.error)
            for one in outcomes
        ]

    async def publish(self, request: control.PublishRequest) -> None:
        """Publish once."""
        await self._ipc.publish(request.topic, request.payload)

    async def send_again(self, letter: DeadLetter) -> bool:
        """Send a dead letter again, to whom it was for; tell whether there was somebody.

        Raises:
            SmartIpcError: it could not be sent.
        """
        if letter.kind == "message":
            publisher = self._ipc._publisher  # noqa: SLF001 - we are its runtime
            return await publisher.send_again(letter.worker, letter.pattern, letter.address, letter.payload)
        await self._ipc.notify(letter.address, codec.plain(letter.payload), timeout=5.0)
        return True

    def subscribe(self, pattern: str) -> Messages[Any]:
        """Return a subscription to enter."""
        return self._ipc.subscribe(pattern)

    @staticmethod
    async def next_messages(messages: Messages[Any], wait: float) -> list[control.WatchedMessage]:
        """Return what has arrived, waiting up to `wait` seconds for the first."""
        found: list[control.WatchedMessage] = []
        while len(found) < 1000:
            try:
                async with asyncio.timeout(wait if not found else 0):
                    message = await anext(messages)
            except (TimeoutError, StopAsyncIteration):
                break
            found.append(
                control.WatchedMessage(
                    message.topic, codec.to_builtins(message.payload), message.sender, message.timestamp
                )
            )
        return found


def _failed(instance: str, error: BaseException) -> control.CallOutcome:
    name = getattr(error, "type_name", type(error).__name__)
    return control.CallOutcome(instance, None, str(name), str(error))
