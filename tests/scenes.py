"""Scenes: async handles that meet on a stage, in one loop and one folder, without a supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from smartipc.ipc.handle import SmartIpc
from smartipc.ipc.sync.testing import Stage, StagePort

Scene = Callable[[Stage], Awaitable[None]]


def play(
    scene: Scene, loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None, *, tidy: bool = False
) -> None:
    """Run a scene to its end, within half a minute; `tidy` ones leave nothing in their folder."""
    with tempfile.TemporaryDirectory(prefix="s-") as folder:

        async def main() -> None:
            async with asyncio.timeout(30):
                await scene(Stage(folder))

        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(main())
        if tidy:
            assert os.listdir(folder) == []


@contextlib.asynccontextmanager
async def handle(
    stage: Stage, worker: str, slot: int = 0, *, ready: bool = False, **more: Any
) -> AsyncIterator[SmartIpc]:
    """Give a worker of the stage its handle; `ready` ones are routed to at once."""
    launch = stage.add(worker, slot, **more)
    ipc = SmartIpc(launch, stage.directory(), StagePort(stage, launch))
    await ipc._open()
    if ready:
        stage.set(f"{worker}:{slot}", "ready")
    try:
        yield ipc
    finally:
        ipc._begin_stop("the end of the scene")
        await ipc._close(2.0)


async def until(look: Callable[[], object]) -> None:
    """Let the loop turn until `look` is true, for at most ten seconds."""
    async with asyncio.timeout(10):
        while not look():
            await asyncio.sleep(0.001)
