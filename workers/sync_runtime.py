"""Run a plain `def` target in the main thread, with no event loop: the blocking twin of runtime.py."""

from __future__ import annotations

import _thread
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

from smartipc.ipc import control
from smartipc.ipc.routing.directory import Directory
from smartipc.ipc.sync.handle import SmartIpc
from smartipc.workers.control import ControlClient
from smartipc.workers.signals import stop_signals


def run(
    function: Callable[..., Any],
    launch: control.Launch,
    directory: Directory,
    port: ControlClient,
    started: control.Started,
) -> str:
    """Run the target to its end and return "completed" or "stopped".

    A target that neither serves nor looks at `ipc.stopping` is not interrupted: it is killed when its grace is over.

    Raises:
        BaseException: whatever the target raised.
    """
    ipc = SmartIpc(launch, directory, port)
    ipc._open()

    def on_signal(number: int, _frame: FrameType | None) -> None:
        # The main thread may hold the handle's lock at this very bytecode, so another thread does the work;
        # start_new_thread takes no Python lock, threading.Thread would.
        _thread.start_new_thread(ipc._begin_stop, (f"signal {signal.Signals(number).name}",))

    for asked in stop_signals(launch):
        signal.signal(asked, on_signal)
    port.on_stop_call(ipc._begin_stop)
    port.served = lambda: ipc._registry.served
    port.traffic = lambda: ipc.snapshot().traffic
    port.notify(control.started, started)
    try:
        function(ipc, *launch.args, **launch.kwargs)
    finally:
        ipc._close(launch.grace / 2)
    return "stopped" if ipc.stopping else "completed"
