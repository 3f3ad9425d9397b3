"""What `smartipc dead-letters` asks for: looking at the letters of an app, sending them again, throwing them away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from smartipc.ipc import letters
from smartipc.ipc.contracts import Method
from smartipc.ipc.errors import InvalidPayload, SmartIpcError
from smartipc.ipc.letters import FullLetter, Letter, LetterNames, LetterOutcome
from smartipc.ipc.resilience.dead_letters import DeadLetter, DeadLetters
from smartipc.ipc.wire import codec

if TYPE_CHECKING:
    from smartipc.supervisor.operator import Operator

_NONE = "there is no such letter"


class LetterOffice:
    """The dead letters of one app, as commands see them.

    Args:
        path: the file.
        operator: who sends them again.
    """

    def __init__(self, path: str, operator: Callable[[], Operator]) -> None:
        self._letters = DeadLetters(path)
        self._operator = operator

    def __repr__(self) -> str:
        return f"<LetterOffice of {self._letters!r}>"

    def methods(self) -> tuple[tuple[Method[Any, Any], Callable[[Any], Awaitable[Any]]], ...]:
        """Return what the control socket serves."""
        return (
            (letters.cli_letters, self._list),
            (letters.cli_letter, self._show),
            (letters.cli_replay, self._replay),
            (letters.cli_purge, self._purge),
        )

    def close(self) -> None:
        """Close the file."""
        self._letters.close()

    async def _list(self, _payload: None) -> list[Letter]:
        return [Letter(**_facts(one)) for one in await asyncio.to_thread(self._letters.read)]

    async def _show(self, names: LetterNames) -> list[FullLetter]:
        found = await asyncio.to_thread(self._letters.read, None if names.all else names.ids)
        return [
            FullLetter(**_facts(one), payload=_plain(one.payload), worker=one.worker, pattern=one.pattern)
            for one in found
        ]

    async def _replay(self, names: LetterNames) -> LetterOutcome:
        """Send letters again, oldest first; one that was sent is gone, and comes back anew if it fails again."""
        found = await asyncio.to_thread(self._letters.read, None if names.all else names.ids)
        results = {str(one): _NONE for one in names.ids}
        for one in found:
            try:
                sent = await self._operator().send_again(one)
            except SmartIpcError as error:
                results[str(one.id)] = f"{type(error).__name__}: {error}"
                continue
            results[str(one.id)] = "" if sent else f"{one.worker} has no subscription to {one.pattern} now"
            if sent:
                await asyncio.to_thread(self._letters.remove, [one.id])
        return LetterOutcome(results)

    async def _purge(self, names: LetterNames) -> LetterOutcome:
        found = await asyncio.to_thread(self._letters.read, None if names.all else names.ids)
        results = {str(one): _NONE for one in names.ids} | {str(one.id): "" for one in found}
        await asyncio.to_thread(self._letters.remove, [one.id for one in found])
        return LetterOutcome(results)


def _facts(one: DeadLetter) -> dict[str, Any]:
    at = datetime.fromtimestamp(one.at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {
        "id": one.id,
        "at": at,
        "address": one.address,
        "kind": one.kind,
        "sender": one.sender,
        "reason": one.reason,
        "attempts": one.attempts,
    }


def _plain(payload: bytes) -> Any:
    try:
        return codec.plain(payload)
    except InvalidPayload:
        return payload.hex()
