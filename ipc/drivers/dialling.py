"""Dialling from an event loop: what may wait for names or the network waits in a thread. No protocol in here.

The thread is its own, and a daemon: the loop's executor may be full of a program's work for longer than a connection
may take, and is waited for at the end of the loop, which no dial that was given up shall delay.
"""

from __future__ import annotations

import asyncio
import threading

from smartipc.ipc.transports.base import IpcTransport, Stream


async def dial(transport: IpcTransport, timeout: float = 5.0) -> Stream:
    """Return a connected stream.

    Cancelling it closes whatever the thread may still connect.

    Raises:
        ConnectFailed, BlockingIOError: as IpcTransport.dial.
    """
    if transport.instant:
        return transport.dial(timeout)
    loop = asyncio.get_running_loop()
    dialled: asyncio.Future[Stream] = loop.create_future()

    def work() -> None:
        try:
            stream = transport.dial(timeout)
        except BaseException as error:
            _tell(loop, _failed, dialled, error)
        else:
            if not _tell(loop, _connected, dialled, stream):
                stream.close()

    threading.Thread(target=work, name="smartipc dial", daemon=True).start()
    return await dialled


def _tell(loop: asyncio.AbstractEventLoop, *call: object) -> bool:
    try:
        loop.call_soon_threadsafe(*call)  # type: ignore[arg-type]
    except RuntimeError:  # the loop is closed
        return False
    return True


def _connected(dialled: asyncio.Future[Stream], stream: Stream) -> None:
    if dialled.done():
        stream.close()
    else:
        dialled.set_result(stream)


def _failed(dialled: asyncio.Future[Stream], error: BaseException) -> None:
    if not dialled.done():
        dialled.set_exception(error)
