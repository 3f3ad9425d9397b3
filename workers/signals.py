"""Which signals mean "stop" to a worker. Only the choice: each runtime installs its own kind of handler."""

from __future__ import annotations

import signal

from smartipc.ipc import control


def stop_signals(launch: control.Launch) -> set[signal.Signals]:
    """Return the signals that mean "stop" to this worker."""
    return {signal.SIGTERM, signal.SIGINT, signal.Signals[launch.stop_signal]} - {signal.SIGKILL}
