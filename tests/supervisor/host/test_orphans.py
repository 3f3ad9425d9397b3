"""Finding children and what they left, with the kernel's lists and without."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kit import alive, wait_for

from smartipc.supervisor.host import orphans
from smartipc.supervisor.host.life import Life
from smartipc.supervisor.host.orphans import Orphans, children, descendants, environment
from smartipc.supervisor.host.prctl import adopt_orphans

FAMILY = """
import os, subprocess, sys
one = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"], stdout=2, start_new_session=True)
print(one.pid, flush=True)
sys.stdin.read()
os._exit(0)
"""


@pytest.fixture(params=["lists", "no lists"])
def kernel(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A kernel that keeps lists of children, and one that does not (CONFIG_PROC_CHILDREN)."""
    if request.param == "no lists":
        monkeypatch.setattr(orphans, "PROC", tmp_path)
    adopt_orphans(on=True)
    yield
    adopt_orphans(on=False)


@pytest.fixture
def family() -> Iterator[Callable[[], tuple[subprocess.Popen[str], int]]]:
    """Start a child with a marked child of its own."""
    made: list[tuple[subprocess.Popen[str], int]] = []

    def start() -> tuple[subprocess.Popen[str], int]:
        env = {**os.environ, "SMARTIPC_RUN_ID": "r", "SMARTIPC_INSTANCE": "w:0", "SMARTIPC_GENERATION": "3"}
        child = subprocess.Popen(
            [sys.executable, "-c", FAMILY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )
        assert child.stdout is not None
        made.append((child, int(child.stdout.readline())))
        return made[-1]

    yield start
    for child, grandchild in made:
        child.communicate()
        if alive(grandchild):
            os.kill(grandchild, signal.SIGKILL)


@pytest.mark.usefixtures("kernel")
def test_children_and_theirs_are_found(family: Callable[[], tuple[subprocess.Popen[str], int]]) -> None:
    child, grandchild = family()
    assert child.pid in children()
    assert children(child.pid) == [grandchild]
    assert {child.pid, grandchild} <= set(descendants(os.getpid()))
    assert children(grandchild) == []
    child.communicate()
    assert children(child.pid) == [], "gone"
    assert grandchild in children(), "adopted"


@pytest.mark.usefixtures("kernel")
def test_what_a_life_left_is_killed_and_reaped(family: Callable[[], tuple[subprocess.Popen[str], int]]) -> None:
    child, grandchild = family()
    looking = Orphans("r", set, exclusive=False)
    life = Life("w:0", 3, child.pid, time.monotonic(), -1, child.pid)
    other = Life("w:0", 2, child.pid, time.monotonic(), -1, child.pid)
    child.communicate()
    assert not looking.kill_those_of(other)
    assert looking.kill_those_of(life)
    assert set(life.swept) == {grandchild}
    wait_for(lambda: not alive(grandchild), "it dies")
    os.waitpid(grandchild, 0)
    assert not looking.kill_those_of(life)
    looking.close()


def test_an_environment_that_is_not_there_yet_is_looked_at_again(tmp_path: Path) -> None:
    """Within exec, /proc shows an empty one for a moment."""
    folder = tmp_path / "4711"
    folder.mkdir()
    (folder / "exe").touch()
    (folder / "environ").touch()

    def pause(_seconds: float) -> None:
        (folder / "environ").write_bytes(b"SMARTIPC_RUN_ID=r\0")

    assert environment(4711, proc=str(tmp_path), pause=pause) == b"SMARTIPC_RUN_ID=r\0"


def test_what_has_no_environment_or_has_ended_is_not_waited_for(tmp_path: Path) -> None:
    proc = str(tmp_path)
    for pid in ("1", "2"):
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "environ").touch()
    (tmp_path / "1" / "exe").touch()
    assert (environment(1, proc=proc), environment(2, proc=proc)) == (b"", b"")
    with pytest.raises(FileNotFoundError):
        environment(3, proc=proc)
