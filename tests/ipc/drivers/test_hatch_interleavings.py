"""Both sides of a hatch in every order of their loads and stores: nothing runs twice, is lost or written over.

The sides are the real ones, AskingEnd and AnsweringEnd over Hatch and Connection; only memory, semaphores and stream
are a model. Since a side is told everything by them, it can be run again from its start with what they said so far, to
find out what it does next: so every interleaving can be gone through without a thread. Stores wait in a buffer of their
side until a semaphore operation or a lock, or earlier by chance, as those of x86 do; frames are stored and loaded in
two halves. A wait ends by chance, too, as if its time were over.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest

from smartipc.ipc.drivers.hatching import AnsweringEnd, AskingEnd
from smartipc.ipc.protocol.connection import Connection
from smartipc.ipc.protocol.events import CallExpired, CancelReceived, Event, ReplyReceived, RequestReceived
from smartipc.ipc.protocol.handshake import FEATURES, Identity
from smartipc.ipc.transports import hatch
from smartipc.ipc.transports.hatch import Hatch

Op = tuple[Any, ...]
ASKING, ANSWERING = 0, 1
PENDING = "pending"
EXPIRED = "expired"
_LONGEST = 150
"""Steps of one side, by far more than any needs that comes to an end."""


class Stop(BaseException):
    """A side has come to what it does next."""


class World:
    """What one side sees of the other: what it was told before, then the end of this run."""

    def __init__(self, told: list[Any]) -> None:
        self._told = iter(told)
        self.next: Op | None = None

    def do(self, *op: Any) -> Any:
        if self.next is None:
            for answer in self._told:
                return answer
            self.next = op
        raise Stop


class Cells:
    """Memory whose items are `size` bytes."""

    def __init__(self, world: World, size: int) -> None:
        self._world = world
        self._size = size

    def __getitem__(self, at: int | slice) -> Any:
        if isinstance(at, int):
            return int.from_bytes(self._world.do("load", at * self._size, self._size), "little")
        middle = (at.start + at.stop) // 2
        return self._world.do("load", at.start, middle - at.start) + self._world.do("load", middle, at.stop - middle)

    def __setitem__(self, at: int | slice, value: Any) -> None:
        if isinstance(at, int):
            self._world.do("store", at * self._size, value.to_bytes(self._size, "little"))
        else:
            middle = (at.start + at.stop) // 2
            self._world.do("store", at.start, value[: middle - at.start])
            self._world.do("store", middle, value[middle - at.start :])


class Fence:
    """A lock that nobody else wants: a memory barrier."""

    def __init__(self, world: World) -> None:
        self._world = world

    def __enter__(self) -> None:
        self._world.do("fence")

    def __exit__(self, *_: object) -> None:
        pass


class Semaphore:
    """A semaphore of the model."""

    def __init__(self, world: World, which: int) -> None:
        self._world = world
        self._which = which

    def acquire(self, wait: bool, _seconds: float = 0.0) -> Any:
        return self._world.do("wait" if wait else "try", self._which)

    def release(self) -> None:
        self._world.do("post", self._which)

    def _is_zero(self) -> Any:
        return self._world.do("is zero", self._which)


class Link:
    """A link of the model: its stream carries whole frames."""

    def __init__(self, world: World, connection: Connection) -> None:
        self.connection = connection
        self.closed = False
        self.watchers: dict[int, Callable[[], None]] = {}
        self.results: dict[int, object] = {}
        self.world = world

    def flush(self) -> None:
        while self.connection.has_data:
            for piece in self.connection.data_to_send():
                self.world.do("say", bytes(piece))

    def take_aside(self, data: bytes) -> None:
        self.take(self.connection.receive_aside(data, 0.0))

    def resend(self, frame: bytes) -> None:
        self.connection.outbox.add_frame(frame)
        self.flush()

    def pump(self, timeout: float) -> None:
        data = self.world.do("read" if timeout else "peek")
        if data is None:
            self.closed = True
        elif data:
            self.take(self.connection.receive_data(data, 0.0))

    def abandon(self) -> None:
        pass

    def take(self, events: list[Event]) -> None:
        for event in events:
            match event:
                case ReplyReceived():
                    if event.id in self.results:
                        self.results[event.id] = event.payload
                case CallExpired():
                    self.results[event.id] = EXPIRED
                case RequestReceived():
                    self.run(event.id, event.payload)
                case CancelReceived():
                    pass
                case _:
                    self.world.do("fail", f"{event}")
        self.flush()

    def run(self, ident: int, payload: bytes) -> None:
        raise AssertionError("only the answering side is asked")


class AskingLink(Link):
    """The asking side's: its calls may expire whenever it looks at them."""

    patience = True

    def pump(self, timeout: float) -> None:
        super().pump(timeout)
        if not self.patience and PENDING in self.results.values() and self.world.do("choose"):
            self.take(self.connection.handle_timer(1e6))


class AnsweringLink(Link):
    """The answering side's, which answers as the driver's link does."""

    end: AnsweringEnd
    by_stream = False

    def run(self, ident: int, payload: bytes) -> None:
        self.world.do("run", ident)
        piece = self.connection.straight.reply(ident, b"re: " + payload)
        if piece is None:
            return  # cancelled
        if self.end.asked != ident:
            self.world.do("say", piece)
        elif not self.by_stream and self.end.hatch.answer(piece):
            self.end.asked = 0
        else:
            self.by_stream = False
            self.world.do("say", piece)
            self.end.hatch.beckon()


def connected() -> tuple[Connection, Connection]:
    """Two ends after their handshake and one request, whose head is known then."""
    client, server = (Connection(role, Identity(role), features=(*FEATURES, "hatch")) for role in ("client", "server"))

    def carry() -> list[Event]:
        events = []
        for near, far in ((client, server), (server, client)):
            while near.has_data:
                for piece in near.data_to_send():
                    events += far.receive_data(bytes(piece), 0.0)
        return events

    client.start(0.0)
    server.start(0.0)
    carry()
    client.request("s.m", b"", 0.0, timeout=30.0)
    (asked,) = [event for event in carry() if isinstance(event, RequestReceived)]
    server.reply(asked.id, b"")
    carry()
    return client, server


def end_of(world: World, side: int) -> Hatch:
    mine, theirs = (Semaphore(world, which) for which in (side, 1 - side))
    return Hatch("of the model", mmap.mmap(-1, 8192), mine, theirs)


def model(world: World, made: Hatch) -> None:
    """Put the model's memory under an end of a hatch."""
    made._memory = Cells(world, 1)  # type: ignore[assignment]
    made._words = Cells(world, 4)  # type: ignore[assignment]
    made._barrier = Fence(world)  # type: ignore[assignment]


@dataclass(frozen=True)
class Scene:
    """How much happens.

    Args:
        requests: that are made, one after the other.
        visits: how often the answering side stands behind the hatch.
        hears: how many requests it takes at most each time.
        timeouts: waits that end although the other side could still end them, by side.
        expires: whether calls may expire.
        by_stream: whether the first answer goes by the stream.
    """

    requests: int
    visits: int
    hears: int
    timeouts: tuple[int, int]
    expires: bool
    by_stream: bool = False


def ask(world: World, scene: Scene) -> list[object]:
    """What the asking side does; return what became of its requests."""
    link = AskingLink(world, connected()[0])
    link.patience = not scene.expires
    lock: Any = Fence(world)
    end = AskingEnd(link, end_of(world, ASKING), lock, link.results, PENDING)
    model(world, end.hatch)
    end._state = end.hatch._memory  # type: ignore[assignment]
    outcomes: list[object] = []
    for number in range(scene.requests):
        asked = end.ask("s.m", b"%d" % number, 30.0, 0.0)
        if asked is None:
            begun = link.connection.straight.request("s.m", b"%d" % number, 0.0, 30.0)
            assert begun is not None
            asked = begun[0], None
            link.results[begun[0]] = PENDING
            world.do("say", begun[1])
        if asked[1] is None:
            while link.results[asked[0]] is PENDING:
                link.pump(1)
        outcomes.append(link.results[asked[0]] if asked[1] is None else asked[1])
    world.do("close")
    return outcomes


def answer(world: World, scene: Scene) -> list[object]:
    """What the answering side does: it stands behind the hatch for a while, and then reads the stream again."""
    link = AnsweringLink(world, connected()[1])
    link.by_stream = scene.by_stream
    lock: Any = Fence(world)
    end = link.end = AnsweringEnd(link, end_of(world, ANSWERING), lock)
    model(world, end.hatch)
    for _ in range(scene.visits):
        end.hatch.open()
        for _ in range(scene.hears):
            asked = end.hear()
            if asked is None:
                break
            link.run(asked[0], asked[2])
        end.leave()
        link.pump(0)
    while not link.closed:
        link.pump(1)
    return []


class Side:
    """One side as a tree: what it was told, and what it does next then."""

    def __init__(self, program: Callable[[World, Scene], list[object]], scene: Scene) -> None:
        self._program = program
        self._scene = scene
        self._parents: list[tuple[int, Any]] = [(-1, None)]
        self._children: dict[tuple[int, Any], int] = {}
        self._next: dict[int, Op] = {}
        self.depths = [0]

    def told(self, node: int, answer: Any) -> int:
        """Return the node that an answer leads to."""
        known = self._children.get((node, answer))
        if known is None:
            known = self._children[node, answer] = len(self._parents)
            self._parents.append((node, answer))
            self.depths.append(self.depths[node] + 1)
        return known

    def next(self, node: int) -> Op:
        """Return what it does at a node: an operation, or ("end", outcomes)."""
        if node not in self._next:
            self._next[node] = self._run(node)
        return self._next[node]

    def _run(self, node: int) -> Op:
        told: list[Any] = []
        while node:
            node, one = self._parents[node]
            told.append(one)
        world = World(told[::-1])
        try:
            return "end", self._program(world, self._scene)
        except Stop:
            assert world.next is not None
            return world.next


Stores = tuple[tuple[int, bytes], ...]
"""What a side has stored and nobody else sees yet."""


class State(NamedTuple):
    """All there is; pairs are by side."""

    nodes: tuple[int, int] = (0, 0)
    memory: bytes = bytes(256)
    stores: tuple[Stores, Stores] = ((), ())
    counts: tuple[int, int] = (0, 0)
    streams: tuple[bytes, bytes] = (b"", b"")
    closed: bool = False
    timeouts: tuple[int, int] = (0, 0)
    ran: tuple[int, ...] = ()


def place(at: int) -> int:
    """Map an address of the memory, most of which is never used, to one of the model's."""
    return at if at < 128 else at - 4096 + 128


def seen(memory: bytes, stores: Stores) -> bytes:
    for at, data in stores:
        memory = memory[: place(at)] + data + memory[place(at) + len(data) :]
    return memory


def changed(pair: tuple[Any, Any], side: int, value: Any) -> tuple[Any, Any]:
    return (value, pair[1]) if side == 0 else (pair[0], value)


class Wrong(Exception):
    """What must not happen, and how it came to it."""


class Explorer:
    """Goes through all that can happen in a scene."""

    def __init__(self, scene: Scene) -> None:
        self.sides = Side(ask, scene), Side(answer, scene)
        self.scene = scene
        self.came_from: dict[State, tuple[State | None, Op]] = {}
        self.ends: set[tuple[Any, ...]] = set()

    def explore(self) -> None:
        """Raise Wrong if anything wrong can happen."""
        first = State(timeouts=self.scene.timeouts)
        self.came_from[first] = None, ("begin",)
        left = [first]
        while left:
            state = left.pop()
            whither = list(self.steps(state))
            if not whither:
                self.check_end(state)
            for what, after in whither:
                if after not in self.came_from:
                    self.came_from[after] = state, what
                    left.append(after)

    def wrong(self, state: State, what: str) -> Wrong:
        way: list[Op] = []
        here: State | None = state
        while here is not None:
            here, step = self.came_from[here]
            way.append(step)
        return Wrong("\n".join([*(" ".join(map(str, step)) for step in way[::-1]), what]))

    def check_end(self, state: State) -> None:
        ops = [self.sides[side].next(state.nodes[side]) for side in (ASKING, ANSWERING)]
        if any(op[0] != "end" for op in ops):
            raise self.wrong(state, f"nobody goes on: {ops}")
        outcomes = ops[ASKING][1]
        for number, outcome in enumerate(outcomes):
            ident = 3 + 2 * number
            if outcome != b"re: %d" % number and not (outcome == EXPIRED and self.scene.expires):
                raise self.wrong(state, f"request {ident} ended with {outcome!r}")
            if outcome != EXPIRED and ident not in state.ran:
                raise self.wrong(state, f"request {ident} never ran")
        self.ends.add((*outcomes, state.ran))

    def check_sleep(self, state: State, side: int) -> None:
        """Nobody sleeps until his time is over while what he waits for is there, and all others sleep too."""
        at = place(16 if side == ANSWERING else 4096)
        if any(state.memory[at : at + 4]) or (side == ASKING and state.streams[ASKING]):
            raise self.wrong(state, f"{side} was not woken")

    def steps(self, state: State) -> Iterator[tuple[Op, State]]:
        """Give what can happen next.

        What the other side cannot notice happens before all else: in another order it would come to the same.
        """
        for side in (ASKING, ANSWERING):
            op = self.sides[side].next(state.nodes[side])
            if op[0] == "store" or (op[0] == "fence" and not state.stores[side]):
                yield from self.done(state, side, op, alone=False)
                return
        able = [self.able(state, side) for side in (ASKING, ANSWERING)]
        for side in (ASKING, ANSWERING):
            stores = state.stores[side]
            if stores:
                memory = seen(state.memory, stores[:1])
                yield (side, "is seen"), state._replace(memory=memory, stores=changed(state.stores, side, stores[1:]))
            yield from self.done(state, side, self.sides[side].next(state.nodes[side]), alone=not able[1 - side])

    def done(self, state: State, side: int, op: Op, *, alone: bool) -> Iterator[tuple[Op, State]]:
        """Give what there may be after a side has done something."""
        for answer, after in self.outcomes(state, side, op, alone=alone):
            node = self.sides[side].told(state.nodes[side], answer)
            if self.sides[side].depths[node] > _LONGEST:
                raise self.wrong(state, "without end")
            yield (side, op, answer), after._replace(nodes=changed(after.nodes, side, node))

    def able(self, state: State, side: int) -> bool:
        """Tell whether a side can go on without a time that is over."""
        op = self.sides[side].next(state.nodes[side])
        match op[0]:
            case "wait":
                goes_on = state.counts[op[1]] > 0
            case "read":
                goes_on = bool(state.streams[side]) or state.closed
            case "end":
                goes_on = False
            case _:
                goes_on = True
        return goes_on or bool(state.stores[side])

    def outcomes(self, state: State, side: int, op: Op, *, alone: bool) -> Iterator[tuple[Any, State]]:
        """Give what an operation may answer, and all there is then."""
        if op[0] == "load":
            at = place(op[1])
            yield seen(state.memory, state.stores[side])[at : at + op[2]], state
        elif op[0] == "store":
            yield None, state._replace(stores=changed(state.stores, side, (*state.stores[side], op[1:])))
        elif op[0] == "is zero":
            yield state.counts[op[1]] == 0, state
        elif op[0] in ("choose", "run", "fail", "close"):
            yield from self.facts(state, op)
        elif op[0] != "end":
            memory = seen(state.memory, state.stores[side])
            yield from self.barriers(
                state._replace(memory=memory, stores=changed(state.stores, side, ())), side, op, alone
            )

    def facts(self, state: State, op: Op) -> Iterator[tuple[Any, State]]:
        match op:
            case ("choose",):
                yield False, state
                yield True, state
            case ("run", ident):
                if ident in state.ran:
                    raise self.wrong(state, f"request {ident} runs twice")
                yield None, state._replace(ran=(*state.ran, ident))
            case ("fail", what):
                raise self.wrong(state, what)
            case ("close",):
                yield None, state._replace(closed=True)

    def barriers(self, state: State, side: int, op: Op, alone: bool) -> Iterator[tuple[Any, State]]:
        """Do what lets everybody see what this side has stored before."""
        match op:
            case ("post", which):
                yield None, state._replace(counts=changed(state.counts, which, state.counts[which] + 1))
            case ("wait" | "try" as how, which):
                count = state.counts[which]
                if count:
                    yield True, state._replace(counts=changed(state.counts, which, count - 1))
                elif how == "try":
                    yield False, state
                elif alone:
                    self.check_sleep(state, side)
                    yield False, state
                elif left := state.timeouts[side]:
                    yield False, state._replace(timeouts=changed(state.timeouts, side, left - 1))
            case ("fence",):
                yield None, state
            case ("say", data):
                yield None, state._replace(streams=changed(state.streams, 1 - side, state.streams[1 - side] + data))
            case ("peek" | "read" as how,):
                data = state.streams[side]
                if data or how == "peek":
                    yield data, state._replace(streams=changed(state.streams, side, b""))
                elif state.closed:
                    yield None, state


SCENES = {
    "one request, the server comes twice": Scene(1, 2, 2, (2, 2), expires=False),
    "one request that may expire, the server comes twice": Scene(1, 2, 1, (1, 1), expires=True),
    "two requests that may expire": Scene(2, 1, 2, (1, 1), expires=True),
    "two requests that may expire, the server comes twice": Scene(2, 2, 1, (1, 0), expires=True),
    "two requests, the first answer goes by the stream": Scene(2, 1, 2, (1, 1), expires=False, by_stream=True),
}


@pytest.mark.parametrize("scene", SCENES.values(), ids=SCENES)
def test_every_request_runs_once_and_has_its_answer(scene: Scene) -> None:
    explorer = Explorer(scene)
    explorer.explore()
    everything = tuple(b"re: %d" % number for number in range(scene.requests))
    assert (*everything, tuple(3 + 2 * number for number in range(scene.requests))) in explorer.ends
    assert any(EXPIRED in end for end in explorer.ends) is scene.expires
    said = {how[0] for _, how in explorer.came_from.values() if len(how) == 3 and how[1][0] == "say"}
    assert said == {ASKING, ANSWERING}, "some went by the stream"


def wipes(self: Hatch) -> bytes:
    """Empty the place also if nothing lay there."""
    memory, words = self._memory, self._words
    if memory[hatch._SIGN]:
        return b""
    frame = memory[hatch._ASKED : hatch._ASKED + words[hatch._ASKED_SIZE]]
    words[hatch._ASKED_SIZE] = 0
    return frame


def heeds_no_sign(self: Hatch) -> bytes:
    """Take what is being taken back."""
    memory, words = self._memory, self._words
    size = words[hatch._ASKED_SIZE]
    if not size:
        return b""
    frame = memory[hatch._ASKED : hatch._ASKED + size]
    words[hatch._ASKED_SIZE] = 0
    return frame


def answers_over_another(self: Hatch, frame: bytes) -> bool:
    """Put an answer there whatever lies there."""
    self._memory[hatch._ANSWERED : hatch._ANSWERED + len(frame)] = frame
    self._words[hatch._ANSWERED_SIZE] = len(frame)
    self._theirs.release()
    return True


def forgets_its_reader(self: Hatch) -> bool:
    """Give up what is being read, and let the next request be put over it."""
    self._words[hatch._ASKED_SIZE] = 0
    return False


WRONG = {
    "wipes": ("_look", wipes, "one request, the server comes twice", "without end"),
    "no sign": ("_look", heeds_no_sign, "one request, the server comes twice", "runs twice"),
    "overwrites": ("answer", answers_over_another, "two requests that may expire", "ended with b're: 0'"),
    "forgets": ("give_up", forgets_its_reader, "two requests that may expire", "without end"),
    "deaf": ("beckon", lambda _: None, "two requests, the first answer goes by the stream", "was not woken"),
}


@pytest.mark.parametrize(("name", "instead", "scene", "what"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_found(
    name: str, instead: Callable[..., object], scene: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Hatch, name, instead)
    with pytest.raises(Wrong, match=what):
        Explorer(SCENES[scene]).explore()


def test_without_barriers_a_request_runs_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fence, "__enter__", lambda _: None)
    with pytest.raises(Wrong, match="runs twice"):
        Explorer(SCENES["one request, the server comes twice"]).explore()
