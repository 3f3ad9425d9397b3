"""The dashboard, /metrics and /healthz, over real HTTP."""

from __future__ import annotations

import asyncio
import json
import socket
import urllib.error
import urllib.request
from collections.abc import Callable

import pytest
from kit import App, wait_for

from smartipc import Supervisor

pytestmark = [pytest.mark.system, pytest.mark.timeout(60)]

CONFIG = """
supervisor: {{http: "127.0.0.1:{port}"}}
workers:
  sleeper: {{command: [sleep, "1000"], instances: 2}}
  broken: {{command: ["false"], restart: {{max_restarts: 0}}}}
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def get(port: int, path: str, host: str | None = None) -> tuple[int, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"Host": host} if host else {})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_the_pages_show_the_app(app: Callable[..., App]) -> None:
    port = free_port()
    one = app(CONFIG.format(port=port))
    one.wait_state("sleeper:1", "ready")
    one.wait_state("broken:0", "failed")
    code, page = get(port, "/")
    assert code == 200
    assert "<!doctype html>" in page
    code, text = get(port, "/status.json")
    shown = json.loads(text)
    assert {row["instance"]: row["state"] for row in shown["status"]["workers"]} == {
        "sleeper:0": "ready",
        "sleeper:1": "ready",
        "broken:0": "failed",
    }
    assert shown["events"][-1]["seq"] >= len(shown["events"])
    assert get(port, "/healthz") == (503, "failed: broken:0\n")
    code, text = get(port, "/metrics")
    assert code == 200
    assert 'smartipc_instance_state{instance="sleeper:0",state="ready",worker="sleeper"} 1.0' in text
    assert 'smartipc_instance_ready{instance="broken:0",worker="broken"} 0.0' in text
    assert "# TYPE smartipc_instance_restarts_total counter" in text
    names = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    assert all(name.startswith("smartipc_") for name in names)
    assert set(one.ctl("metrics").stdout.split()) >= names


def test_a_page_of_the_outer_web_cannot_read_it_through_a_browser(app: Callable[..., App]) -> None:
    port = free_port()
    one = app(CONFIG.format(port=port))
    one.wait_state("sleeper:0", "ready")
    assert get(port, "/status.json", host="evil.example")[0] == 400
    assert get(port, "/status.json", host=f"localhost:{port}")[0] == 200


def test_an_orderly_end_with_a_reader_connected(app: Callable[..., App]) -> None:
    port = free_port()
    one = app(CONFIG.format(port=port))
    one.wait_state("sleeper:0", "ready")
    with socket.create_connection(("127.0.0.1", port)) as reader:
        reader.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait_for(lambda: reader.recv(100), "an answer")
        assert one.ctl("shutdown").returncode == 0
        assert one.wait_ended() == 0


def test_a_taken_port_is_a_failed_start(app: Callable[..., App]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        one = app(CONFIG.format(port=taken.getsockname()[1]))
        assert one.wait_ended() == 1
    assert "supervisor.http: cannot listen at 127.0.0.1:" in one.err.read_text()


def test_a_free_port_is_chosen_and_told(app: Callable[..., App]) -> None:
    one = app(CONFIG.format(port=0))
    one.wait_state("sleeper:1", "ready")
    http = json.loads(one.ctl("status", "--json").stdout)["http"]
    host, _, port = http.rpartition(":")
    assert (host, get(int(port), "/status.json")[0]) == ("127.0.0.1", 200)
    assert f"dashboard at http://{http}/" in one.err.read_text()


def test_an_app_inside_a_program_serves_them_too() -> None:
    async def embed() -> int:
        config = {"supervisor": {"http": "127.0.0.1:0"}, "workers": {"w": {"command": ["sleep", "1000"]}}}
        async with asyncio.timeout(30), Supervisor(config) as supervisor:
            await supervisor.wait("w")
            http = supervisor.status().http
            assert http is not None
            port = int(http.rpartition(":")[2])
            assert await asyncio.to_thread(get, port, "/healthz") == (200, "ok\n")
            return port

    port = asyncio.run(embed())
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
