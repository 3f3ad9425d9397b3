"""Streams and channels of the blocking handle: several workers in threads, a stage in the place of the supervisor."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Iterator

import msgspec
import pytest

from smartipc.ipc.contracts import Channel, Method, Stream
from smartipc.ipc.control import ExitFacts
from smartipc.ipc.errors import (
    ConnectionLost,
    EndOfStream,
    InvalidPayload,
    LocalProtocolError,
    NoSuchMethod,
    NoSuchWorker,
    RemoteError,
    RequestCancelled,
    RequestTimeout,
    StreamReset,
    WorkerDied,
)
from smartipc.ipc.message import IpcMessage
from smartipc.ipc.sync import SmartIpc
from smartipc.ipc.sync.streaming import IpcChannel
from smartipc.ipc.sync.testing import Stage
from smartipc.ipc.wire.buffer import Buffer


class Range(msgspec.Struct, frozen=True):
    stop: int


class Row(msgspec.Struct, frozen=True):
    number: int


class Refused(Exception):
    """Declared by the contracts."""


rows = Stream("w.rows", Range, Row, errors=(Refused,))
echo = Channel("w.echo", send=bytes, receive=bytes)
chat = Channel("w.chat", send=Range, receive=Row, errors=(Refused,))
ping = Method("w.ping", int, int)


@pytest.fixture
def stage() -> Iterator[Stage]:
    with tempfile.TemporaryDirectory(prefix="b-") as folder:
        yield Stage(folder)


class Worker:
    """A blocking worker that serves what the tests open."""

    def __init__(self) -> None:
        self.ended: list[str] = []
        self.produced = 0
        self.changed = threading.Condition()

    def note(self, what: str) -> None:
        with self.changed:
            self.ended.append(what)
            self.changed.notify_all()

    def wait_for(self, what: str) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: what in self.ended, 10), self.ended

    def __call__(self, ipc: SmartIpc) -> None:
        ipc.handler(ping)(lambda number: number)

        @ipc.handler(rows)
        def _(request: Range, message: IpcMessage[Range]) -> Iterator[Row]:
            assert message.sender.startswith("c:")
            if request.stop < 0:
                raise Refused(request.stop)
            try:
                for number in range(request.stop):
                    if number == 13 and request.stop == 20:
                        raise ValueError("unlucky")
                    self.produced += 1
                    yield Row(number)
            finally:
                self.note("rows over")

        @ipc.handler("blocks")
        def _(size: int) -> Iterator[bytes]:
            while True:
                self.produced += 1
                yield b"x" * size

        ipc.handler(Stream("w.list", int, int))(range)
        ipc.handler(Stream("w.misfit", int, int))(lambda _count: ["text"])  # type: ignore[arg-type,return-value]
        ipc.handler(Stream("w.wrong", int, int))(lambda _count: 3)  # type: ignore[arg-type,return-value]

        @ipc.handler(echo)
        def _(channel: IpcChannel[bytes, bytes]) -> None:
            try:
                for item in channel:
                    channel.send(item)
            except BaseException as error:
                self.note(type(error).__name__)
                raise
            self.note("echo over")

        @ipc.handler(chat)
        def _(channel: IpcChannel[Row, Range]) -> None:
            channel.send(Row(1))
            match channel.receive().stop:
                case 0:
                    return
                case 1:
                    raise ValueError("broken")
                case 2:
                    raise Refused("no")
                case 3:
                    channel.receive()  # raises EndOfStream, which is a return
                case _:
                    raise StreamReset("enough")

        ipc.serve()


def test_a_stream_yields_its_items(stage: Stage) -> None:
    worker = Worker()
    with stage.running(stage.add("w"), worker):
        c = stage.handle(stage.add("c"))
        with c.open_stream(rows, Range(5)) as items:
            assert list(items) == [Row(number) for number in range(5)]
            with pytest.raises(EndOfStream):
                items.receive()
        with c.open_stream("w.rows", {"stop": 2}, item_type=Row) as typed:
            assert list(typed) == [Row(0), Row(1)]
        with c.open_stream("w.list", 3000) as plain:
            assert list(plain) == list(range(3000))
        (link,) = c._caller.links.values()
        assert (link.outstanding, len(link.connection.streams)) == (0, 0)
        c._close(1)


def test_errors_come_behind_the_items_or_on_entering(stage: Stage) -> None:
    with stage.running(stage.add("w"), Worker()):
        c = stage.handle(stage.add("c"))
        got: list[int] = []
        with pytest.raises(RemoteError, match="unlucky"), c.open_stream(rows, Range(20)) as items:
            got.extend(row.number for row in items)
        with c.open_stream(rows, Range(20)) as items:
            assert [items.receive().number for _ in range(13)] == list(range(13))
            with pytest.raises(RemoteError, match="unlucky"):
                items.receive()
        with pytest.raises(Refused), c.open_stream(rows, Range(-1)) as items:
            items.receive()
        for name, error in (("w.misfit", InvalidPayload), ("w.wrong", RemoteError)):
            with pytest.raises(error), c.open_stream(name, 1) as plain:
                plain.receive()
        with pytest.raises(NoSuchMethod) as raised:
            c.open_stream("w.nothing").__enter__()
        assert raised.value.known == ("w.blocks", "w.list", "w.misfit", "w.rows", "w.wrong")
        with pytest.raises(NoSuchMethod):
            c.open_channel(Channel("w.rows", send=int, receive=int)).__enter__()
        with pytest.raises(InvalidPayload, match="stop"):
            c.open_stream("w.rows", {"stop": "x"}).__enter__()
        with pytest.raises(NoSuchWorker):
            c.open_stream("nobody.rows").__enter__()
        opening = c.open_stream(rows, Range(1))
        with opening, pytest.raises(LocalProtocolError, match="entered already"):
            opening.__enter__()
        stage.set("w:0", "starting")
        with pytest.raises(RequestTimeout) as late:
            c.open_stream(rows, Range(1), timeout=0.05).__enter__()
        assert late.value.processed == "no"
        c._close(1)


def test_leaving_the_block_closes_the_generator(stage: Stage) -> None:
    worker = Worker()
    with stage.running(stage.add("w"), worker) as w:
        c = stage.handle(stage.add("c"))
        with c.open_stream(rows, Range(10_000_000)) as items:
            assert items.receive() == Row(0)
        worker.wait_for("rows over")
        with pytest.raises(LocalProtocolError, match="left already"):
            items.receive()
        assert c.request(ping, 1) == 1
        assert not w._server.streams.active
        c._close(1)


def test_a_generator_is_stepped_between_requests_as_credit_allows(stage: Stage) -> None:
    worker = Worker()
    with stage.running(stage.add("w"), worker):
        c = stage.handle(stage.add("c"))
        with c.open_stream("w.blocks", 10_000, item_type=bytes) as items, c.open_stream(rows, Range(30_000)) as second:
            for taken in range(1, 60):
                assert len(items.receive()) == 10_000
                assert second.receive() == Row(taken - 1)
                if taken % 10 == 0:
                    assert c.request(ping, taken, timeout=2) == taken
            assert worker.produced <= 2 * 60 + 28 + 1024 + 512
        c._close(1)


def test_a_channel_is_a_conversation(stage: Stage) -> None:
    worker = Worker()
    with stage.running(stage.add("w"), worker):
        c = stage.handle(stage.add("c"))
        with c.open_channel(echo) as channel:
            assert channel.peer == "w:0"
            for size in (1, 0, 300_000, 5_000_000):
                channel.send(b"x" * size)
                assert len(channel.receive()) == size
            with pytest.raises(RequestTimeout, match="no item came"):
                channel.receive(timeout=0.02)
            channel.send(b"last")
            channel.close_sending()
            channel.close_sending()
            with pytest.raises(LocalProtocolError, match="was closed"):
                channel.send(b"more")
            assert list(channel) == [b"last"]
        worker.wait_for("echo over")
        c._close(1)


def test_both_directions_flow_at_once_in_order(stage: Stage) -> None:
    with stage.running(stage.add("w"), Worker()):
        c = stage.handle(stage.add("c"))
        sent = [bytes([number % 256]) * (number * 997 % 90_000) for number in range(200)]
        with c.open_channel(echo) as channel:

            def feed() -> None:
                for item in sent:
                    channel.send(item)
                channel.close_sending()

            feeding = threading.Thread(target=feed)
            feeding.start()
            assert list(channel) == sent
            feeding.join()
        c._close(1)


def test_the_ends_of_a_channel_handler(stage: Stage) -> None:
    with stage.running(stage.add("w"), Worker()):
        c = stage.handle(stage.add("c"))
        with c.open_channel(chat) as channel:
            with pytest.raises(InvalidPayload):
                channel.send("text")  # type: ignore[arg-type]
            channel.send(Range(0))
            assert list(channel) == [Row(1)]
            with pytest.raises(StreamReset, match="takes no more"):
                channel.send(Range(0))
        for number, error, text in (
            (1, StreamReset, "ValueError: broken"),
            (2, Refused, "no"),
            (9, StreamReset, "enough"),
        ):
            with c.open_channel(chat) as channel:
                channel.send(Range(number))
                assert channel.receive() == Row(1)
                with pytest.raises(error, match=text):
                    channel.receive()
                with pytest.raises(error, match=text):
                    channel.send(Range(0))
        with c.open_channel(chat) as channel:
            channel.send(Range(3))
            channel.close_sending()
            assert list(channel) == [Row(1)]
        c._close(1)


def test_leaving_a_channel_reaches_its_handler(stage: Stage) -> None:
    worker = Worker()
    with stage.running(stage.add("w"), worker):
        c = stage.handle(stage.add("c"))
        with c.open_channel(echo) as channel:
            channel.send(b"x")
            channel.receive()
        worker.wait_for("StreamReset")
        assert c.request(ping, 5) == 5
        c._close(1)


def test_a_slow_reader_of_a_channel_stops_its_writer(stage: Stage) -> None:
    progress: list[int] = []

    def slow(ipc: SmartIpc) -> None:
        @ipc.handler(echo)
        def _(channel: IpcChannel[bytes, bytes]) -> None:
            assert go.wait(10)
            for item in channel:
                progress.append(len(item))

        ipc.serve()

    go = threading.Event()
    with stage.running(stage.add("w"), slow):
        c = stage.handle(stage.add("c"))
        sent = 0
        with c.open_channel(echo) as channel:

            def feed() -> None:
                nonlocal sent
                for _ in range(100):
                    channel.send(b"x" * 10_000)
                    sent += 1
                channel.close_sending()

            feeding = threading.Thread(target=feed)
            feeding.start()
            before = -1
            while before != sent or sent == 0:
                before = sent
                time.sleep(0.05)
            assert 0 < sent <= 27  # a window; less if the socket takes less while the handler does not read
            go.set()
            feeding.join()
            assert list(channel) == []
        assert progress == [10_000] * 100
        c._close(1)


def test_a_dead_worker_is_told_with_its_exit(stage: Stage) -> None:
    worker = Worker()
    with stage.running(stage.add("w"), worker) as w:
        c = stage.handle(stage.add("c"))
        with c.open_channel(echo) as channel:
            channel.send(b"last words")
            worker_links = list(w._server.links.values())
            (link,) = c._caller.links.values()
            link.wait(lambda: bool(channel._reception.items), time.monotonic() + 5)
            for one in worker_links:
                one.close()
            stage.set("w:0", "backoff", ExitFacts(None, "SIGKILL", False, "killed"))
            assert channel.receive() == b"last words"
            for verb in (channel.receive, lambda: channel.send(b"x"), channel.receive):
                with pytest.raises(WorkerDied) as raised:
                    verb()
                assert (raised.value.signal, raised.value.instance) == ("SIGKILL", "w:0")
        c._close(1)


def test_a_lost_link_ends_the_handler(stage: Stage) -> None:
    worker = Worker()
    with stage.running(stage.add("w"), worker):
        c = stage.handle(stage.add("c"))
        with c.open_channel(echo) as channel:
            channel.send(b"x")
            channel.receive()
            (link,) = c._caller.links.values()
            link.close()
            with pytest.raises(ConnectionLost) as raised:
                channel.receive()
            assert raised.value.processed == "maybe"
        worker.wait_for("ConnectionLost")
        c._close(1)


def test_a_stopping_worker_finishes_what_it_can_and_cancels_the_rest(stage: Stage) -> None:
    worker = Worker()
    c = None
    with stage.running(stage.add("w"), worker) as w:
        c = stage.handle(stage.add("c"))
        finishing = c.open_stream(rows, Range(3000))
        endless = c.open_stream("w.blocks", 10, item_type=bytes)
        good, bad = finishing.__enter__(), endless.__enter__()
        good.receive()
        bad.receive()
        w._begin_stop("test")
        assert len(list(good)) == 2999
    with pytest.raises((RequestCancelled, ConnectionLost)):
        while True:
            bad.receive()
    finishing.__exit__(None, None, None)
    endless.__exit__(None, None, None)
    c._close(1)


def test_an_async_function_is_refused(stage: Stage) -> None:
    c = stage.handle(stage.add("c"))

    async def generator(_: Range) -> object:
        yield 1

    with pytest.raises(TypeError, match="is async"):
        c.handler("numbers")(generator)
    c._close(1)


def test_a_forked_copy_refuses(stage: Stage) -> None:
    with stage.running(stage.add("w"), Worker()):
        c = stage.handle(stage.add("c"))
        with c.open_channel(echo) as channel:
            channel.send(b"x")
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    for verb in (lambda: channel.send(b"y"), channel.receive):
                        with pytest.raises(LocalProtocolError, match="fork"):
                            verb()
                    code = 0
                finally:
                    os._exit(code)
            assert os.waitpid(pid, 0)[1] == 0
            assert channel.receive() == b"x"
        c._close(1)


def test_big_buffers_travel_in_items(stage: Stage) -> None:
    passing = Channel("w.passing", send=Buffer, receive=Buffer)

    def serve(ipc: SmartIpc) -> None:
        @ipc.handler(passing)
        def _(channel: IpcChannel[Buffer, Buffer]) -> None:
            for item in channel:
                channel.send(item)

        ipc.serve()

    with stage.running(stage.add("w"), serve):
        c = stage.handle(stage.add("c"))
        with c.open_channel(passing) as channel:
            for size in (1, 70_000, 40_000_000):
                channel.send(Buffer(b"b" * size))
                assert bytes(channel.receive().view) == b"b" * size
        c._close(1)
