"""The event log over restarts of the supervisor."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from smartipc.supervisor.core.orders import Announce
from smartipc.supervisor.events import EventLog
from smartipc.supervisor.host import journal
from smartipc.supervisor.host.journal import Journal, open_journal, state_directory


def announce(cause: str, instance: str = "w:0") -> Announce:
    return Announce("instance.state", instance, 1, 7, "stopped", "starting", cause)


def test_numbers_go_on_and_only_since_looks_back(tmp_path: Path) -> None:
    first = Journal(tmp_path)
    log = EventLog(first)
    for cause in ("a", "b", "c"):
        log.append(announce(cause))
    first.close()
    second = Journal(tmp_path)
    log = EventLog(second)
    assert log.since(None).events == []
    assert log.since(None).last == 3
    assert log.append(announce("d"))["seq"] == 4
    assert [event["cause"] for event in log.since(None).events] == ["d"]
    assert [event["cause"] for event in log.since(1).events] == ["b", "c", "d"]
    assert log.since(1).lost == 0
    assert [event["cause"] for event in log.about("w:0", 9)] == ["d"]
    second.close()


def test_a_torn_line_is_ignored(tmp_path: Path) -> None:
    (tmp_path / journal.NAME).write_bytes(b'{"seq": 8, "cause": "whole"}\n[1]\n{"seq": 9, "cau')
    again = Journal(tmp_path)
    log = EventLog(again)
    assert log.append(announce("next"))["seq"] == 9
    again.close()
    assert [event["seq"] for event in Journal(tmp_path).read(10)] == [8, 9]


def test_loss_is_told(tmp_path: Path) -> None:
    (tmp_path / journal.NAME).write_bytes(b'{"seq": 50}\n{"seq": 51}\n')
    kept = Journal(tmp_path)
    log = EventLog(kept)
    assert log.since(10).lost == 39
    assert log.since(51).lost == 0
    assert log.since(99).lost == 0
    kept.close()


def test_the_file_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "MAX_BYTES", 2000)
    kept = Journal(tmp_path)
    log = EventLog(kept)
    for number in range(100):
        log.append(announce(str(number)))
    kept.close()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 4000
    assert Journal(tmp_path).read(1)[0]["seq"] == 100


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert open_journal(tmp_path / "sub") is None


def test_a_file_in_the_way_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    assert open_journal(tmp_path / "file") is None
    assert "see supervisor.state_dir" in caplog.text


def test_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert state_directory("shop", "/var/lib/shop") == Path("/var/lib/shop")
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert state_directory("shop", None) == Path("/state/smartipc/shop")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/me")
    assert state_directory("shop", None) == Path("/home/me/.local/state/smartipc/shop")


def test_only_the_end_of_a_long_history_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / journal.NAME).write_bytes(b"".join(b'{"seq": %d}\n' % number for number in range(100, 200)))
    monkeypatch.setattr(journal, "_READ", 50)
    kept = Journal(tmp_path)
    assert [event["seq"] for event in kept.read(100)] == [197, 198, 199]
    kept.close()
