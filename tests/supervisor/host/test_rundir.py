"""The runtime directory over kills, moves and tidy strangers. Who may use it is seen in tests/system."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import time
from pathlib import Path

import pytest

from smartipc.supervisor.host.record import RECORD, read_record
from smartipc.supervisor.host.rundir import AlreadyRunning, RuntimeDirectory, base_directory, running_apps


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "r"))
    (tmp_path / "r").mkdir(mode=0o700)
    return base_directory()


def killed(directory: RuntimeDirectory, run: str) -> None:
    """Leave what a killed supervisor leaves: everything but the lock on its file."""
    directory.__enter__()
    directory.record(run, "/etc/a.yaml")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(directory.path / "w.0.1.sock"))
    lock = directory._lock
    assert lock is not None
    os.close(lock)


def test_a_killed_run_is_known_to_the_next_until_it_is_swept(tmp_path: Path) -> None:
    killed(RuntimeDirectory("a", None), "one")
    killed(RuntimeDirectory("a", None), "two")
    with RuntimeDirectory("a", None) as directory:
        assert directory.earlier == ("two", "one")
        directory.record("three", "/etc/a.yaml")
        assert read_record(directory.path).runs == ("three", "two", "one")
        assert [(one.app, one.pid, one.config) for one in running_apps()] == [("a", os.getpid(), "/etc/a.yaml")]
    assert read_record(directory.path).runs == ("two", "one"), "left to the next"
    with RuntimeDirectory("a", None) as directory:
        assert directory.earlier == ("two", "one")
        directory.earlier = ()
        directory.record("four", "")
    assert not directory.path.exists()


@pytest.mark.parametrize(("first", "second"), [(None, "own"), ("own", None), ("own", "other")])
def test_a_killed_run_had_another_place(tmp_path: Path, first: str | None, second: str | None) -> None:
    def at(name: str | None) -> RuntimeDirectory:
        return RuntimeDirectory("a", str(tmp_path / name) if name is not None else None)

    killed(at(first), "one")
    with at(second) as directory:
        assert directory.earlier == ("one",)
        directory.earlier = ()
        directory.record("two", "")
        assert [one.app for one in running_apps()] == ["a"]
        with pytest.raises(AlreadyRunning), at(first):
            pass
    assert list(base_directory().iterdir()) == []


def test_a_directory_that_was_deleted_meanwhile_ends_in_peace() -> None:
    with RuntimeDirectory("a", None) as directory:
        shutil.rmtree(directory.path)
        directory.record("one", "")  # it warns
    assert not (directory.path / RECORD).exists()


def test_a_lock_file_that_was_removed_while_it_was_taken_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A supervisor that ends removes its lock file, directory and all, just when a successor has opened it."""
    first = RuntimeDirectory("a", None)
    first.__enter__()
    flock, left = fcntl.flock, [first]

    def late(descriptor: int, how: int) -> None:
        if left:
            left.pop().__exit__(None, None, None)
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with RuntimeDirectory("a", None) as second:
        assert not left
        assert (second.path / "lock").read_text() == f"{os.getpid()}\n"
        with pytest.raises(AlreadyRunning):
            RuntimeDirectory("a", None).__enter__()


def test_a_look_at_the_lock_is_no_supervisor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands look whether the lock of a killed run is held, and hold it themselves for that moment."""
    killed(RuntimeDirectory("a", None), "one")
    look = os.open(base_directory() / "a" / "lock", os.O_RDONLY)
    fcntl.flock(look, fcntl.LOCK_SH)
    monkeypatch.setattr(time, "sleep", lambda _seconds: fcntl.flock(look, fcntl.LOCK_UN))
    try:
        with RuntimeDirectory("a", None) as directory:
            assert running_apps()[0].directory == str(directory.path)
    finally:
        os.close(look)
