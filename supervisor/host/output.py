"""Output of the instances: drained without ever blocking them, prefixed, kept as a bounded tail, passed on.

Splitting and formatting only; which descriptor belongs to which life is process.py's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import select
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import IO, Literal

import msgspec

from smartipc.ipc.control import LogLine

LINE = 64 * 1024
"""Longest line in bytes; a longer one is split."""
TAIL = 1000
"""Lines kept per instance."""
BACKLOG = 8 * 1024 * 1024
"""Bytes kept for a reader of our own stdout or stderr that does not read; what is more is dropped and counted."""
_READ = 64 * 1024
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")

Stream = Literal["stdout", "stderr"]


class Sink:
    """One of our own streams, written without ever blocking the supervisor on its reader.

    Args:
        descriptor: where to write; kept blocking for everybody else, so it is written only when poll allows it.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._dropped = 0
        self._watching = False

    def __repr__(self) -> str:
        return f"<Sink fd {self._descriptor}, {self._bytes} bytes waiting, {self._dropped} lines dropped>"

    def write(self, data: bytes) -> None:
        """Write a line, now or when the reader reads."""
        if self._bytes > BACKLOG:
            self._dropped += 1
            return
        if self._dropped:
            data = f"smartipc: {self._dropped} lines dropped, their reader was too slow\n".encode() + data
            self._dropped = 0
        self._waiting.append(data)
        self._bytes += len(data)
        self.flush(0.0)

    def flush(self, wait: float) -> None:
        """Write what waits, giving the reader at most `wait` seconds to make room."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        deadline = time.monotonic() + wait
        while self._waiting:
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                self._watch()
                return
            data = self._waiting[0]
            try:
                written = os.write(self._descriptor, data[: select.PIPE_BUF])
            except OSError:
                self._waiting.clear()  # the reader is gone: there is nobody to tell
                self._bytes = 0
                return
            self._bytes -= written
            if written == len(data):
                self._waiting.popleft()
            else:
                self._waiting[0] = data[written:]
        self._unwatch()

    def _watch(self) -> None:
        if not self._watching:
            with contextlib.suppress(RuntimeError, PermissionError, OSError):
                asyncio.get_running_loop().add_writer(self._descriptor, self.flush, 0.0)
                self._watching = True

    def _unwatch(self) -> None:
        if self._watching:
            self._watching = False
            with contextlib.suppress(RuntimeError):
                asyncio.get_running_loop().remove_writer(self._descriptor)


class Output:
    """Where lines go: our own streams with a prefix or as JSON, and the bounded tails.

    Args:
        json: one object a line instead of prefixed text.
    """

    def __init__(self, *, json: bool = False) -> None:
        self._json = json
        self._sinks = {"stdout": Sink(1), "stderr": Sink(2)}
        self._seq = 0
        self._tails: dict[str, deque[LogLine]] = {}
        self.arrived: list[asyncio.Future[None]] = []

    def __repr__(self) -> str:
        return f"<Output of {len(self._tails)} instances, {self._seq} lines>"

    def line(self, instance: str, stream: Stream, text: str, file: IO[bytes] | None) -> None:
        """Take one line of an instance; `file` takes it raw instead of our own stream."""
        self._seq += 1
        line = LogLine(self._seq, time.time(), instance, stream, text)
        self._tails.setdefault(instance, deque(maxlen=TAIL)).append(line)
        if file is not None:
            file.write(text.encode("utf-8", "surrogateescape") + b"\n")
            file.flush()
        elif self._json:
            self._sinks[stream].write(as_json("info", instance, stream, text, line.at))
        else:
            self._sinks[stream].write(
                f"{instance} | {_CONTROL.sub(_escaped, text)}\n".encode("utf-8", "backslashreplace")
            )
        waiting, self.arrived = self.arrived, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def tail(self, instance: str, *, lines: int, after: int = 0, stream: str | None = None) -> list[LogLine]:
        """Return the last lines of an instance with a sequence number above `after`, oldest first."""
        kept = [
            line
            for line in self._tails.get(instance, ())
            if line.seq > after and (stream is None or line.stream == stream)
        ]
        return kept[-lines:] if lines else []

    def flush(self, wait: float) -> None:
        """Write what waits to our own streams before the end."""
        for sink in self._sinks.values():
            sink.flush(wait)


class Drain:
    """Read one pipe of one life and cut it into lines.

    Args:
        descriptor: read end, taken over.
        emit: called with each line, without its newline.
    """

    def __init__(self, descriptor: int, emit: Callable[[str], None]) -> None:
        self._descriptor = descriptor
        self._emit = emit
        self._rest = b""
        self._loop = asyncio.get_running_loop()
        self.closed = False
        os.set_blocking(descriptor, False)
        self._loop.add_reader(descriptor, self._readable)

    def __repr__(self) -> str:
        return f"<Drain fd {self._descriptor}{' closed' if self.closed else ''}>"

    def _readable(self) -> None:
        """Take one chunk per loop turn, so that one chatty child does not hold up the others."""
        self._take()

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
        for line in lines:
            self._emit_line(line)
        while len(self._rest) > LINE:
            self._emit_line(self._rest[:LINE])
            self._rest = self._rest[LINE:]
        return True

    def _emit_line(self, line: bytes) -> None:
        self._emit(line.removesuffix(b"\r").decode("utf-8", "surrogateescape"))

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
            self._emit_line(self._rest)
            self._rest = b""


def as_json(level: str, instance: str, stream: str, message: str, at: float) -> bytes:
    """Return one JSON log line (SPEC 11)."""
    moment = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    safe = message.encode("utf-8", "backslashreplace").decode() if not message.isascii() else message
    body = {"at": moment, "level": level, "instance": instance, "stream": stream, "message": safe}
    return msgspec.json.encode(body) + b"\n"


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()
