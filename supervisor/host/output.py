"""Output of the instances: drained without ever blocking them, prefixed, kept as a bounded tail, passed on.

A chatty child writes hundreds of thousands of lines a second, so lines stay bytes and travel in batches: what one read
of a pipe gave is split, prefixed and written as a whole. Which descriptor belongs to which life is process.py's
business; files and our own streams are logfile.py and sink.py.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Literal

import msgspec

from smartipc.ipc.control import LogLine
from smartipc.supervisor.host.logfile import LogFile
from smartipc.supervisor.host.sink import Sink

LINE = 64 * 1024
"""Longest line in bytes; a longer one is split."""
TAIL = 1000
"""Lines kept per instance, and"""
TAIL_BYTES = 512 * 1024
"""their bytes at most."""
_READ = 64 * 1024
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_CONTROL_BYTES = bytes(code for code in range(32) if code not in b"\t\n") + b"\x7f"

Stream = Literal["stdout", "stderr", "supervisor"]


class Tail:
    """The last lines of one instance, bounded in number and bytes."""

    def __init__(self) -> None:
        self._lines: deque[tuple[int, float, Stream, bytes]] = deque()
        self._bytes = 0

    def __repr__(self) -> str:
        return f"<Tail of {len(self._lines)} lines, {self._bytes} bytes>"

    def extend(self, seq: int, at: float, stream: Stream, lines: list[bytes]) -> None:
        """Add lines numbered from `seq`, and let go of the oldest."""
        kept = lines[-TAIL:]
        first = seq + len(lines) - len(kept)
        self._lines.extend((first + index, at, stream, line) for index, line in enumerate(kept))
        self._bytes += sum(map(len, kept))
        while len(self._lines) > TAIL or self._bytes > TAIL_BYTES:
            self._bytes -= len(self._lines.popleft()[3])

    def newest(self, instance: str, lines: int, after: int, stream: str | None) -> list[LogLine]:
        """Return the last lines with a number above `after`, oldest first."""

        def found() -> Iterator[LogLine]:
            for seq, at, origin, data in reversed(self._lines):
                if seq <= after:
                    return
                if stream is None or stream == origin:
                    text = data.decode("utf-8", "backslashreplace")
                    yield LogLine(seq, _moment(at), "info", instance, origin, text)

        return list(itertools.islice(found(), lines))[::-1]


class Output:
    """Where lines go: our own streams with a prefix or as JSON, and the bounded tails.

    Args:
        json: one object a line instead of prefixed text.
    """

    def __init__(self, *, json: bool = False) -> None:
        self._json = json
        self._sinks = {"stdout": Sink(1), "stderr": Sink(2)}
        self._seq = 0
        self._tails: dict[str, Tail] = {}
        self.arrived: list[asyncio.Future[None]] = []

    def __repr__(self) -> str:
        return f"<Output of {len(self._tails)} instances, {self._seq} lines>"

    def lines(self, instance: str, stream: Stream, lines: list[bytes], file: LogFile | None = None) -> None:
        """Take lines of an instance, without their newlines; `file` takes them raw instead of our own stream."""
        at = time.time()
        self._keep(instance, stream, lines, at)
        if file is not None:
            file.write(b"\n".join(lines) + b"\n")
        elif self._json:
            texts = [line.decode("utf-8", "backslashreplace") for line in lines]
            data = b"".join(as_json("info", instance, stream, text, at) for text in texts)
            self._sinks[stream].write(data, len(lines))
        else:
            self._sinks[stream].write(_prefixed(instance, lines), len(lines))

    def mark(self, instance: str, text: str) -> None:
        """Put a line of our own between those of an instance: where one life ends and the next begins."""
        self._keep(instance, "supervisor", [text.encode("utf-8", "backslashreplace")], time.time())

    def _keep(self, instance: str, stream: Stream, lines: list[bytes], at: float) -> None:
        tail = self._tails.get(instance)
        if tail is None:
            tail = self._tails[instance] = Tail()
        tail.extend(self._seq + 1, at, stream, lines)
        self._seq += len(lines)
        waiting, self.arrived = self.arrived, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def tail(self, instance: str, *, lines: int, after: int = 0, stream: str | None = None) -> list[LogLine]:
        """Return the last lines of an instance with a sequence number above `after`, oldest first."""
        kept = self._tails.get(instance)
        return kept.newest(instance, lines, after, stream) if kept is not None else []

    def forget(self, instance: str) -> None:
        """Let go of the tail of an instance that is no more."""
        self._tails.pop(instance, None)

    @property
    def seq(self) -> int:
        """The number of the newest line of all instances, 0 before the first."""
        return self._seq

    def flush(self, wait: float) -> None:
        """Write what waits to our own streams before the end."""
        for sink in self._sinks.values():
            sink.flush(wait)


class Drain:
    """Read one pipe of one life and cut it into lines.

    Args:
        descriptor: read end, taken over.
        emit: called with the lines of each read, without their newlines.
    """

    def __init__(self, descriptor: int, emit: Callable[[list[bytes]], None]) -> None:
        self._descriptor = descriptor
        self._emit = emit
        self._rest = b""
        self._loop = asyncio.get_running_loop()
        self.closed = False
        os.set_blocking(descriptor, False)
        # One chunk per turn of the loop, so that one chatty child does not hold up the others.
        self._loop.add_reader(descriptor, self._take)

    def __repr__(self) -> str:
        return f"<Drain fd {self._descriptor}{' closed' if self.closed else ''}>"

    def _take(self) -> bool:
        try:
            data = os.read(self._descriptor, _READ)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            data = b""
        if not data:
            self.close()
            return False
        *lines, self._rest = (self._rest + data).split(b"\n")
        if b"\r" in data:
            lines = [line.removesuffix(b"\r") for line in lines]
        while len(self._rest) > LINE:
            lines.append(self._rest[:LINE])
            self._rest = self._rest[LINE:]
        if lines:
            self._emit(lines)
        return True

    def finish(self) -> None:
        """Take what is in the pipe now, at most a pipe's worth, and close: the life is over."""
        for _ in range(64):
            if self.closed or not self._take():
                break
        self.close()

    def close(self) -> None:
        """Stop reading; an unfinished last line is passed on."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)
        if self._rest:
            self._emit([self._rest])
            self._rest = b""


def as_json(level: str, instance: str, stream: str, message: str, at: float) -> bytes:
    """Return one JSON log line."""
    safe = message.encode("utf-8", "backslashreplace").decode() if not message.isascii() else message
    body = {"at": _moment(at), "level": level, "instance": instance, "stream": stream, "message": safe}
    return msgspec.json.encode(body) + b"\n"


def _moment(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _prefixed(instance: str, lines: list[bytes]) -> bytes:
    """Return the lines with their instance in front, and without what could move a terminal's cursor."""
    text = b"\n".join(lines)
    if not text.isascii() or len(text.translate(None, _CONTROL_BYTES)) != len(text):
        clean = _CONTROL.sub(_escaped, text.decode("utf-8", "backslashreplace"))
        text = clean.encode("utf-8", "backslashreplace")
    prefix = instance.encode() + b" | "
    return prefix + text.replace(b"\n", b"\n" + prefix) + b"\n"


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()
