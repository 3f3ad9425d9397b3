"""Write into the shared memory of a hatch while requests go by it: `python fuzz/hatch.py [seconds] [seed]`.

What lies there is the peer's to write at any moment. The oracle: every request ends within its deadline, with a value
or with one of our errors; another client of the same server gets right answers all the while; and so does the first one
afterwards. How the memory is laid out is known from transports.hatch.
"""

from __future__ import annotations

import ctypes
import random
import sys
import tempfile
import threading
import time

from smartipc.ipc.contracts import Method
from smartipc.ipc.errors import SmartIpcError
from smartipc.ipc.sync import SmartIpc
from smartipc.ipc.sync.testing import Stage
from smartipc.ipc.transports import hatch
from smartipc.ipc.transports.hatch import Hatch
from smartipc.ipc.wire import codec, heads
from smartipc.ipc.wire.frames import HEADER, Kind, frame

TIMEOUT = 1.1
"""Of a request: with a second or less it never goes by a hatch."""
echo = Method("one.echo", int, int, timeout=TIMEOUT)
LATE = 5.0
"""Seconds behind its deadline after which a request counts as hung: a busy machine needs some of them."""
LENGTHS = (0, 1, 15, 16, hatch.ROOM, hatch.ROOM + 1, 1 << 31, (1 << 32) - 1)
COUNTS = (0, 1, 2, 1000, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
"""Values for a semaphore: few, many, the most there can be, and such as read negative."""
_PLACES = (
    (hatch._ASKED, hatch._ASKED_SIZE),  # noqa: SLF001 - it plays the process at the other side
    (hatch._ANSWERED, hatch._ANSWERED_SIZE),  # noqa: SLF001 - likewise
)
_HEAD = heads.encoder.encode(heads.RequestHead("one.echo", 1000))


def forged(source: random.Random) -> bytes:
    """Return a frame, or what looks like one; now and then it is the one that is waited for."""
    ident = source.randrange(200)
    match source.randrange(4):
        case 0:
            return frame(Kind.REQUEST, ident, _HEAD, codec.encode(source.randrange(100)))
        case 1:
            return frame(Kind.RESPONSE, ident, b"", codec.encode(source.randrange(100)))
        case 2:
            return frame(source.choice(list(Kind)), ident, source.randbytes(source.randrange(20)), b"\xc0")
        case _:
            return HEADER.pack(source.randrange(1 << 12), source.randrange(64), 0, 0, ident) + source.randbytes(40)


def scribble(end: Hatch, source: random.Random) -> None:
    """Do one thing that a hostile process could do to the memory of this end."""
    memory, words = end._memory, end._words  # noqa: SLF001 - likewise
    place, size = source.choice(_PLACES)
    semaphore = source.choice((end._mine, end._theirs))  # noqa: SLF001 - likewise
    count = ctypes.c_uint32.from_address(semaphore.handle)  # the low half of glibc's sem_t is its value
    match source.randrange(8):
        case 0:
            memory[0] = source.randrange(4)
        case 1:
            memory[8] = source.randrange(2)
        case 2:
            words[size] = source.choice(LENGTHS)
        case 3:
            at = source.randrange(len(memory) - 64)
            memory[at : at + 64] = source.randbytes(64)
        case 4 | 5:
            data = forged(source)
            memory[place : place + len(data)] = data
            words[size] = len(data)
            count.value = 1
        case 6:
            count.value = source.choice(COUNTS)
        case _:
            semaphore.acquire(False)


class Play:
    """A server, a client into whose hatch is written, and one that is to notice nothing of it."""

    def __init__(self, source: random.Random) -> None:
        self._source = source
        self._over = threading.Event()
        self._hatches: set[str] = set()
        self.scribbles = self.answered = self.failed = self.undisturbed = 0
        self.violations: list[str] = []

    def __repr__(self) -> str:
        return (
            f"<Play: {self.scribbles} scribbles into {len(self._hatches)} hatches, {self.answered} answers, "
            f"{self.failed} failures, {self.undisturbed} answers to the other, {len(self.violations)} violations>"
        )

    def run(self, folder: str, seconds: float) -> None:
        """Play for so long in a folder; what went wrong is in `violations`, and a server that ends raises here."""
        stage = Stage(folder)
        with stage.running(stage.add("one"), _serve):
            victim, other = stage.handle(stage.add("victim")), stage.handle(stage.add("other"))
            threads = [
                threading.Thread(target=work, args=(ipc,))
                for work, ipc in ((self._write, victim), (self._look_on, other))
            ]
            for thread in threads:
                thread.start()
            until = time.monotonic() + seconds
            try:
                while time.monotonic() < until:
                    self._ask(victim)
            finally:
                self._over.set()
                for thread in threads:
                    thread.join()
            self._recover(victim)
            for ipc in (victim, other):
                ipc._close(1.0)  # noqa: SLF001 - as a runtime ends it

    def _ask(self, ipc: SmartIpc) -> bool:
        """Ask once; return whether the answer is right."""
        begun = time.monotonic()
        number = self._source.randrange(100, 1_000_000)
        try:
            right: bool = ipc.request(echo, number) == number
            self.answered += 1
        except SmartIpcError:
            right = False
            self.failed += 1
        except Exception as error:
            right = False
            self.violations.append(f"{error!r} from a request")
        if time.monotonic() - begun > TIMEOUT + LATE:
            self.violations.append(f"a request of {TIMEOUT:g} s took {time.monotonic() - begun:.1f} s")
        return right

    def _write(self, ipc: SmartIpc) -> None:
        source = random.Random(self._source.random())
        while not self._over.wait(source.random() / 500):
            for link in list(ipc._caller.links.values()):  # noqa: SLF001 - where the memory is
                end = link._asking  # noqa: SLF001 - likewise
                if end is not None:
                    self._hatches.add(end.hatch.name)
                    scribble(end.hatch, source)
                    self.scribbles += 1

    def _look_on(self, ipc: SmartIpc) -> None:
        number = 0
        while not self._over.wait(0.001):
            number += 1
            try:
                if ipc.request(echo, number, timeout=LATE) != number:
                    self.violations.append("a wrong answer to the other client")
            except Exception as error:
                self.violations.append(f"{error!r} to the other client")
            self.undisturbed += 1

    def _recover(self, ipc: SmartIpc) -> None:
        until, row = time.monotonic() + LATE, 0
        while row < 100:
            row = row + 1 if self._ask(ipc) else 0
            if time.monotonic() > until:
                self.violations.append("no hundred right answers in a row afterwards")
                return


def _serve(ipc: SmartIpc) -> None:
    ipc.handler(echo)(lambda value: value)
    ipc.serve()


def main() -> None:
    """Run for some seconds, say how much was written, and exit with 1 for a violation."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1 << 32)
    print(f"seed {seed}")
    play = Play(random.Random(seed))
    with tempfile.TemporaryDirectory(prefix="f-") as folder:
        play.run(folder, seconds)
    print(play)
    if play.violations:
        sys.exit("\n".join(play.violations[:20]))


if __name__ == "__main__":
    main()
