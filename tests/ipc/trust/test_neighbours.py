"""Who may connect to a worker's socket: its neighbours under their own names, and nobody else."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from smartipc.ipc import control
from smartipc.ipc.control import Entry
from smartipc.ipc.errors import ConnectFailed
from smartipc.ipc.protocol.handshake import Identity
from smartipc.ipc.routing.directory import Directory
from smartipc.ipc.transports.unix import UnixSocketTransport
from smartipc.ipc.trust.neighbours import Neighbours, dial_life, is_life

ME = os.getpid()


def told(*entries: Entry) -> Directory:
    directory = Directory()
    directory.apply(control.Directory(1, entries, full=True))
    return directory


def entry(instance: str, pid: int, generation: int = 1, state: control.State = "ready", **more: object) -> Entry:
    worker, _, slot = instance.partition(":")
    return Entry(instance, worker, int(slot or 0), generation, pid, state, **more)  # type: ignore[arg-type]


@pytest.fixture
def arrival() -> socket.socket:
    near, far = socket.socketpair()
    far.close()
    return near


@pytest.mark.parametrize(
    ("peer", "admitted"),
    [
        (Identity("a:0", ME, 3), True),
        (Identity("a:0", ME, 2), False),
        (Identity("a:0", ME, 4), False),
        (Identity("a:1", ME, 3), False),
        (Identity("b:0", ME, 1), False),
        (Identity("$supervisor", ME, 1), False),
        (Identity("", ME, 0), False),
    ],
)
def test_a_worker_comes_in_under_its_own_name_only(peer: Identity, admitted: bool, arrival: socket.socket) -> None:
    with arrival:
        entries = (entry("a:0", ME, 3), entry("b:0", 1), entry("$supervisor", 2))
        admit = Neighbours(told(*entries)).admission(arrival)
        assert admit is not None
        assert (admit(peer) == "") is admitted
        if not admitted:
            assert f"process {ME} is not generation {peer.generation} of '{peer.name}'" in admit(peer)


def test_an_unknown_process_waits_and_is_refused_in_the_end(arrival: socket.socket) -> None:
    with arrival:
        directory = told(entry("a:0", 1))
        neighbours = Neighbours(directory)
        assert neighbours.admission(arrival) is None
        assert neighbours.refusal(arrival)(Identity("a:0", ME, 1)) == f"process {ME} is no worker of this app"
        directory.apply(control.Directory(2, (entry("b:0", ME),)))
        admit = neighbours.admission(arrival)
        assert admit is not None
        assert admit(Identity("b:0", ME, 1)) == ""


def test_a_life_beside_the_current_one_is_itself_until_it_has_ended(arrival: socket.socket) -> None:
    with arrival:
        directory = told(entry("a:0", ME, 1))
        neighbours = Neighbours(directory)
        directory.apply(control.Directory(2, (entry("a:0", 1, 2), entry("a:0", ME, 1, "stopping", current=False))))
        admit = neighbours.admission(arrival)
        assert admit is not None
        assert admit(Identity("a:0", ME, 1)) == ""
        assert admit(Identity("a:0", ME, 2)) != ""
        directory.apply(control.Directory(3, (entry("a:0", ME, 1, "exited", current=False),)))
        assert neighbours.admission(arrival) is None


def test_a_process_that_has_ended_is_no_neighbour(arrival: socket.socket) -> None:
    with arrival:
        directory = told(entry("a:0", ME, 1))
        directory.apply(control.Directory(2, (entry("a:0", ME, 1, "failed"),)))
        assert Neighbours(directory).admission(arrival) is None


def test_where_the_user_is_trusted_strangers_come_in_under_strange_names(arrival: socket.socket) -> None:
    with arrival:
        admit = Neighbours(told(entry("a:0", 1), entry("$supervisor", 2)), "user").admission(arrival)
        assert admit is not None
        for name in ("", "notebook", "ab:0"):
            assert admit(Identity(name, ME, 0)) == ""
        for name in ("a", "a:0", "a:7", "$supervisor", "$x"):
            assert "a name of this app's own" in admit(Identity(name, ME, 0))


def test_a_worker_stays_itself_where_the_user_is_trusted(arrival: socket.socket) -> None:
    with arrival:
        admit = Neighbours(told(entry("a:0", ME)), "user").admission(arrival)
        assert admit is not None
        assert admit(Identity("notebook", ME, 0)) != ""


def test_dialling_an_instance_means_its_process(folder: Path) -> None:
    listener = UnixSocketTransport(f"{folder}/s").listen()
    dial_life(entry("a:0", ME, address=f"unix://{folder}/s")).close()
    dial_life(entry("a:0", 0, address=f"unix://{folder}/s")).close()
    with pytest.raises(ConnectFailed, match=f"process {ME} listens there in place of a:0"):
        dial_life(entry("a:0", 1, address=f"unix://{folder}/s"))
    listener.close()
    with pytest.raises(ConnectFailed):
        dial_life(entry("a:0", ME, address=f"unix://{folder}/s"))


def test_whoever_answers_must_be_the_one_that_was_dialled() -> None:
    admit = is_life(entry("a:0", ME, 2))
    assert admit(Identity("a:0", 1, 2)) == ""
    assert "'a:0' answered in place of a:0" in admit(Identity("a:0", 1, 1))
    assert admit(Identity("b:0", 1, 2)) != ""
