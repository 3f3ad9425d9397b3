"""Dialling from an event loop: what may wait for names or the network waits in a thread. No protocol in here."""

from __future__ import annotations

import asyncio

from smartipc.ipc.transports.base import IpcTransport, Stream


async def dial(transport: IpcTransport, timeout: float = 5.0) -> Stream:
    """Return a connected stream.

    Cancelling it closes whatever the thread may still connect.

    Raises:
        ConnectFailed, BlockingIOError: as IpcTransport.dial.
    """
    if transport.instant:
        return transport.dial(timeout)
    future = asyncio.get_running_loop().run_in_executor(None, transport.dial, timeout)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        future.add_done_callback(_close)
        raise


def _close(future: asyncio.Future[Stream]) -> None:
    if not future.cancelled() and future.exception() is None:
        future.result().close()
