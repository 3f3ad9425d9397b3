"""Both flavours of serve and connect behind one blocking face, so that a conformance test is written once.

An async end lives on an event loop in a thread of its own; a blocking one has a thread in `serve_forever`. Either is
driven from the test's thread.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from certificates import client_context, server_context

import smartipc
from smartipc.ipc import sync

WAIT = 20.0


class Loop:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._turn, name="loop of an async end")
        self._thread.start()

    def _turn(self) -> None:
        self.loop.run_forever()
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(WAIT)

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        async def on_loop() -> Any:
            return function(*args, **kwargs)

        return self.run(on_loop())

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(WAIT)


class AsyncEnd:
    """An async client or server."""

    flavour = "async"

    def __init__(self, role: str, address: str, **options: Any) -> None:
        self._loop = Loop()
        opening = smartipc.serve if role == "server" else smartipc.connect

        async def opened() -> Any:
            return await opening(address, **options)

        try:
            self.it = self._loop.run(opened())
        except BaseException:
            self._loop.stop()
            raise

    def __getattr__(self, name: str) -> Any:
        if name in ("address", "name", "state", "clients"):
            return self._loop.call(lambda: getattr(self.it, name))
        member = getattr(self.it, name)
        if asyncio.iscoroutinefunction(member):
            return lambda *args, **kwargs: self._loop.run(member(*args, **kwargs))
        return lambda *args, **kwargs: self._loop.call(member, *args, **kwargs)

    def map(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        replies = self.it.map(*args, **kwargs)
        try:
            while True:
                try:
                    yield self._loop.run(anext(replies))
                except StopAsyncIteration:
                    return
        finally:
            self._loop.run(replies.aclose())

    def handler(self, method: Any) -> Callable[[Any], Any]:
        return lambda function: self._loop.call(self.it.handler(method), function)

    def subscriber(self, topic: Any) -> Callable[[Any], Any]:
        return lambda function: self._loop.call(self.it.subscriber(topic), function)

    @contextmanager
    def subscribe(self, *args: Any, **kwargs: Any) -> Iterator[AsyncMessages]:
        messages = self._loop.call(self.it.subscribe, *args, **kwargs)
        self._loop.run(messages.__aenter__())
        try:
            yield AsyncMessages(self._loop, messages)
        finally:
            self._loop.run(messages.__aexit__(None, None, None))

    def open_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._opened(self.it.open_stream, *args, **kwargs)

    def open_channel(self, *args: Any, **kwargs: Any) -> Any:
        return self._opened(self.it.open_channel, *args, **kwargs)

    @contextmanager
    def _opened(self, opening: Callable[..., Any], *args: Any, **kwargs: Any) -> Iterator[AsyncFlow]:
        opener = self._loop.call(opening, *args, **kwargs)
        flow = self._loop.run(opener.__aenter__())
        try:
            yield AsyncFlow(self._loop, flow)
        finally:
            self._loop.run(opener.__aexit__(None, None, None))

    def submit(self, function: Callable[[], Any]) -> threading.Thread:
        thread = threading.Thread(target=function)
        thread.start()
        return thread

    def close(self, grace: float = 5.0) -> None:
        self._loop.run(self.it.aclose(grace))

    def stop(self) -> None:
        """Close, and end the loop."""
        self.close()
        self._loop.stop()


class AsyncMessages:
    """A subscription of an async end."""

    def __init__(self, loop: Loop, messages: Any) -> None:
        self._loop = loop
        self._messages = messages

    @property
    def dropped(self) -> int:
        return self._messages.dropped  # type: ignore[no-any-return]

    def receive(self, timeout: float = WAIT) -> Any:
        async def one() -> Any:
            try:
                async with asyncio.timeout(timeout):
                    return await anext(self._messages)
            except (TimeoutError, StopAsyncIteration):
                return None

        return self._loop.run(one())


class AsyncFlow:
    """A stream or channel that an async end opened."""

    def __init__(self, loop: Loop, flow: Any) -> None:
        self._loop = loop
        self._flow = flow

    def receive(self) -> Any:
        return self._loop.run(self._flow.receive())

    def send(self, item: Any) -> None:
        self._loop.run(self._flow.send(item))

    def close_sending(self) -> None:
        self._loop.run(self._flow.close_sending())

    def __iter__(self) -> Iterator[Any]:
        async def rest() -> list[Any]:
            return [item async for item in self._flow]

        return iter(self._loop.run(rest()))


class SyncEnd:
    """A blocking client or server, whose home thread serves."""

    flavour = "sync"

    def __init__(self, role: str, address: str, **options: Any) -> None:
        self.it = sync.serve(address, **options) if role == "server" else sync.connect(address, **options)
        self._failure: BaseException | None = None
        self._serving = threading.Thread(target=self._serve, name=f"blocking {role}")
        self._serving.start()

    def _serve(self) -> None:
        try:
            self.it.serve_forever()
        except BaseException as error:
            self._failure = error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.it, name)

    @contextmanager
    def subscribe(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        with self.it.subscribe(*args, **kwargs) as messages:
            yield messages

    def submit(self, function: Callable[[], Any]) -> threading.Thread:
        thread = threading.Thread(target=function)
        thread.start()
        return thread

    def close(self, grace: float = 5.0) -> None:
        self.it.close(grace)
        self._serving.join(WAIT)
        assert not self._serving.is_alive()
        if self._failure is not None:
            raise self._failure

    stop = close


ENDS = {"async": AsyncEnd, "sync": SyncEnd}
TRANSPORTS = ("unix", "abstract", "ipc", "pipe", "fd", "tcp", "tls")
SECRET = "a token of the tests"


class Place:
    """An address of a transport and what both sides need to meet there."""

    def __init__(self, transport: str, folder: Path) -> None:
        self.transport = transport
        self.server_options: dict[str, Any] = {}
        self.client_options: dict[str, Any] = {}
        unique = folder.name
        match transport:
            case "unix":
                self.server = self.client = f"unix://{folder}/s.sock"
            case "abstract":
                self.server = self.client = f"unix:@{unique}"
            case "ipc":
                self.server = self.client = f"ipc://{unique}"
            case "pipe":
                self.server = self.client = f"pipe://{folder}/p"
            case "tcp":
                self.server = self.client = "tcp://127.0.0.1:0"
                self.server_options = self.client_options = {"token": SECRET}
            case "tls":
                self.server = self.client = "tls://localhost:0"
                self.server_options = {"token": SECRET, "tls": server_context()}
                self.client_options = {"token": SECRET, "tls": client_context()}
            case "fd":
                near, far = socket.socketpair()
                self.server, self.client = f"fd://{near.detach()}", f"fd://{far.detach()}"
            case _:
                raise AssertionError(transport)

    @property
    def lasting(self) -> bool:
        """Whether it can be connected to again."""
        return self.transport != "fd"


class Pair:
    """A server and its clients at one place."""

    def __init__(self, place: Place, server: str, client: str) -> None:
        self.place = place
        self._client_flavour = client
        self._ends: list[Any] = []
        self.server = self._made(server, "server", place.server, name="srv", **place.server_options)
        if place.transport in ("tcp", "tls"):
            place.client = self.server.address
        self.client = self.join("one")

    def _made(self, flavour: str, role: str, address: str, **options: Any) -> Any:
        end = ENDS[flavour](role, address, **options)
        self._ends.append(end)
        return end

    def join(self, name: str, **options: Any) -> Any:
        """Connect one more client."""
        return self._made(
            self._client_flavour, "client", self.place.client, name=name, **(self.place.client_options | options)
        )

    def successor(self, name: str = "srv2") -> Any:
        """Start another server where the closed one was."""
        return self._made(self.server.flavour, "server", self.client.it.address, name=name, **self.place.server_options)

    def peer(self, name: str = "one") -> Any:
        """Return a client as the server lists it, once it does."""
        from kit import wait_for

        return wait_for(lambda: next((one for one in self.server.clients if one.name == name), None), f"{name} listed")

    def close(self) -> None:
        failures = []
        for end in reversed(self._ends):
            try:
                end.stop()
            except BaseException as error:
                failures.append(error)
        assert failures == []


async def drawn(items: Iterable[Any]) -> AsyncIterator[Any]:
    """Yield items as an async source."""
    for item in items:
        yield item
