"""Output of instances: splitting, prefixing, bounded tails, files that rotate, sinks that never block."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from smartipc.supervisor.host.logfile import LogFile, LogFiles
from smartipc.supervisor.host.output import TAIL, TAIL_BYTES, Drain, Output, Tail, _prefixed
from smartipc.supervisor.host.sink import BACKLOG, Sink


@pytest.mark.parametrize(
    ("chunks", "lines"),
    [
        ([b"a\nb\n"], [b"a", b"b"]),
        ([b"a", b"b\nc", b"\n"], [b"ab", b"c"]),
        ([b"a\r\nb\r\n"], [b"a", b"b"]),
        ([b"no end"], [b"no end"]),
        ([b"\n\n"], [b"", b""]),
        ([b"x" * 150_000 + b"\n"], [b"x" * 65536, b"x" * 65536, b"x" * 18928]),
        ([b"\xff\xfe\n"], [b"\xff\xfe"]),
    ],
)
def test_a_pipe_is_cut_into_lines(chunks: list[bytes], lines: list[bytes]) -> None:
    async def run() -> list[bytes]:
        read, write = os.pipe()
        found: list[bytes] = []
        drain = Drain(read, found.extend)
        for chunk in chunks:
            view = memoryview(chunk)
            while view:
                view = view[os.write(write, view[:4096]) :]
                await asyncio.sleep(0)
        os.close(write)
        drain.finish()
        assert drain.closed
        return found

    assert asyncio.run(run()) == lines


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (b"plain", b"w:0 | plain\n"),
        (b"a\ttab", b"w:0 | a\ttab\n"),
        (b"\x1b[2Jcleared", b"w:0 | \\x1b[2Jcleared\n"),
        (b"bell\x07", b"w:0 | bell\\x07\n"),
        ("grüße".encode(), "w:0 | grüße\n".encode()),
        (b"\xff", b"w:0 | \\xff\n"),
        ("c1 \x9b".encode(), b"w:0 | c1 \\x9b\n"),
    ],
)
def test_what_could_move_the_cursor_is_escaped(line: bytes, shown: bytes) -> None:
    assert _prefixed("w:0", [line]) == shown


def test_a_batch_is_prefixed_line_by_line() -> None:
    assert _prefixed("w:0", [b"a", b"", b"c"]) == b"w:0 | a\nw:0 | \nw:0 | c\n"


def test_a_tail_is_bounded_in_lines_and_bytes() -> None:
    tail = Tail()
    tail.extend(1, 0.0, "stdout", [b"%d" % n for n in range(5000)])
    kept = tail.newest("w:0", 10_000, 0, None)
    assert len(kept) == TAIL
    assert (kept[0].message, kept[-1].message, kept[-1].seq) == ("4000", "4999", 5000)
    tail.extend(5001, 0.0, "stderr", [b"x" * 65536] * 100)
    kept = tail.newest("w:0", 10_000, 0, None)
    assert sum(len(line.message) for line in kept) <= TAIL_BYTES
    assert tail.newest("w:0", 2, 5099, None) == kept[-1:]
    assert tail.newest("w:0", 5, 0, "stdout") == []


def test_an_instance_that_is_no_more_leaves_no_tail() -> None:
    output = Output()
    for number in range(3):
        output.mark(f"w:{number}", "began")
    output.forget("w:1")
    output.forget("w:1")
    assert repr(output) == "<Output of 2 instances, 3 lines>"
    assert (output.tail("w:1", lines=9), len(output.tail("w:2", lines=9))) == ([], 1)


def test_a_slow_reader_loses_lines_and_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    read, write = os.pipe()
    sink = Sink(write)
    line = b"x" * 1023 + b"\n"
    for _ in range(BACKLOG // 1024 + 200):
        sink.write(line)
    assert "lines dropped" in repr(sink)
    os.set_blocking(read, False)
    got = b""
    while chunk := _read(read):
        got += chunk
        sink.flush(0.0)
    sink.write(b"after\n")
    got += _read(read)
    os.close(read)
    os.close(write)
    assert b"lines dropped, their reader was too slow\nafter\n" in got
    assert got.startswith(line)


def test_a_reader_that_is_gone_costs_nothing() -> None:
    read, write = os.pipe()
    os.close(read)
    sink = Sink(write)
    sink.write(b"lost\n")
    assert "0 bytes waiting" in repr(sink)
    os.close(write)


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 1 << 20)
    except BlockingIOError:
        return b""


def test_json_lines(capfd: pytest.CaptureFixture[str]) -> None:
    output = Output(json=True)
    output.lines("w:0", "stderr", [b'say "hi"', b"\xff"])
    output.flush(1.0)
    first, second = (json.loads(line) for line in capfd.readouterr().err.splitlines())
    assert set(first) == {"at", "level", "instance", "stream", "message"}
    assert (first["instance"], first["stream"], first["message"]) == ("w:0", "stderr", 'say "hi"')
    assert second["message"] == "\\xff"


def test_a_mark_is_in_the_tail_only(capfd: pytest.CaptureFixture[str]) -> None:
    output = Output()
    output.lines("w:0", "stdout", [b"before"])
    output.mark("w:0", "--- again ---")
    assert [line.message for line in output.tail("w:0", lines=9)] == ["before", "--- again ---"]
    assert [line.message for line in output.tail("w:0", lines=9, stream="stdout")] == ["before"]
    assert output.tail("nobody:0", lines=9) == []
    output.flush(1.0)
    assert capfd.readouterr().out == "w:0 | before\n"


def test_a_file_is_rotated_between_lines(tmp_path: Path) -> None:
    path = tmp_path / "w.log"
    file = LogFile(str(path), 30, 2)
    for number in range(10):
        file.write(b"line number %d\n" % number)
    file.close()
    assert path.read_bytes() == b"line number 8\nline number 9\n"
    assert (tmp_path / "w.log.1").read_bytes() == b"line number 6\nline number 7\n"
    assert (tmp_path / "w.log.2").read_bytes() == b"line number 4\nline number 5\n"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["w.log", "w.log.1", "w.log.2"]


def test_without_backups_a_full_file_is_emptied(tmp_path: Path) -> None:
    path = tmp_path / "w.log"
    path.write_bytes(b"from before\n")
    file = LogFile(str(path), 15, 0)
    file.write(b"fresh\n")
    file.close()
    assert path.read_bytes() == b"fresh\n"


def test_a_file_is_shared_by_path(tmp_path: Path) -> None:
    files = LogFiles()
    path = str(tmp_path / "shared.log")
    one, two = files.open(path, 100, 1), files.open(path, 100, 1)
    assert one is two
    files.release(one)
    two.write(b"still open\n")
    files.release(two)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(two._descriptor)


def test_a_full_disk_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    file = LogFile("/dev/full", 0, 0)
    file.write(b"lost\n")
    file.write(b"lost too\n")
    file.close()
    assert caplog.text.count("No space left on device") == 1
