"""What commands tell by sd_notify, turned into facts and notes; and what we tell systemd of ourselves.

The bytes are host/notify.py's business, what a fact leads to the core's.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from typing import TYPE_CHECKING

from smartipc.ipc.wire.text import shown
from smartipc.supervisor.core.facts import Beat, BecameReady, Extended, Spawned, Unwell
from smartipc.supervisor.core.orders import Announce
from smartipc.supervisor.host.life import Life
from smartipc.supervisor.host.notify import NotifySocket, Upward

if TYPE_CHECKING:
    from smartipc.supervisor.runner import App

log = logging.getLogger("smartipc.supervisor")
_STATUS = 1000
"""Characters of a STATUS that are kept."""
_QUIET = 1.0
"""Seconds between two warnings of strangers."""


class Telling:
    """Hear children, tell systemd.

    Args:
        app: the running app.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._socket: NotifySocket | None = None
        self._upward = Upward(os.environ, app.pid)
        self._sign: asyncio.TimerHandle | None = None
        self._ready_told = False
        self._quiet_until = 0.0

    def __repr__(self) -> str:
        return f"<Telling {self._socket!r}>"

    @property
    def address(self) -> str:
        """What children find in NOTIFY_SOCKET."""
        return self._socket.address if self._socket is not None else ""

    def open(self) -> None:
        """Listen, if any worker may speak, and begin to show systemd that we live.

        Raises:
            OSError: the socket cannot be opened.
        """
        if sys.platform == "linux":
            self._socket = NotifySocket(f"smartipc-notify-{self._app.run_id}", self._hear)
            self._app.host.before_death = self._hear_last_words
        if self._upward.watchdog is not None:
            self._show_life(self._upward.watchdog)

    def close(self) -> None:
        """Stop both."""
        if self._sign is not None:
            self._sign.cancel()
        if self._socket is not None:
            self._socket.close()

    # from children

    def _hear_last_words(self, life: Life) -> None:
        if self._socket is not None and self._app.worker_of(life.instance).ready == "notify":
            self._socket.read()

    def _hear(self, pid: int, said: dict[str, str]) -> None:
        app = self._app
        life = app.host.orphans.owner(pid, app.host.lives)
        if life is None or app.worker_of(life.instance).ready != "notify":
            self._notice_stranger(pid, said)
            return
        key = life.instance, life.generation
        if "MAINPID" in said:
            self._follow(life, said["MAINPID"])
        if "STATUS" in said and key in app.said:
            app.said[key].status = said["STATUS"][:_STATUS]
        elif said.get("STOPPING") == "1" and key in app.said:
            app.said[key].status = "stopping"
        usec = said.get("EXTEND_TIMEOUT_USEC", "")
        if usec.isdigit():
            app.feed(Extended(*key, int(usec) / 1e6))
        if said.get("READY") == "1":
            app.feed(BecameReady(*key))
        if said.get("WATCHDOG") == "1":
            app.core.handle(Beat(*key), time.monotonic())
        elif said.get("WATCHDOG") == "trigger":
            app.feed(Unwell(*key, "it says that it hangs (WATCHDOG=trigger)"))

    def _notice_stranger(self, pid: int, said: dict[str, str]) -> None:
        """Warn of one whom we do not heed; every user of this host may write to us, so not of each."""
        now = time.monotonic()
        if now >= self._quiet_until:
            self._quiet_until = now + _QUIET
            words = shown(", ".join(said))
            log.warning("process %d, which is no worker with `ready: notify`, tells %s", pid, words)

    def _follow(self, life: Life, text: str) -> None:
        """Take another process for the main one, if it is one of the life's own."""
        app = self._app
        pid = int(text) if text.isdigit() else 0
        if pid == life.pid:
            return
        if pid <= 1 or app.host.orphans.owner(pid, {(life.instance, life.generation): life}) is None:
            log.warning(
                "%s: MAINPID=%s is no process of its own",
                life.instance,
                shown(text, 20),
                extra={"instance": life.instance},
            )
            return
        try:
            app.host.follow(life, pid)
        except OSError as error:
            log.warning("%s: MAINPID=%d: %s", life.instance, pid, error.strerror, extra={"instance": life.instance})
            return
        app.feed(Spawned(life.instance, life.generation, pid))

    # to systemd

    def follow(self, order: Announce) -> None:
        """Tell what became of the app."""
        match order.event:
            case "app.started":
                self._ready_told = True
                self._upward.tell(READY=1, STATUS=self._summary(), MAINPID=self._app.pid)
            case "app.stopping":
                self._upward.tell(STOPPING=1, STATUS=f"stopping: {order.cause}")
            case "instance.state" if self._ready_told and self._upward:
                self._upward.tell(STATUS=self._summary())
            case _:
                return

    def _summary(self) -> str:
        views = self._app.core.snapshot()
        failed = [view.instance for view in views if view.state == "failed"]
        text = f"{sum(view.state == 'ready' for view in views)} of {len(views)} ready"
        return f"{text}, failed: {', '.join(failed)}" if failed else text

    def _show_life(self, period: float) -> None:
        self._upward.tell(WATCHDOG=1)
        self._sign = asyncio.get_running_loop().call_later(period, self._show_life, period)
