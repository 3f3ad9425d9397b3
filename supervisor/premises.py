"""The runtime directory while the app runs: somebody may tidy it away, and nobody finds us, and another may start.

It is looked at now and then, and made again with everything in it. What workers listen at cannot be made again by us:
those are replaced, one after the other, and talk over the connections that they have until then.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING

from smartipc.supervisor.core.facts import ReloadOrdered, ShutdownOrdered
from smartipc.supervisor.host.rundir import AlreadyRunning, UnsafeDirectory

if TYPE_CHECKING:
    from smartipc.supervisor.runner import App

log = logging.getLogger("smartipc.supervisor")
_LOOK = 2.0
"""Seconds between two looks: two stat calls."""


class Premises:
    """Keep the runtime directory of an app.

    Args:
        app: the running app.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._timer: asyncio.TimerHandle | None = None
        self._lost = False

    def __repr__(self) -> str:
        return f"<Premises {self._app.directory!r}>"

    def begin(self) -> None:
        """Look at it from now on."""
        self._timer = asyncio.get_running_loop().call_later(_LOOK, self._look)

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        if self._app.core.app_state == "stopping" or self._app.directory.intact():
            self.begin()
        else:
            self._app.keep(self._restore())

    async def _restore(self) -> None:
        app = self._app
        try:
            app.directory.restore()
            app.control.listen_again()
            await app.listen_as_operator()
            await app.host.renew()
        except AlreadyRunning as error:
            log.error("%s, since %s was deleted: this one ends", error, app.directory.path)
            app.feed(ShutdownOrdered(f"process {error.pid} has taken the app over", code=1))
            return
        except (OSError, UnsafeDirectory) as error:
            if not self._lost:
                log.error("the runtime directory was deleted and cannot be made again: %s", error)
            self._lost = True
            self.begin()
            return
        self._lost = False
        app.directory.record(app.run_id, app.spec.config_path)
        deaf = [name for name, generation in app.host.lives if self._is_deaf(name, generation)]
        log.error(
            "the runtime directory %s was deleted while the app runs, and is made again; nobody can connect to %s any "
            "more: replaced",
            app.directory.path,
            ", ".join(deaf) or "no worker",
        )
        if deaf:
            app.order(lambda number: ReloadOrdered(tuple(dict.fromkeys(deaf)), number))
        self.begin()

    def _is_deaf(self, instance: str, generation: int) -> bool:
        """Tell whether a life's own socket is gone."""
        if self._app.worker_of(instance).target is None:
            return False
        return not os.path.exists(self._app.address(instance, generation).removeprefix("unix://"))
