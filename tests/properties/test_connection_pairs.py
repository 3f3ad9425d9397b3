"""Two real connections, talking under arbitrary segmentation, delay and cut: a state machine over both cores.

Invariants: every call and every stream ends exactly once, at each end; items and pieces keep their order; nobody sends
beyond its credit (the receiver would end the connection); nothing happens after the end; what was sent arrives.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from smartipc.ipc.protocol.connection import Connection
from smartipc.ipc.protocol.events import (
    CallExpired,
    CancelReceived,
    Closed,
    DataReceived,
    ErrorReceived,
    Event,
    GoodbyeReceived,
    Opened,
    OpenReceived,
    RepliesReceived,
    ReplyReceived,
    RequestReceived,
    RequestsReceived,
    StreamAccepted,
    StreamEnded,
    StreamEvent,
    StreamFailed,
    StreamLost,
    StreamStopped,
)
from smartipc.ipc.protocol.handshake import Identity
from smartipc.ipc.wire import codec
from smartipc.ipc.wire.frames import ARRAY, ARRAY_MARK, ID_STEP
from smartipc.ipc.wire.heads import Fault
from smartipc.ipc.wire.limits import Limits

LIMITS = Limits(chunk=64, window=200, window_items=5, streams=3, inflight=4, message=2000, frame=1024)
GONE = Fault(10, "StreamReset", "gone")
SIZES = st.one_of(st.integers(0, 70), st.integers(0, 700))
SIDES = st.sampled_from([0, 1])


class End:
    """What the application at one end knows of one stream."""

    def __init__(self, duplex: bool, ours: bool) -> None:
        self.accepted = not ours
        self.may_send = duplex or not ours
        self.may_receive = duplex or ours
        self.sent: list[bytes] = []
        self.unconsumed: list[int] = []
        self.got: list[bytes] = []
        self.over = False
        """Both directions are over for the application; what it said last may not be out."""
        self.final = False
        """The peer gave it up, or the connection ended: nothing follows."""


class Side:
    """One connection, the bytes on their way to it, and what its application knows."""

    def __init__(self, role: Any) -> None:
        self.connection = Connection(role, Identity(role), LIMITS)
        self.wire = bytearray()
        self.calls: dict[int, bytes] = {}
        self.serving: dict[int, bytes] = {}
        self.ends: dict[int, End] = {}
        self.running: set[int] = set()
        self.finished: set[int] = set()
        self.closed = False


class ConnectionPair(RuleBasedStateMachine):
    """Two sides and whatever they do."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.sides = (Side("client"), Side("server"))
        self.counter = 0
        self.everything: dict[tuple[int, int], list[bytes]] = defaultdict(list)
        """(side, stream) -> the items that were taken on there."""

    @initialize()
    def start(self) -> None:
        for side in self.sides:
            side.connection.start(self.now)
        self.settle()

    # moving bytes

    def other(self, side: Side) -> Side:
        return self.sides[side is self.sides[0]]

    def flush(self, side: Side, times: int = 10_000) -> None:
        while side.connection.has_data and times:
            self.other(side).wire += b"".join(side.connection.data_to_send())
            times -= 1

    def feed(self, side: Side, size: int) -> None:
        data = bytes(side.wire[:size])
        del side.wire[:size]
        if data:
            self.take(side, side.connection.receive_data(data, self.now))

    def settle(self) -> None:
        for _ in range(10_000):
            for side in self.sides:
                self.flush(side)
            if not any(side.wire for side in self.sides):
                return
            for side in self.sides:
                self.feed(side, len(side.wire))
        raise AssertionError("the two never come to rest")

    # what arrives

    def take(self, side: Side, events: list[Event]) -> None:
        for event in events:
            assert not side.closed, "an event after the end"
            match event:
                case Opened() | GoodbyeReceived():
                    pass
                case RequestReceived():
                    assert event.id not in side.serving
                    side.serving[event.id] = event.payload
                case RequestsReceived():
                    for ident, payload in zip(event.ids, codec.pieces(event.payload), strict=False):
                        if ident not in event.withdrawn:
                            assert ident not in side.serving
                            side.serving[ident] = payload
                case ReplyReceived():
                    assert side.calls.pop(event.id) == event.payload, "another call's answer"
                case RepliesReceived():
                    for ident, payload in zip(event.ids, codec.pieces(event.payload), strict=True):
                        assert side.calls.pop(ident, payload) == payload, "another call's answer"
                case ErrorReceived() | CallExpired():
                    del side.calls[event.id]
                case CancelReceived():
                    del side.serving[event.id]
                case OpenReceived():
                    assert event.id not in side.ends
                    side.ends[event.id] = End(event.duplex, ours=False)
                    side.running.add(event.id)
                    side.connection.streams.accept(event.id)
                case StreamEvent():
                    self.on_stream(side, event)
                case Closed():
                    assert event.error is None, f"one of the two broke the protocol: {event.error}"
                    for ident, _written in event.lost:
                        del side.calls[ident]
                    side.serving.clear()
                    side.closed = True
                    assert side.calls == {}
                    assert all(end.over for end in side.ends.values())
                case _:
                    raise AssertionError(event)

    def on_stream(self, side: Side, event: StreamEvent) -> None:
        end = side.ends[event.id]
        assert not end.final, "an event on a stream that is over"
        if end.over:  # only while what ended it is still on its way
            assert isinstance(event, (StreamStopped, StreamFailed, StreamLost))
            end.final = True
            return
        match event:
            case StreamAccepted():
                assert not end.accepted
                end.accepted = True
            case DataReceived():
                assert end.may_receive
                end.got.append(event.payload)
                end.unconsumed.append(len(event.payload))
                assert sum(end.unconsumed[:-1]) <= LIMITS.window
                assert len(end.unconsumed) <= LIMITS.window_items
            case StreamEnded():
                assert end.may_receive
                end.may_receive = False
                sent = self.everything[self.sides.index(self.other(side)), event.id]
                assert end.got == sent, "an end before everything has come"
            case StreamStopped():
                assert end.may_send
                end.may_send = False
            case StreamFailed() | StreamLost():
                end.may_send = end.may_receive = False
                end.over = end.final = True
        sent = self.everything[self.sides.index(self.other(side)), event.id]
        assert end.got == sent[: len(end.got)], "items out of order"
        self.look(end)

    def look(self, end: End) -> None:
        if not end.may_send and not end.may_receive:
            end.over = True

    # what the applications do

    def open_ends(self, side: Side) -> list[tuple[int, End]]:
        return [(ident, end) for ident, end in side.ends.items() if not end.over]

    def fresh(self, size: int) -> bytes:
        self.counter += 1
        return self.counter.to_bytes(4, "big") * (size // 4 + 1)

    @rule(which=SIDES, size=SIZES)
    def request(self, which: int, size: int) -> None:
        side = self.sides[which]
        if not side.closed:
            payload = codec.encode(self.fresh(size))
            side.calls[side.connection.request("w.m", payload, self.now, timeout=10.0)] = payload

    @rule(which=SIDES, sizes=st.lists(st.integers(0, 8), min_size=1, max_size=6), together=st.booleans())
    def request_some(self, which: int, sizes: list[int], together: bool) -> None:
        side = self.sides[which]
        if side.closed:
            return
        payloads = [codec.encode(self.fresh(size)) for size in sizes]
        array = ARRAY.pack(ARRAY_MARK, len(payloads)) + b"".join(payloads)
        if together and side.connection.features and len(array) <= LIMITS.chunk:
            ids = side.connection.request_all("w.m", array, len(payloads), self.now, timeout=10.0)
        else:
            ids = [side.connection.request("w.m", one, self.now, timeout=10.0) for one in payloads]
        side.calls.update(zip(ids, payloads, strict=True))

    @rule(which=SIDES, pick=st.integers(0, 10))
    def answer_a_row(self, which: int, pick: int) -> None:
        """Answer requests whose ids follow each other in one frame, or one by one in a turn."""
        side = self.sides[which]
        if not side.serving or side.closed:
            return
        first = sorted(side.serving)[pick % len(side.serving)]
        ids = range(first, first + ID_STEP, ID_STEP)
        while ids.stop in side.serving:
            ids = range(first, ids.stop + ID_STEP, ID_STEP)
        payloads = [side.serving.pop(one) for one in ids]
        if pick % 2:
            side.connection.reply_all(ids, ARRAY.pack(ARRAY_MARK, len(ids)) + b"".join(payloads))
        else:
            for ident, payload in zip(ids, payloads, strict=True):
                side.connection.reply(ident, payload)

    @rule(which=SIDES, pick=st.integers(0, 10), fails=st.booleans())
    def answer(self, which: int, pick: int, fails: bool) -> None:
        side = self.sides[which]
        if side.serving and not side.closed:
            ident = sorted(side.serving)[pick % len(side.serving)]
            payload = side.serving.pop(ident)
            if fails:
                side.connection.fail(ident, GONE)
            else:
                side.connection.reply(ident, payload)

    @rule(which=SIDES, pick=st.integers(0, 10))
    def cancel(self, which: int, pick: int) -> None:
        side = self.sides[which]
        if side.calls and not side.closed:
            ident = sorted(side.calls)[pick % len(side.calls)]
            del side.calls[ident]
            side.connection.cancel(ident)

    @rule(which=SIDES, size=SIZES, duplex=st.booleans())
    def open_stream(self, which: int, size: int, duplex: bool) -> None:
        side = self.sides[which]
        if not side.closed:
            ident = side.connection.streams.open("w.s", self.fresh(size), duplex=duplex)
            side.ends[ident] = End(duplex, ours=True)

    @rule(which=SIDES, pick=st.integers(0, 10), size=SIZES)
    def send(self, which: int, pick: int, size: int) -> None:
        side = self.sides[which]
        can = [(ident, end) for ident, end in self.open_ends(side) if end.may_send]
        if can and not side.closed:
            ident, end = can[pick % len(can)]
            payload = self.fresh(size)
            if side.connection.streams.send(ident, payload):
                assert end.accepted, "an item before the other side accepted"
                self.everything[which, ident].append(payload)

    @rule(which=SIDES, pick=st.integers(0, 10))
    def consume(self, which: int, pick: int) -> None:
        side = self.sides[which]
        waiting = [(ident, end) for ident, end in side.ends.items() if end.unconsumed]
        if waiting and not side.closed:
            ident, end = waiting[pick % len(waiting)]
            side.connection.streams.consumed(ident, end.unconsumed.pop(0))

    @rule(which=SIDES, pick=st.integers(0, 10), how=st.sampled_from(["end", "end", "stop", "reset", "fail"]))
    def give_up(self, which: int, pick: int, how: str) -> None:
        side = self.sides[which]
        can = self.open_ends(side)
        if not can or side.closed:
            return
        ident, end = can[pick % len(can)]
        streams = side.connection.streams
        if how == "end":
            streams.end(ident)
            end.may_send = False
        elif how == "stop":
            streams.stop(ident)
            end.may_receive = False
            end.may_send = end.may_send and end.accepted
        else:
            (streams.reset if how == "reset" else streams.fail)(ident, GONE)
            end.may_send = end.may_receive = False
        self.look(end)

    @rule(which=SIDES, pick=st.integers(0, 10))
    def handler_ends(self, which: int, pick: int) -> None:
        side = self.sides[which]
        gone = [ident for ident in side.running if side.ends[ident].over]
        if gone:
            ident = gone[pick % len(gone)]
            side.running.discard(ident)
            side.connection.streams.released(ident)

    @rule(which=SIDES)
    def goodbye(self, which: int) -> None:
        self.sides[which].connection.goodbye("enough")

    # what the world does

    @rule(which=SIDES, times=st.integers(1, 4))
    def write(self, which: int, times: int) -> None:
        self.flush(self.sides[which], times)

    @rule(which=SIDES, size=st.integers(1, 400))
    def read(self, which: int, size: int) -> None:
        self.feed(self.sides[which], size)

    @rule(seconds=st.floats(0.0, 4.0))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        for side in self.sides:
            timer = side.connection.next_timer()
            if timer is not None and timer <= self.now and not side.wire:
                self.take(side, side.connection.handle_timer(self.now))

    @precondition(lambda self: self.counter > 20)
    @rule(which=SIDES)
    def cut(self, which: int) -> None:
        side = self.sides[which]
        side.wire.clear()
        if not side.closed:
            self.take(side, side.connection.receive_eof(self.now))

    @invariant()
    def nobody_is_owed_what_was_never_given(self) -> None:
        for side in self.sides:
            for stream in side.connection.streams._streams.values():
                if stream.outgoing is not None:
                    assert 0 <= stream.outgoing.sent <= stream.outgoing.max_bytes
                    assert stream.outgoing.items <= stream.outgoing.max_items
                    assert stream.queued == sum(map(len, stream.queue)) - stream.offset
            if side.closed:
                assert not side.connection.receive_data(b"\x00" * 16, self.now)

    def teardown(self) -> None:
        """Consume everything: then all that was sent must have arrived, and every stream must come to its end."""
        if any(side.closed for side in self.sides):
            return
        self.drain()
        for which, side in enumerate(self.sides):
            for ident, end in side.ends.items():
                if end.accepted and end.may_send:
                    payload = self.fresh(300)
                    assert side.connection.streams.send(ident, payload), "an idle stream takes no item"
                    self.everything[which, ident].append(payload)
                    side.connection.streams.end(ident)
                    end.may_send = False
                    self.look(end)
                    self.drain()
        for side in self.sides:
            assert not side.connection.streams.unsent
            assert not any(end.accepted and not end.over for end in side.ends.values())

    def drain(self) -> None:
        """Let everything arrive and be consumed."""
        self.settle()
        while any(end.unconsumed for side in self.sides for end in side.ends.values()):
            for side in self.sides:
                for ident, end in side.ends.items():
                    while end.unconsumed:
                        side.connection.streams.consumed(ident, end.unconsumed.pop(0))
            self.settle()


ConnectionPair.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestConnectionPair = ConnectionPair.TestCase
