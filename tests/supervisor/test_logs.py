"""The supervisor's own log file when there is no room for it."""

from __future__ import annotations

import logging
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from smartipc.supervisor import logs
from smartipc.supervisor.core.spec import LogSpec

log = logging.getLogger("smartipc.supervisor")


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "log"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    logger = logging.getLogger("smartipc")
    before = logger.level, logger.propagate
    handler = logs.configure(LogSpec(file=str(path)))
    yield path
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    logger.removeHandler(handler)
    handler.close()
    logger.level, logger.propagate = before


def room(nbytes: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes if nbytes >= 0 else hard, hard))


def test_lines_that_find_no_room_are_lost_and_told(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log.info("first")
    room(file.stat().st_size + 10)
    for number in range(3):
        log.info("lost %d", number)
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1
    assert told.startswith(f"{file}: ")
    assert "lost 0" in told
    room(-1)
    log.info("last")
    lines = file.read_text().splitlines()
    assert [line.partition("info    ")[2] for line in lines if "info    " in line] == ["first", "last"]
    assert lines[-1].endswith("warning 3 lines of this log are lost")
    assert len(lines) == 4, "the torn line ends where there was no more room"


def test_a_full_disk_shows_no_traceback_and_spoils_no_end(capsys: pytest.CaptureFixture[str]) -> None:
    handler = logs.configure(LogSpec(file="/dev/full"))
    log.info("nobody reads this")
    logging.getLogger("smartipc").removeHandler(handler)
    handler.close()
    assert capsys.readouterr().err == "/dev/full: No space left on device; lines are lost, first: nobody reads this\n"
