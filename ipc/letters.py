"""The part of the control contract about dead letters: what `smartipc dead-letters` asks the supervisor.

Only types and contracts, as in control.py: no I/O, no behaviour. The store is resilience/dead_letters.py.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from smartipc.ipc.contracts import Method


class Letter(msgspec.Struct, frozen=True):
    """One row of `dead-letters list --json`. `at` is ISO 8601 UTC."""

    id: int
    at: str
    address: str
    kind: Literal["notify", "message"]
    sender: str
    reason: str
    attempts: int


class FullLetter(Letter, frozen=True):
    """`dead-letters show`: with the payload as plain data, and for a message whose subscription failed."""

    payload: Any = None
    worker: str = ""
    pattern: str = ""


class LetterNames(msgspec.Struct, frozen=True):
    """Which letters: these, or all."""

    ids: list[int] = []
    all: bool = False


class LetterOutcome(msgspec.Struct, frozen=True):
    """What happened to each letter, by id: "" for done, else why not."""

    results: dict[str, str]


cli_letters = Method("$sys.cli.dead_letters.list", type(None), list[Letter])
cli_letter = Method("$sys.cli.dead_letters.show", LetterNames, list[FullLetter])
cli_replay = Method("$sys.cli.dead_letters.replay", LetterNames, LetterOutcome, timeout=3600)
cli_purge = Method("$sys.cli.dead_letters.purge", LetterNames, LetterOutcome)
