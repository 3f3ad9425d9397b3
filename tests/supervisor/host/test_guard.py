"""The supervisor's end of the guardian, when the guardian does not do its part."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
from kit import alive, wait_for

from smartipc.supervisor.host.guard import Guard

pytestmark = [pytest.mark.system, pytest.mark.timeout(30)]


def test_a_stopped_guardian_holds_nobody_up() -> None:
    """Not when it is dismissed at the end of the app."""

    async def run() -> int:
        guard = Guard("r")
        guard.start()
        pid = guard.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        guard.dismiss()
        assert guard.pid is None
        return pid

    pid = asyncio.run(run())
    wait_for(lambda: not alive(pid), "the guardian is gone")


def test_a_guardian_that_reads_nothing_is_replaced_and_told_everything() -> None:
    """Its pipe holds 64 KiB: what does not go in must not block the supervisor."""

    async def run() -> None:
        guard = Guard("r")
        guard.start()
        first = guard.pid
        assert first is not None
        os.kill(first, signal.SIGSTOP)
        try:
            for number in range(5_000):
                guard.add(2_000_000_000 + number, 1.0)
                guard.remove(2_000_000_000 + number)
            wait_for(lambda: not alive(first), "the stopped one is gone")
            async with asyncio.timeout(10):
                while guard.pid in (None, first):
                    await asyncio.sleep(0.01)
        finally:
            guard.dismiss()

    asyncio.run(run())
