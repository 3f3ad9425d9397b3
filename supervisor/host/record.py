"""What a supervisor leaves written in its runtime directory: which file it runs from, and its run ids.

A supervisor that ends in order removes it. One that is killed cannot, and so its successor, which holds the same lock,
knows exactly which runs are over. Nothing here looks at processes.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec

RECORD = "run.json"
_MOST = 64
"""Runs that are remembered: a supervisor that is killed at every start must not write a longer record each time."""


class Record(msgspec.Struct, frozen=True):
    """The configuration file, "" for none, and run ids: the running one first, then earlier ones that are not swept."""

    config: str = ""
    runs: tuple[str, ...] = ()


def read_record(directory: Path) -> Record:
    """Return what was written last; an empty record where there is none, or none that can be read."""
    try:
        return msgspec.json.decode((directory / RECORD).read_bytes(), type=Record)
    except (OSError, msgspec.DecodeError):
        return Record()


def write_record(directory: Path, record: Record) -> None:
    """Write it, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    fresh = directory / f"{RECORD}.new"
    fresh.write_bytes(msgspec.json.encode(Record(record.config, record.runs[:_MOST])))
    os.replace(fresh, directory / RECORD)


def remove_record(directory: Path) -> None:
    """Remove it: every run that it names is over, and nothing of them is left."""
    for name in (RECORD, f"{RECORD}.new"):
        with contextlib.suppress(OSError):
            (directory / name).unlink()
