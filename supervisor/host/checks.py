"""The checks of probes that go over the network: a port that accepts, a page that answers. They do not judge.

HTTP is spoken by hand: a GET and the first line of the answer, which is all that a probe reads; a client library would
be the largest dependency of the supervisor.
"""

from __future__ import annotations

import asyncio
import contextlib
from urllib.parse import urlsplit

_HEAD = 8 * 1024
"""Longest first line of an answer."""


async def tcp(host: str, port: int) -> str:
    """Connect and hang up; return "" or why it failed."""
    try:
        _, writer = await asyncio.open_connection(host, port)
    except OSError as error:
        return f"tcp {host}:{port}: {_reason(error)}"
    await _hang_up(writer)
    return ""


async def http(url: str) -> str:
    """Get a page; return "" for a status from 200 to 399, else why it failed."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port or 80, limit=_HEAD)
    except OSError as error:
        return f"http {url}: {_reason(error)}"
    try:
        host = parts.netloc.rpartition("@")[2]
        head = (f"GET {path} HTTP/1.1", f"Host: {host}", "User-Agent: smartipc", "Accept: */*", "Connection: close")
        writer.write("\r\n".join((*head, "", "")).encode())
        line = await reader.readline()
    except (OSError, ValueError) as error:
        return f"http {url}: {_reason(error)}"
    finally:
        await _hang_up(writer)
    words = line.split(None, 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        return f"http {url}: the answer is not HTTP" if line else f"http {url}: hung up without an answer"
    status = int(words[1])
    return "" if 200 <= status < 400 else f"http {url}: status {status}"


async def _hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
