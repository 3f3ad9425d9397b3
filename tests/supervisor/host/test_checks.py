"""Checks over the network, against servers that behave and servers that do not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from smartipc.supervisor.host import checks

Check = Callable[[int], Awaitable[str]]


def against(answer: bytes, check: Check) -> tuple[str, bytes]:
    """Run a check against a server that reads a request and answers so; return result and request."""
    asked = b""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked = await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async def run() -> str:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            return await check(server.sockets[0].getsockname()[1])

    return asyncio.run(run()), asked


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", ""),
        (b"HTTP/1.0 204 No Content\r\n\r\n", ""),
        (b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\n\r\n", ""),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", "status 404"),
        (b"HTTP/1.1 503 Busy\r\n\r\n", "status 503"),
        (b"", "hung up without an answer"),
        (b"SSH-2.0-OpenSSH\r\n", "not HTTP"),
        (b"HTTP/1.1 two OK\r\n", "not HTTP"),
        (b"x" * 100_000, "http http://127.0.0.1"),
    ],
)
def test_http(answer: bytes, words: str) -> None:
    found, asked = against(answer, lambda port: checks.http(f"http://127.0.0.1:{port}/health?deep=1"))
    assert (found == "") if not words else words in found
    assert asked.startswith(b"GET /health?deep=1 HTTP/1.1\r\nHost: 127.0.0.1:")


def test_nobody_there() -> None:
    assert asyncio.run(checks.tcp("127.0.0.1", 1)).startswith("tcp 127.0.0.1:1: ")
    assert asyncio.run(checks.http("http://127.0.0.1:1/")).startswith("http http://127.0.0.1:1/: ")


def test_a_port_that_accepts() -> None:
    async def run() -> str:
        server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
        async with server:
            return await checks.tcp("127.0.0.1", server.sockets[0].getsockname()[1])

    assert asyncio.run(run()) == ""
