"""Run an `async def` target: event loop, handle, signals, loop heartbeat, and the end of the life.

The blocking twin is sync_runtime.py. What both share (loading, exit facts) is in bootstrap.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any

from smartipc.ipc import control
from smartipc.ipc.handle import SmartIpc
from smartipc.ipc.routing.directory import Directory
from smartipc.workers.control import ControlClient
from smartipc.workers.signals import stop_signals

_CANCEL_AT = 0.8
"""Share of the grace after which a target that ignores `ipc.stopping` is cancelled, so that its `finally` runs."""


_FOREVER = 1e6
_prepared: list[asyncio.AbstractEventLoop] = []


def prepare() -> None:
    """Make the event loop ahead: a spare has the time, and whoever waits for it to take over has not."""
    _prepared.append(new_event_loop())


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Return the one that was prepared, else a uvloop where it is installed, else asyncio's own loop."""
    if _prepared:
        return _prepared.pop()
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def run(
    function: Callable[..., Awaitable[Any]],
    launch: control.Launch,
    directory: Directory,
    port: ControlClient,
    started: control.Started,
) -> str:
    """Run the target to its end and return "completed" or "stopped".

    Raises:
        BaseException: whatever the target raised.
    """
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(_life(function, launch, directory, port, started))


async def _life(
    function: Callable[..., Awaitable[Any]],
    launch: control.Launch,
    directory: Directory,
    port: ControlClient,
    started: control.Started,
) -> str:
    loop = asyncio.get_running_loop()
    ipc = SmartIpc(launch, directory, port)
    await ipc._open()
    if started.heartbeat_source == "loop":
        _tick(loop, port, launch.heartbeat.interval / 2)
    for number in stop_signals(launch):
        loop.add_signal_handler(number, ipc._begin_stop, f"signal {number.name}")
    port.on_stop_call(ipc._begin_stop)
    port.on_hang_call(lambda: loop.call_soon_threadsafe(time.sleep, _FOREVER))
    main = asyncio.ensure_future(_call(function, ipc, launch))
    watch = asyncio.ensure_future(_cancel_late(ipc, main, launch.grace * _CANCEL_AT))
    port.served = lambda: ipc._registry.served
    port.traffic = lambda: ipc.snapshot().traffic
    port.notify(control.started, started)
    try:
        await main
    except asyncio.CancelledError:
        if not ipc.stopping:
            raise
    finally:
        watch.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watch
        await ipc._close(launch.grace / 2)
    return "stopped" if ipc.stopping else "completed"


async def _call(function: Callable[..., Awaitable[Any]], ipc: SmartIpc, launch: control.Launch) -> None:
    await function(ipc, *launch.args, **launch.kwargs)


async def _cancel_late(ipc: SmartIpc, main: asyncio.Future[None], delay: float) -> None:
    await ipc.stopped()
    await asyncio.sleep(delay)
    main.cancel()


def _tick(loop: asyncio.AbstractEventLoop, port: ControlClient, period: float) -> None:
    port.turned()
    loop.call_later(period, _tick, loop, port, period)
