"""What a spare does ahead leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import os, signal, sys, threading
from smartipc.ipc.observe.traffic import Ledger, traffic
from smartipc.workers import bootstrap, rehearsal

def mine(number, frame): ...

if os.fork():  # a spare is a forked process
    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
lives = []
def run(*life):
    lives.append((life[1].worker, bootstrap._run(*life)))

def state():
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    wake = signal.set_wakeup_fd(-1)
    return handlers, wake, threading.active_count(), sorted(os.listdir("/proc/self/fd"))

signal.signal(signal.SIGTERM, mine)
signal.signal(signal.SIGINT, signal.SIG_DFL)
rehearsal.rehearse(run, sys.argv[1])  # once for what importing opens
before = state()
rehearsal.rehearse(run, sys.argv[1])
assert state() == before, (state(), before)
assert before[0] == [mine, signal.SIG_DFL] and before[1] == -1 and before[2] == 1, before
assert lives == [("rehearsal", "completed")] * 2, lives
assert traffic() == Ledger().traffic(), traffic()
"""


@pytest.mark.parametrize("kind", ["async", "blocking"])
def test_a_rehearsal_leads_a_life_to_its_end_and_leaves_nothing(kind: str) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, kind], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
