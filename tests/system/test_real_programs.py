"""Programs that people really run, each doing what it does under systemd. Skipped where they are not installed."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from kit import App, alive, wait_for

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def get(port: int, path: str = "/") -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


@needs("redis-server")
def test_redis_says_ready_and_stops_cleanly(app: Callable[..., App]) -> None:
    port = free_port()
    one = app(f"""
workers:
  redis:
    command: [redis-server, --supervised, systemd, --port, "{port}", --bind, 127.0.0.1, --save, ""]
    ready: notify
    restart: {{delay: 1ms}}
  client: {{command: [sh, -c, "redis-cli -p {port} set key value"], depends_on: [redis], restart: never}}
""")
    row = one.wait_state("redis:0", "ready")
    one.wait_state("client:0", "exited")
    assert "client:0 | OK\n" in one.out.read_text(), "it was ready when it said so"
    assert row["status"]
    os.kill(row["pid"], signal.SIGKILL)
    one.wait_state("redis:0", "ready", generation=2)
    assert one.ctl("stop", "redis").returncode == 0
    last = one.status()["redis:0"]["last_exit"]
    assert (last["code"], last["signal"]) == (0, None), "it saved and left by itself"


@needs("nginx")
def test_nginx_in_the_foreground(app: Callable[..., App], folder: Path) -> None:
    port = free_port()
    folder.chmod(0o755)
    (folder / "index.html").write_text("hello")
    (folder / "nginx.conf").write_text(f"""
worker_processes 2; pid nginx.pid; error_log stderr;
events {{}}
http {{
  access_log off; client_body_temp_path t1; proxy_temp_path t2;
  fastcgi_temp_path t3; uwsgi_temp_path t4; scgi_temp_path t5;
  server {{ listen 127.0.0.1:{port}; root {folder}; }}
}}
""")
    one = app(f"""
workers:
  nginx:
    command: [nginx, -p, {folder}, -c, nginx.conf, -g, "daemon off;"]
    ready: {{probe: {{http: "http://127.0.0.1:{port}/index.html"}}}}
    liveness: {{http: "http://127.0.0.1:{port}/index.html", interval: 200ms}}
    stop: {{signal: QUIT}}
    restart: {{delay: 1ms}}
""")
    row = one.wait_state("nginx:0", "ready")
    assert get(port, "/index.html") == 200
    workers = psutil.Process(row["pid"]).children()
    assert len(workers) == 2
    os.kill(row["pid"], signal.SIGKILL)
    one.wait_state("nginx:0", "ready", generation=2)
    assert not [worker for worker in workers if alive(worker.pid)], "the dead master's workers hold the port no more"
    assert one.ctl("signal", "nginx", "HUP").returncode == 0
    assert get(port, "/index.html") == 200
    assert one.ctl("stop", "nginx").returncode == 0
    assert one.status()["nginx:0"]["last_exit"]["code"] == 0


@needs("postgres")
@needs("initdb")
@pytest.mark.skipif(os.geteuid() != 0, reason="the database's user differs from ours only where we are root")
def test_postgresql_is_swept_before_its_successor_starts(app: Callable[..., App], folder: Path) -> None:
    folder.chmod(0o755)
    data = folder / "data"
    data.mkdir()
    shutil.chown(data, "postgres", "postgres")
    initdb = [shutil.which("initdb"), "-D", data, "--auth=trust", "--no-sync"]
    subprocess.run(initdb, user="postgres", cwd="/", check=True, capture_output=True)
    port = free_port()
    one = app(f"""
workers:
  postgres:
    command: [postgres, -D, {data}, -p, "{port}", -k, {data}, -c, fsync=off]
    user: postgres
    cwd: {data}
    ready: {{log: database system is ready to accept connections}}
    stop: {{signal: INT}}
    restart: {{delay: 1ms}}
""")
    row = one.wait_state("postgres:0", "ready")

    def ask() -> str:
        words = [shutil.which("psql"), "-h", str(data), "-p", str(port), "-U", "postgres", "-Atc", "select 6 * 7"]
        return subprocess.run(words, capture_output=True, text=True, check=True, cwd="/").stdout

    assert ask() == "42\n"
    helpers = psutil.Process(row["pid"]).children()
    assert any(os.getsid(helper.pid) != row["pid"] for helper in helpers), "they have sessions of their own"
    os.kill(row["pid"], signal.SIGKILL)
    one.wait_state("postgres:0", "ready", generation=2)
    assert not [helper for helper in helpers if alive(helper.pid)]
    assert ask() == "42\n"
    assert one.ctl("stop", "postgres").returncode == 0
    assert one.status()["postgres:0"]["last_exit"]["code"] == 0


ASGI = """
import os
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(os.getpid()).encode()})
"""


def test_uvicorn_on_a_handed_over_socket_refuses_nobody(app: Callable[..., App], folder: Path) -> None:
    pytest.importorskip("uvicorn")
    port = free_port()
    (folder / "asgi.py").write_text(ASGI)
    one = app(f"""
sockets: {{web: {{address: "tcp://127.0.0.1:{port}"}}}}
workers:
  web:
    command: [{sys.executable}, -m, uvicorn, "asgi:app", --fd, "3", --log-level, warning]
    sockets: web
    instances: 2
    ready: {{probe: {{http: "http://127.0.0.1:{port}/"}}}}
    restart: {{delay: 200ms, jitter: 0}}
""")
    rows = [one.wait_state(f"web:{slot}", "ready") for slot in range(2)]
    assert get(port) == 200
    for row in rows:
        os.kill(row["pid"], signal.SIGKILL)
    one.wait_state("web:0", "backoff", "starting", "running")
    assert get(port) == 200, "it waited for a successor"


WSGI = """
import os, time
def app(environ, start_response):
    time.sleep(0.01)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]
"""


def test_gunicorn_is_reloaded_under_load_and_no_request_fails(app: Callable[..., App], folder: Path) -> None:
    pytest.importorskip("gunicorn")
    port = free_port()
    (folder / "wsgi.py").write_text(WSGI)
    one = app(f"""
sockets: {{web: {{address: "tcp://127.0.0.1:{port}"}}}}
workers:
  web:
    command: [{sys.executable}, -m, gunicorn, --workers, "2", --log-level, warning, "wsgi:app"]
    sockets: [web]
    ready: notify
    stop: {{signal: TERM, timeout: 20s}}
""")
    one.wait_state("web:0", "ready")
    failed: list[str] = []
    done: list[bytes] = []
    over = threading.Event()

    def load() -> None:
        while not over.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            try:
                connection.request("GET", "/")
                response = connection.getresponse()
                done.append(response.read())
                if response.status != 200:
                    failed.append(str(response.status))
            except (OSError, http.client.HTTPException) as error:
                failed.append(repr(error))
            finally:
                connection.close()

    clients = [threading.Thread(target=load) for _ in range(4)]
    for client in clients:
        client.start()
    try:
        for _ in range(5):
            before = len(done)
            reloaded = one.ctl("reload", "web")
            assert reloaded.returncode == 0, reloaded.stderr
            wait_for(lambda: len(done) > before + 20, "it is served")  # noqa: B023
    finally:
        over.set()
        for client in clients:
            client.join()
    assert failed == []
    assert len(set(done)) >= 6, "of every life"
    assert one.status()["web:0"]["generation"] == 6
