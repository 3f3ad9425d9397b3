"""Whether a CancelledError in an async function is meant for its task or comes from something that it waited for.

asyncio raises the same error for both. Only questions about the running task; nobody is cancelled here.
"""

from __future__ import annotations

import asyncio


def is_being_cancelled() -> bool:
    """Tell whether the running task was told to end: then CancelledError must pass."""
    current = asyncio.current_task()
    return current is not None and current.cancelling() > 0
