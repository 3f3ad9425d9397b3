"""The last values of retained topics, one file each in a folder of the app: read by whoever subscribes later.

The supervisor relays nothing and a publisher may be gone, so neither keeps them; a file in the runtime directory
outlives both, and is gone with the app. A value is written before it is sent and read after every publisher knows of
the new subscription, so a subscriber gets it by one way or the other; Inbox drops what comes by both. Only files here.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import threading
import time
from pathlib import Path
from urllib.parse import quote, unquote

import msgspec

from smartipc.ipc.errors import LocalProtocolError
from smartipc.ipc.protocol.events import MessageReceived
from smartipc.ipc.protocol.handshake import Identity
from smartipc.ipc.routing.topics import matches
from smartipc.ipc.subscriptions import Kept
from smartipc.ipc.wire.codec import self_contained

MOST = 10_000
"""Topics of one app that may have a retained value."""
_LONGEST_NAME = 200


class _Record(msgspec.Struct, frozen=True, array_like=True):
    """What a file holds."""

    topic: str
    payload: bytes
    publisher: str
    generation: int
    stamp: int
    at: float
    headers: dict[str, str] | None = None


_decoder = msgspec.msgpack.Decoder(_Record)


class Retained:
    """The retained values of an app, as one of its processes reads and writes them.

    Args:
        folder: where they are; made when the first one is written. "" for nowhere.
        publisher: who writes.
    """

    def __init__(self, folder: str, publisher: Identity) -> None:
        self._folder = Path(folder) if folder else None
        self._publisher = publisher
        self._stamps = itertools.count(1)
        self._known: set[str] = set()
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<Retained in {self._folder}>"

    def put(self, topic: str, payload: bytes, headers: dict[str, str] | None = None) -> int:
        """Keep a value as its topic's last and return its stamp.

        Raises:
            LocalProtocolError: there is no place for retained values here, or MOST topics have one already.
        """
        if self._folder is None:
            raise LocalProtocolError("retained values need an app: there is no runtime directory here")
        with self._lock:  # a later stamp must not be overwritten by an earlier one
            stamp = next(self._stamps)
            me = self._publisher
            data = msgspec.msgpack.encode(
                _Record(topic, self_contained(payload), me.name, me.generation, stamp, time.time(), headers)
            )
            name = _name_of(topic)
            if name not in self._known:
                self._folder.mkdir(mode=0o700, exist_ok=True)
                if not (self._folder / name).exists() and len(os.listdir(self._folder)) >= MOST:
                    raise LocalProtocolError(f"{MOST} topics have a retained value already")
                self._known.add(name)
            draft = self._folder / f".{os.getpid()}-{id(self):x}"
            draft.write_bytes(data)
            draft.replace(self._folder / name)
        return stamp

    def matching(self, pattern: str) -> list[tuple[MessageReceived, Kept]]:
        """Return the last values of the topics under a pattern, oldest first, as messages that have arrived."""
        if self._folder is None:
            return []
        found: list[_Record] = []
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self._folder):
                if name.startswith(".") or not (name.startswith("~") or matches(pattern, unquote(name))):
                    continue
                with contextlib.suppress(OSError, msgspec.DecodeError):
                    record = _decoder.decode((self._folder / name).read_bytes())
                    if matches(pattern, record.topic):
                        found.append(record)
        shift = time.monotonic() - time.time()
        return [
            (
                MessageReceived(0, one.topic, one.payload, one.headers, one.at + shift, one.stamp),
                Kept(Identity(one.publisher, 0, one.generation)),
            )
            for one in sorted(found, key=lambda one: one.at)
        ]


def _name_of(topic: str) -> str:
    """Return the file name of a topic: readable, and never longer than a file system takes."""
    name = quote(topic, safe="")
    if len(name) <= _LONGEST_NAME and not name.startswith((".", "~")):
        return name
    return "~" + hashlib.blake2b(topic.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
