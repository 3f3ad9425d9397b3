"""The guardian: a tiny process that ends what is left when the supervisor dies, by whatever means.

Run as a script by an isolated interpreter, so it imports only the standard library and nothing of smartipc. It reads
lines from standard input: "run ID", "add PID STARTTIME GRACE", "del PID", "quit". When the input ends without "quit",
the supervisor was killed: every group still listed gets SIGTERM and SIGCONT, and after its grace SIGKILL; so does, at
the end, every process whose environment carries the run's ID. Workers that are stopped, hung or blocked cannot notice
the death themselves; this process can.
"""

from __future__ import annotations

import os
import signal
import sys
import time

PERIOD = 0.05
"""Seconds between two looks at what is still alive, only after the supervisor's death."""
LOOKS = 100
"""Most looks for what carries the run's mark: something that cannot be killed must not keep us for ever."""


def start_time(pid: int) -> str | None:
    """Return the kernel's start time of a process, which tells it from a later one with the same pid."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[19].decode()
    except (OSError, IndexError):
        return None


def is_same(pid: int, started: str) -> bool:
    """Tell whether `pid` is still the process that was registered; its group may outlive it."""
    now = start_time(pid)
    return now is None or now == started


def signal_group(pid: int, number: int) -> bool:
    """Signal a group; return whether it exists."""
    try:
        os.killpg(pid, number)
    except OSError:
        return False
    return True


def watch() -> tuple[str, dict[int, tuple[str, float]]] | None:
    """Read registrations until the input ends; return the run and what is registered, or None after "quit"."""
    run = ""
    groups: dict[int, tuple[str, float]] = {}
    for line in sys.stdin:
        words = line.split()
        if words[:1] == ["run"]:
            run = words[1]
        elif words[:1] == ["add"]:
            groups[int(words[1])] = (words[2], float(words[3]))
        elif words[:1] == ["del"]:
            groups.pop(int(words[1]), None)
        elif words[:1] == ["quit"]:
            return None
    return run, groups


def end_all(groups: dict[int, tuple[str, float]]) -> None:
    """Ask every group to end, and kill what is left when its grace is over."""
    left = {pid: entry for pid, entry in groups.items() if is_same(pid, entry[0])}
    begun = time.monotonic()
    for pid in left:
        signal_group(pid, signal.SIGTERM)
        signal_group(pid, signal.SIGCONT)
    while left:
        for pid, (_started, grace) in list(left.items()):
            over = time.monotonic() - begun >= grace
            # After SIGKILL there is nothing to wait for: what still answers are zombies that init has not reaped.
            if not signal_group(pid, signal.SIGKILL if over else 0) or over:
                del left[pid]
        time.sleep(PERIOD)


def end_marked(run: str) -> None:
    """Kill every process of the run that has left its group: marked by its environment."""
    for _ in range(LOOKS):
        if not kill_marked(f"SMARTIPC_RUN_ID={run}".encode()):
            return
        time.sleep(PERIOD)


def kill_marked(mark: bytes) -> bool:
    """Kill those that a look at all processes shows; return whether there were any. They may have started others."""
    found = False
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/environ", "rb") as file:
                marked = mark in file.read().split(b"\0")
            if marked and int(name) != os.getpid():
                os.kill(int(name), signal.SIGKILL)
                found = True
        except OSError:
            continue
    return found


def main() -> None:
    """Watch, and act when the watch ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    found = watch()
    if found is not None:
        run, groups = found
        end_all(groups)
        if run and os.path.isdir("/proc/self"):
            end_marked(run)


if __name__ == "__main__":
    main()
