"""What a forked child inherits of the async flavour, and must leave alone.

A child has copies of the parent's sockets, and whatever it wrote there would land between the parent's frames. So in
the child, before it runs its first line, links are closed without a word and endpoints refuse. The blocking flavour
asks for its process id instead: see drivers/blocking.py. Nothing here costs anything while nobody forks.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from smartipc.ipc.errors import LocalProtocolError

T = TypeVar("T")

REASON = "this was inherited through fork; it belongs to the parent process, connect anew in the child"


class Refusing:
    """Takes the place of what says things, in the child: whatever is asked of it is refused."""

    def __repr__(self) -> str:
        return "<Refusing: inherited through fork>"

    def __getattr__(self, name: str) -> NoReturn:
        raise LocalProtocolError(REASON)


_watched: weakref.WeakKeyDictionary[Any, Callable[[Any], None]] = weakref.WeakKeyDictionary()


def in_child(what: T, leave: Callable[[T], None]) -> None:
    """Call `leave(what)` in every child that is forked while `what` exists: the copy must not touch what is shared."""
    _watched[what] = leave


def _after_fork() -> None:
    for what, leave in list(_watched.items()):
        leave(what)
    _watched.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
