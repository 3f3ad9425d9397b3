"""What system tests drive the product with: a real supervisor process, its commands, and waiting without guessing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import psutil

from smartipc.ipc import control
from smartipc.ipc.drivers.base import QuietHost
from smartipc.ipc.drivers.blocking import Link
from smartipc.ipc.errors import ConnectFailed, ConnectionLost
from smartipc.ipc.protocol.connection import Connection
from smartipc.ipc.protocol.handshake import Identity
from smartipc.ipc.transports.unix import UnixSocketTransport
from smartipc.ipc.wire import codec

T = TypeVar("T")
BIN = Path(sys.executable).parent
LOOK = 0.01


def wait_for(look: Callable[[], T | None], what: str, timeout: float = 30.0) -> T:
    """Return the first true result of `look`; fail with `what` when there is none in time."""
    deadline = time.monotonic() + timeout
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {what}")
        time.sleep(LOOK)


def alive(pid: int) -> bool:
    """Tell whether a process exists and is no zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def marked(mark: str) -> list[psutil.Process]:
    """Return every living process whose environment or command line carries `mark`."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if mark in process.environ().values() or any(mark in word for word in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


class App:
    """One `smartipc-supervise` process with private directories."""

    def __init__(self, folder: Path, config: str | Path, env: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.mark = f"smartipc-test-{os.getpid()}-{folder.name}"
        if isinstance(config, Path):
            self.config = config
        else:
            self.config = folder / "app.yaml"
            self.config.write_text(config)
        self.env = {
            **os.environ,
            "XDG_RUNTIME_DIR": str(folder / "r"),
            "XDG_STATE_HOME": str(folder / "s"),
            "SMARTIPC_TEST_MARK": self.mark,
            **(env or {}),
        }
        self.env.pop("SMARTIPC_APP", None)
        (folder / "r").mkdir(mode=0o700, exist_ok=True)
        self.process: subprocess.Popen[bytes] | None = None
        self.out, self.err = folder / "stdout", folder / "stderr"

    def start(self) -> App:
        """Start the supervisor."""
        with self.out.open("ab") as out, self.err.open("ab") as err:
            self.process = subprocess.Popen(
                [BIN / "smartipc-supervise", self.config],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=self.env,
                cwd=self.folder,
            )
        return self

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def ctl(self, *words: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run a `smartipc` command."""
        command = [str(BIN / "smartipc"), "--config", str(self.config), *words]
        return subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=timeout, check=False)

    def status(self) -> dict[str, dict[str, Any]]:
        """Return the workers of the status by instance, or nothing; quicker than the command."""
        sockets = list((self.folder / "r").rglob("control.sock"))
        try:
            sock = UnixSocketTransport(str(sockets[0])).dial()
        except (ConnectFailed, BlockingIOError, IndexError):
            return {}
        link = Link(sock, Connection("client", Identity("test")), QuietHost())
        try:
            reply = link.call(control.cli_status.name, codec.encode(None), timeout=5)
        except ConnectionLost:
            return {}
        finally:
            link.close()
        return {row["instance"]: row for row in codec.plain(reply)["workers"]}

    def events(self) -> list[dict[str, Any]]:
        """Return all events."""
        return [json.loads(line) for line in self.ctl("events", "--json").stdout.splitlines()]

    def wait_state(self, instance: str, *states: str, generation: int = 0, timeout: float = 30.0) -> dict[str, Any]:
        """Wait until an instance is in one of these states, in this life or a later one."""

        def look() -> dict[str, Any] | None:
            row = self.status().get(instance)
            return row if row and row["state"] in states and row["generation"] >= generation else None

        return wait_for(look, f"{instance} {' or '.join(states)}; {self.err.read_text()[-3000:]}", timeout)

    def wait_ended(self, timeout: float = 60.0) -> int:
        """Wait for the supervisor's end and return its exit code."""
        assert self.process is not None
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the supervisor did not end; {self.err.read_text()[-3000:]}") from None

    def wait_gone(self, timeout: float = 3.0) -> None:
        """Wait until no process of the app is left."""
        try:
            wait_for(lambda: not marked(self.mark), "every process of the app is gone", timeout)
        except AssertionError as error:
            left = [(one.pid, one.cmdline()[:4]) for one in marked(self.mark)]
            raise AssertionError(f"{error}: {left}") from None

    def stop(self) -> None:
        """End everything, whatever a test has left."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def transitions(events: list[dict[str, Any]], instance: str) -> Iterator[tuple[str, str]]:
    """Yield (from, to) of every transition of an instance."""
    for event in events:
        if event["event"] == "instance.state" and event["instance"] == instance:
            yield event["from"], event["to"]
