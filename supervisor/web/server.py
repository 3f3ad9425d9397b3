"""Serve the pages inside the supervisor's loop, by Starlette and uvicorn, which come with the extra `web`.

It shows and never steers: whoever may open the port may read, nobody may order. On loopback only requests that name
loopback as their host are answered, so that no page of the outer web can read it through a visitor's browser.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from smartipc.ipc.errors import ConfigError
from smartipc.supervisor.core.spec import AppSpec
from smartipc.supervisor.events import EventLog
from smartipc.supervisor.metrics import CONTENT_TYPE, metrics_text
from smartipc.supervisor.status import app_status
from smartipc.supervisor.web.page import PAGE

if TYPE_CHECKING:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

    from smartipc.supervisor.runner import App, Service

log = logging.getLogger("smartipc.supervisor")
MISSING = "supervisor.http needs the extra 'web': pip install 'smartipc[web]'"
_EVENTS = 50
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def services(spec: AppSpec) -> list[Service]:
    """Return what is to run beside the app: the pages, if `supervisor.http` is set.

    Raises:
        ConfigError: the libraries for it are not installed.
    """
    if spec.supervisor.http is None:
        return []
    if not all(find_spec(name) is not None for name in ("starlette", "uvicorn")):
        raise ConfigError([MISSING])
    host, port = spec.supervisor.http
    return [lambda app: web(app, host, port)]


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Raises:
        OSError: it cannot be bound; the message names the address.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        raise OSError(f"supervisor.http: cannot listen at {host}:{port}: {error.strerror}") from error


@contextlib.asynccontextmanager
async def web(app: App, host: str, port: int) -> AsyncIterator[str]:
    """Serve the pages of `app` while entered; yields the bound "host:port".

    Raises:
        OSError: the address cannot be bound.
    """
    import uvicorn

    sock = listen(host, port)
    host, port = sock.getsockname()[:2]
    config = uvicorn.Config(
        _pages(app, loopback=_is_loopback(host)), lifespan="off", log_config=None, access_log=False, ws="none",
        timeout_graceful_shutdown=1,
    )  # fmt: skip
    server = _guest(config)
    task = asyncio.create_task(server.serve(sockets=[sock]))
    bound = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    log.info("dashboard at http://%s/", bound)
    app.http = bound
    try:
        yield bound
    finally:
        app.http = None
        server.should_exit = True
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(task, 3.0)
        sock.close()


def _guest(config: uvicorn.Config) -> uvicorn.Server:
    """Return a server that leaves the process's signals to the supervisor."""
    import uvicorn

    class Guest(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    return Guest(config)


def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host).is_loopback


def _pages(app: App, *, loopback: bool) -> Starlette:
    import msgspec
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import HTMLResponse, Response
    from starlette.routing import Route

    async def page(_request: Request) -> Response:
        return HTMLResponse(PAGE, headers=_HEADERS)

    async def data(_request: Request) -> Response:
        shown = {"status": app_status(app), "events": _newest(app.events)}
        return Response(msgspec.json.encode(shown), media_type="application/json", headers=_HEADERS)

    async def metrics(_request: Request) -> Response:
        return Response(metrics_text(app), headers={**_HEADERS, "Content-Type": CONTENT_TYPE})

    async def health(_request: Request) -> Response:
        failed = [one.instance for one in app_status(app).workers if one.state == "failed"]
        text = "failed: " + ", ".join(failed) if failed else "ok"
        return Response(text + "\n", 503 if failed else 200, headers=_HEADERS, media_type="text/plain")

    hosts = ["localhost", "127.0.0.1", "[::1]"] if loopback else ["*"]
    return Starlette(
        routes=[
            Route("/", page),
            Route("/status.json", data),
            Route("/metrics", metrics),
            Route("/healthz", health),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts)],
    )


def _newest(events: EventLog) -> list[dict[str, Any]]:
    return events.since(max(0, events.seq - _EVENTS)).events
