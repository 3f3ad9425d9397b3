"""Programs that are started: what they get, what they do not get, and both ways to start them."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from kit import alive, wait_for

from smartipc.supervisor.core.process_spec import LimitsSpec
from smartipc.supervisor.host import launch as launching
from smartipc.supervisor.host.launch import Launcher, LaunchError, Program
from smartipc.supervisor.host.vfork import Vfork

pytestmark = pytest.mark.system

Start = Callable[[Program], int]


@pytest.fixture
def launcher() -> Iterator[Launcher]:
    one = Launcher()
    yield one
    one.close()


@pytest.fixture(params=["vfork", "fork"])
def start(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, launcher: Launcher) -> Start:
    """Start programs in one of the two ways, for sure."""
    if request.param == "fork":
        return launching._launch_by_fork
    if launcher._vfork is None:
        pytest.skip("this system's C library has no contexts")

    def refuse(program: Program) -> int:
        raise AssertionError(f"{program.argv} needs no fork")

    monkeypatch.setattr(launching, "_launch_by_fork", refuse)
    return launcher.launch


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe()
    os.set_blocking(read, False)
    yield read, write
    os.close(read)
    os.close(write)


def program(write: int, *argv: str, cwd: str = "/", **more: object) -> Program:
    return Program(argv, {"PATH": os.environ["PATH"], "MARK": "m"}, cwd, write, write, **more)  # type: ignore[arg-type]


def said(pipe: tuple[int, int], pid: int, code: int = 0) -> str:
    """Wait for its end and return what it wrote."""
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == code
    try:
        return os.read(pipe[0], 64 * 1024).decode()
    except BlockingIOError:
        return ""


def test_it_gets_its_environment_directory_and_session(start: Start, pipe: tuple[int, int], tmp_path: Path) -> None:
    script = 'echo "$MARK $$ $PWD $(ps -o sid= -o pgid= -p $$) $0 $1"; env | grep -c .; echo last >&2'
    pid = start(program(pipe[1], "sh", "-c", script, "zero", "one ö", cwd=str(tmp_path)))
    first, count, last = said(pipe, pid).splitlines()
    assert first.split() == ["m", str(pid), str(tmp_path), str(pid), str(pid), "zero", "one", "ö"]
    assert int(count) <= 5, "PATH, MARK, and what a shell adds"
    assert last == "last"


def test_it_holds_nothing_but_its_standard_descriptors(start: Start, pipe: tuple[int, int]) -> None:
    leak = os.dup(pipe[0])
    os.set_inheritable(leak, True)
    try:
        pid = start(program(pipe[1], "ls", "-l", "/proc/self/fd"))
    finally:
        os.close(leak)
    lines = [line.split() for line in said(pipe, pid).splitlines()[1:]]
    targets = {words[-3]: words[-1] for words in lines}
    assert targets.pop("0") == "/dev/null"
    assert targets.pop("1") == targets.pop("2")
    assert len(targets) == 1, "the directory that it lists"


def test_a_high_descriptor_is_closed_although_the_limit_is_low(start: Start, pipe: tuple[int, int]) -> None:
    leak = os.dup2(pipe[0], 200, inheritable=True)
    try:
        pid = start(program(pipe[1], "ls", "/proc/self/fd", limits=LimitsSpec(open_files=64)))
    finally:
        os.close(leak)
    assert "200" not in said(pipe, pid).split()


def test_another_start_of_a_program_gets_what_it_is_given_then(start: Start, pipe: tuple[int, int]) -> None:
    base = {"PATH": os.environ["PATH"], "A": "1", "B": "ö", "C": "same"}
    for env in (base, {**base, "A": "2", "B": "a long one " * 100}, {**base, "D": "new"}, {"C": "alone"}, base):
        one = Program(("/usr/bin/env",), env, "/", pipe[1], pipe[1])
        assert said(pipe, start(one)).splitlines() == [f"{name}={value}" for name, value in env.items()]
    with pytest.raises(LaunchError, match="null"):
        start(Program(("/usr/bin/env",), {**base, "A": "\0"}, "/", pipe[1], pipe[1]))
    assert "A=1" in said(pipe, start(Program(("/usr/bin/env",), base, "/", pipe[1], pipe[1])))


def test_ever_more_programs_are_started_and_few_remembered(launcher: Launcher, pipe: tuple[int, int]) -> None:
    for number in range(100):
        assert said(pipe, launcher.launch(program(pipe[1], "echo", str(number)))) == f"{number}\n"
    assert launcher._vfork is None or len(launcher._vfork._known) <= 64


def test_a_switch_lets_every_program_be_forked(monkeypatch: pytest.MonkeyPatch, pipe: tuple[int, int]) -> None:
    monkeypatch.setenv("SMARTIPC_VFORK", "0")
    launcher = Launcher()
    assert repr(launcher) == "<Launcher by fork>"
    assert said(pipe, launcher.launch(program(pipe[1], "echo", "x"))) == "x\n"
    launcher.close()


@pytest.mark.parametrize("how", ["silent", "killed"])
def test_a_system_where_the_chain_breaks_is_noticed_and_forks(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    chain = Vfork._chain

    def broken(self: Vfork, reset: list[int]) -> dict[str, Any]:
        calls = chain(self, reset)
        number, (_, *arguments) = calls["memset"]
        # Nothing is told, as where the memory is not shared; or the child is killed, as for a wrong return address.
        function = self._libc.getpid if how == "silent" else self._libc.abort
        calls["memset"] = number, (function, *arguments)
        return calls

    monkeypatch.setattr(Vfork, "_chain", broken)
    before = os.listdir("/proc/self/fd"), psutil.Process().children()
    launcher = Launcher()
    assert repr(launcher) == "<Launcher by fork>"
    assert (os.listdir("/proc/self/fd"), psutil.Process().children()) == before, "no zombie either"


def test_its_signals_are_as_no_handler_had_been_there(start: Start, pipe: tuple[int, int]) -> None:
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        pid = start(program(pipe[1], "cat", "/proc/self/status"))
    finally:
        signal.signal(signal.SIGUSR1, before)
    facts = dict(line.split(":\t", 1) for line in said(pipe, pid).splitlines() if line.startswith("Sig"))
    assert [int(facts[name], 16) for name in ("SigBlk", "SigIgn", "SigCgt")] == [0, 0, 0]


def test_our_own_signals_are_as_before(start: Start, pipe: tuple[int, int]) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        said(pipe, start(program(pipe[1], "true")))
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before | {signal.SIGUSR2}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (("/no/such-program",), "cannot run '/no/such-program': No such file"),
        (("/etc/passwd",), "cannot run '/etc/passwd': Permission denied"),
        (("./relative",), "cannot run './relative': No such file"),
        (("sh", "a\0b"), "cannot run 'sh': embedded null byte"),
    ],
)
def test_what_cannot_run_is_told_and_leaves_nothing(
    start: Start, pipe: tuple[int, int], argv: tuple[str, ...], why: str
) -> None:
    before = psutil.Process().children()
    with pytest.raises(LaunchError, match=why):
        start(program(pipe[1], *argv))
    assert psutil.Process().children() == before


def test_after_a_failure_the_next_one_runs(start: Start, pipe: tuple[int, int]) -> None:
    with pytest.raises(LaunchError, match="No such file"):
        start(program(pipe[1], "/no/such-program"))
    assert said(pipe, start(program(pipe[1], "sh", "-c", "exit 7")), code=7) == ""


@pytest.mark.parametrize(
    ("argv", "cwd", "why"),
    [
        (("no-such-program",), "/", "cannot run 'no-such-program': No such file"),
        (("true",), "/no/where", "cwd /no/where: No such file"),
        (("true",), "/etc/passwd", "cwd /etc/passwd: Not a directory"),
    ],
)
def test_whichever_way_is_taken_the_reason_is_told(
    launcher: Launcher, pipe: tuple[int, int], argv: tuple[str, ...], cwd: str, why: str
) -> None:
    before = psutil.Process().children()
    with pytest.raises(LaunchError, match=why):
        launcher.launch(program(pipe[1], *argv, cwd=cwd))
    assert psutil.Process().children() == before


def test_a_name_is_looked_up_in_the_path_of_the_program(start: Start, pipe: tuple[int, int], tmp_path: Path) -> None:
    for folder in ("directory", "forbidden", "right"):
        (tmp_path / folder).mkdir()
    (tmp_path / "directory" / "tool").mkdir()
    (tmp_path / "forbidden" / "tool").write_text("#!/bin/sh\necho wrong\n")
    (tmp_path / "right" / "tool").write_text("#!/bin/sh\necho right\n")
    (tmp_path / "right" / "tool").chmod(0o755)
    env = {"PATH": os.pathsep.join(str(tmp_path / name) for name in ("none", "directory", "forbidden", "right"))}
    assert said(pipe, start(Program(("tool",), env, "/", pipe[1], pipe[1]))) == "right\n"


def test_a_relative_name_is_one_below_its_directory(start: Start, pipe: tuple[int, int], tmp_path: Path) -> None:
    (tmp_path / "tool").write_text("#!/bin/sh\necho here\n")
    (tmp_path / "tool").chmod(0o755)
    assert said(pipe, start(program(pipe[1], "./tool", cwd=str(tmp_path)))) == "here\n"


@pytest.mark.parametrize("files", [None, 100])
def test_its_limit_of_open_files_is_what_was_asked_for(start: Start, pipe: tuple[int, int], files: int | None) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    script = "ulimit -Sn; ulimit -Hn"
    pid = start(program(pipe[1], "sh", "-c", script, limits=LimitsSpec(open_files=files)))
    assert said(pipe, pid).split() == [str(files or soft), str(hard)]
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (soft, hard), "ours is as it was"


def test_inherited_streams_stay_what_they_are(start: Start) -> None:
    pid = start(Program(("true",), {"PATH": os.environ["PATH"]}, "/", 1, 2))
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize(
    "more",
    [{"umask": 0o77}, {"limits": LimitsSpec(open_files=100)}, {"sockets": (0,)}],
    ids=["umask", "limits", "sockets"],
)
def test_what_is_special_is_still_given(launcher: Launcher, pipe: tuple[int, int], more: dict[str, object]) -> None:
    pid = launcher.launch(
        program(pipe[1], "sh", "-c", "umask; ulimit -n; test -e /proc/self/fd/3 && echo open", **more)
    )
    umask, files, *last = said(pipe, pid, code=0 if "sockets" in more else 1).splitlines()
    assert (umask == "0077", files == "100", last == ["open"]) == tuple(
        name in more for name in ("umask", "limits", "sockets")
    )


def test_the_pid_is_told_where_it_is_asked_for(launcher: Launcher, pipe: tuple[int, int]) -> None:
    env = {"PATH": os.environ["PATH"], "WATCHDOG_USEC": "1000000"}
    pid = launcher.launch(Program(("sh", "-c", "echo $WATCHDOG_PID"), env, "/", pipe[1], pipe[1]))
    assert said(pipe, pid) == f"{pid}\n"


@pytest.mark.parametrize("way", ["Launcher().launch", "launch._launch_by_fork"])
def test_it_dies_with_whoever_started_it(way: str) -> None:
    code = (
        "import os, signal\n"
        "from smartipc.supervisor.host import launch\n"
        "from smartipc.supervisor.host.launch import Launcher, Program\n"
        f"print({way}(Program(('sleep', '1000'), dict(os.environ), '/', 1, 2)), flush=True)\n"
        "signal.pause()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.kill()
        parent.wait()
        wait_for(lambda: not alive(pid), "its death")


def test_many_from_several_threads_are_all_right(launcher: Launcher, pipe: tuple[int, int]) -> None:
    def one(number: int) -> int:
        pid = launcher.launch(program(pipe[1], "sh", "-c", f"exit {number % 100}"))
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(one, range(100))) == [number % 100 for number in range(100)]
