"""Lives begin here: what the core orders is started, with its hooks before it, and what came of it is told to the core.

A successor whose predecessor has just ended is launched before anything else is done about that end: the event log,
the directory and whoever follows them hear of both right after. How a process is made is host/'s business.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from smartipc.ipc import control
from smartipc.ipc.drivers.aio import Link
from smartipc.ipc.protocol.connection import Connection
from smartipc.ipc.protocol.handshake import Identity
from smartipc.ipc.wire.limits import Limits
from smartipc.supervisor.core.facts import Spawned, SpawnFailed, Started
from smartipc.supervisor.core.orders import Announce, Order, Spawn
from smartipc.supervisor.environment import inherited, life_environment
from smartipc.supervisor.host.life import Life
from smartipc.supervisor.host.process import SpawnError
from smartipc.supervisor.pipe import WorkerPipe

if TYPE_CHECKING:
    from smartipc.supervisor.core.spec import WorkerSpec
    from smartipc.supervisor.runner import App

log = logging.getLogger("smartipc.supervisor")
CHILD_LIMITS = Limits(accept_timeout=24 * 3600.0)
"""On the child-process pipe: a child on a loaded machine may take its time to start; start_timeout judges that."""
_REFILL = 0.05
"""Seconds after the start of a life until its spares are brought up: a fork would take a core from its first steps."""
_PAUSE = 0.01
"""Seconds between two launches ahead: when many die at once, the loop turns between their successors, as ever."""


class Spawning:
    """Start the lives of an app.

    Args:
        app: the running app.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._inherited = inherited()
        self._launched: dict[tuple[str, int], Life | SpawnError] = {}
        """What was launched ahead, until its order is performed."""
        self._ahead_at = 0.0

    def __repr__(self) -> str:
        return f"<Spawning {len(self._launched)} ahead>"

    def launch_ahead(self, orders: Sequence[Order], now: float) -> None:
        """Launch the first life that these orders ask for, before they are performed.

        Args:
            orders: what the core has just ordered, with nothing left to do from before.
            now: monotonic seconds.
        """
        spawn = next((order for order in orders if isinstance(order, Spawn)), None)
        if spawn is None or now - self._ahead_at < _PAUSE:
            return
        if not all(order is spawn or isinstance(order, Announce) for order in orders):
            return  # something else is to be done, and may have to come first
        app = self._app
        worker = app.worker_of(spawn.instance)
        if not app.hooks.holds(worker, spawn):
            self._ahead_at = now
            self._launched[spawn.instance, spawn.generation] = self._launch(worker, spawn)

    def perform(self, order: Spawn) -> None:
        """Do as ordered: at once, or when the hooks that come first are over."""
        if (order.instance, order.generation) in self._launched or not self._app.hooks.hold(
            self._app.worker_of(order.instance), order, self._spawn
        ):
            self._spawn(order)

    def failed(self, instance: str, generation: int, reason: str) -> None:
        """Tell the core that a life has ended before it had a process."""
        self._app.exit_times[instance] = time.time()
        self._app.feed(SpawnFailed(instance, generation, reason))

    def _launch(self, worker: WorkerSpec, order: Spawn) -> Life | SpawnError:
        host = self._app.host
        if not order.warm and order.generation > 1:
            host.spares.discard(worker.name)  # a planned life is to run the code as it is now; so are they
        try:
            # A function worker is told its environment when it asks what to become.
            env = self.environment(worker, order.instance, order.generation) if worker.command is not None else {}
            return host.spawn(worker, order.instance, order.generation, env, warm=order.warm)
        except SpawnError as error:
            return error

    def _spawn(self, order: Spawn) -> None:
        app, key = self._app, (order.instance, order.generation)
        worker = app.worker_of(order.instance)
        life = self._launched.pop(key, None) or self._launch(worker, order)
        if isinstance(life, SpawnError):
            log.error("%s: %s", order.instance, life, extra={"instance": order.instance})
            self.failed(*key, str(life))
            return
        app.begin_saying(*key)
        if worker.ready_log is not None:
            app.log_readiness.watch(key, worker.ready_log)
        if order.generation > 1:
            app.output.mark(order.instance, f"--- generation {order.generation} begins, process {life.pid} ---")
        app.feed(Spawned(*key, life.pid))
        if life.pipe is None:
            app.feed(Started(*key, watched=worker.heartbeat.source == "process"))
        else:
            connection = Connection("server", Identity(control.SUPERVISOR, app.pid, app=app.spec.app), CHILD_LIMITS)
            app.links[key] = Link(life.pipe, connection, WorkerPipe(app, life, worker))

    # spares

    def refill_soon(self, instance: str) -> None:
        """Bring up the spares of an instance's worker, when its own life is past its first steps."""
        if self._app.worker_of(instance).spares:
            self._app.loop.call_later(_REFILL, self.warm_up, instance)

    def warm_up(self, instance: str) -> None:
        """Bring up the spares of a worker."""
        worker = self._app.worker_of(instance)
        if worker.spares and self._app.core.app_state != "stopping":
            env = self.environment(worker, instance, 0)
            for name in ("SMARTIPC_INSTANCE", "SMARTIPC_SLOT", "SMARTIPC_GENERATION"):
                del env[name]
            self._app.host.spares.fill(worker, env)

    def environment(self, worker: WorkerSpec, instance: str, generation: int) -> dict[str, str]:
        """Return the complete environment of a life."""
        app = self._app
        return life_environment(
            self._inherited, app.spec.app, app.run_id, worker, instance, generation, app.telling.address
        )
