"""Which instance gets a call: pinned slot, consistent key, or least outstanding and then round robin. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from smartipc.ipc.control import COMING, Entry
from smartipc.ipc.errors import CallError, NoSuchWorker, WorkerDied
from smartipc.ipc.routing.directory import DirectoryState


@dataclass(frozen=True, slots=True)
class Wait:
    """Nobody is ready yet, but somebody may become so: look again when the directory changes."""

    reason: str


def select(
    state: DirectoryState,
    worker: str,
    *,
    slot: int | None = None,
    key: str | None = None,
    method: str | None = None,
    outstanding: Callable[[Entry], int],
    turn: int = 0,
) -> Entry | Wait | CallError:
    """Choose the instance for a call.

    Args:
        state: the directory.
        worker: the address's worker.
        slot: pin this slot.
        key: hash consistently: calls with equal keys go to the same instance while the ready ones stay the same.
        method: for the errors.
        outstanding: unanswered calls that this process has at an instance.
        turn: rises with every call; breaks ties in turn.

    Returns:
        the entry, or Wait, or the error that is certain: NoSuchWorker for an unknown name or slot, WorkerDied
        (processed "no") when no instance will come by itself.
    """
    entries: Sequence[Entry] = state.by_worker.get(worker, ())
    if not entries:
        return NoSuchWorker(worker, state.workers(), method=method)
    if slot is not None:
        entries = [entry for entry in entries if entry.slot == slot]
        if not entries:
            known = [entry.instance for entry in state.by_worker[worker]]
            return NoSuchWorker(f"{worker}:{slot}", known, method=method)
    ready = [entry for entry in entries if entry.ready]
    if not ready:
        return _nobody(entries, method)
    if len(ready) == 1:
        return ready[0]
    if key is not None:
        return max(ready, key=lambda entry: _weight(key, entry.instance))
    counts = [outstanding(entry) for entry in ready]
    least = min(counts)
    idle = [entry for entry, count in zip(ready, counts, strict=True) if count == least]
    return idle[turn % len(idle)]


def _nobody(entries: Sequence[Entry], method: str | None) -> Wait | WorkerDied:
    coming = [entry for entry in entries if entry.state in COMING]
    if coming:
        return Wait(f"{coming[0].instance} is {coming[0].state}")
    entry = entries[0]
    facts = entry.last_exit
    return WorkerDied(
        entry.instance,
        facts.code if facts else None,
        facts.signal if facts else None,
        bool(facts and facts.oom),
        "no",
        reason=f"it is {entry.state}",
        method=method,
    )


def _weight(key: str, instance: str) -> bytes:
    """Rendezvous hashing: a key moves only when its own instance leaves or a heavier one joins."""
    return hashlib.blake2b(f"{key}\0{instance}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
