"""node-ipc, run by node; its package is looked for in a folder of its own, outside this repository."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from harness import Make, Measure, Missing

FOLDER = Path(os.environ.get("SMARTIPC_BENCH_NODE", "~/.cache/smartipc-bench-node")).expanduser()
"""Holds node_modules/node-ipc; `make bench-peers` fills it."""


def node_ipc(what: str) -> Make:
    """Return the contender for "latency", "requests" or "messages"."""

    @contextlib.contextmanager
    def make() -> Iterator[Measure]:
        node = shutil.which("node")
        if node is None:
            raise Missing("node is not installed")
        if not (FOLDER / "node_modules" / "node-ipc").is_dir():
            raise Missing(f"node-ipc is not installed: npm install --prefix {FOLDER} node-ipc@12")
        script = FOLDER / "node_peer.mjs"
        shutil.copy(Path(__file__).with_name("node_peer.mjs"), script)
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            path = f"{folder}/node"
            server = subprocess.Popen([node, script, "server", path], stdout=subprocess.PIPE, text=True)
            try:
                _line(server)
                client = subprocess.Popen(
                    [node, script, "client", path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
                try:
                    _line(client)

                    def measure(number: int) -> float:
                        assert client.stdin is not None
                        client.stdin.write(f"{what} {number}\n")
                        client.stdin.flush()
                        return float(_line(client))

                    yield measure
                finally:
                    client.kill()
                    client.communicate()
            finally:
                server.kill()
                server.communicate()

    return make


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise Missing("node ended at once")
    return line
