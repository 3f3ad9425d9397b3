"""Races: contenders of one row, each in a process of its own, measured in turns so that a slow moment hits all of them.

A contender is a context manager that sets a peer up and gives `measure(n)`, which returns one figure: microseconds or
a rate. What cannot run here raises Missing, and is reported as such, never left out in silence.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

Measure = Callable[[int], float]
Make = Callable[[], AbstractContextManager[Measure]]
PATIENCE = 60.0
"""Seconds for one figure of one contender."""


class Missing(Exception):  # noqa: N818 - a fact, not a failure
    """This peer cannot run here, and why."""


@dataclass(frozen=True)
class Target:
    """`ours` must reach `factor` times the figure of `against`."""

    ours: str
    against: str
    factor: float


@dataclass(frozen=True)
class Row:
    """One case of the table.

    Args:
        name: short, for the command line.
        title: what is measured.
        unit: "us" (less is better) or "1/s" (more is better).
        number: operations per round.
        one_cpu: whether everything is pinned to the same CPU.
    """

    name: str
    title: str
    unit: str
    number: int
    contenders: dict[str, Make]
    targets: Sequence[Target]
    one_cpu: bool = False
    slow: dict[str, float] = field(default_factory=dict)
    """Contenders that do only this part of `number`: they are far behind, and time is short."""


def race(row: Row, rounds: int, only: Sequence[str] = ()) -> dict[str, Any]:
    """Run a row and return its figures, targets and what was missing, ready for JSON."""
    figures: dict[str, list[float]] = {}
    missing: dict[str, str] = {}
    with ExitStack() as stack:
        runners: dict[str, Connection] = {}
        for name, make in row.contenders.items():
            if only and not any(part in name for part in only):
                continue
            runner = stack.enter_context(_process(make, one_cpu=row.one_cpu))
            reason = _ask(runner)
            if reason is None:
                runners[name] = runner
                figures[name] = []
            else:
                missing[name] = str(reason)
        for turn in range(rounds + 1):
            for name, runner in runners.items():
                runner.send(max(1, int(row.number * row.slow.get(name, 1) / (1 if turn else 5))))
                answer = _ask(runner)
                if not isinstance(answer, float):
                    missing[name] = str(answer)
                elif turn:
                    figures[name].append(answer)
            runners = {name: runner for name, runner in runners.items() if name not in missing}
    values = {name: statistics.median(of) for name, of in figures.items() if name not in missing}
    return {
        "row": row.name,
        "title": row.title,
        "unit": row.unit,
        "values": values,
        "targets": [_judged(target, values, row.unit) for target in row.targets],
        "missing": missing,
    }


def _judged(target: Target, values: dict[str, float], unit: str) -> dict[str, Any]:
    ours, theirs = values.get(target.ours), values.get(target.against)
    ratio = ours / theirs if ours and theirs else None
    reached = None if ratio is None else (ratio <= target.factor if unit == "us" else ratio >= target.factor)
    return {
        "ours": target.ours,
        "against": target.against,
        "target": target.factor,
        "ratio": ratio,
        "reached": reached,
    }


def _ask(runner: Connection) -> Any:
    """Return what the contender says next, or a sentence on why it says nothing."""
    if not runner.poll(PATIENCE):
        return f"no answer in {PATIENCE:.0f} s"
    try:
        return runner.recv()
    except EOFError:
        return "its process ended"


@contextmanager
def _process(make: Make, *, one_cpu: bool) -> Iterator[Connection]:
    near, far = multiprocessing.Pipe()
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        near.close()
        try:
            if one_cpu and hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
            _serve(make, far)
        finally:
            sys.stderr.flush()
            os._exit(0)
    far.close()
    try:
        yield near
    finally:
        near.close()
        until = time.monotonic() + 5
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            if time.monotonic() > until:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                break
            time.sleep(0.01)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # what it started and could not end


def _serve(make: Make, far: Connection) -> None:
    try:
        with make() as measure:
            far.send(None)
            while True:
                far.send(float(measure(far.recv())))
    except EOFError:
        pass
    except Missing as reason:
        far.send(str(reason))
    except Exception as error:
        far.send(f"{type(error).__name__}: {error}")


def show(result: dict[str, Any]) -> None:
    """Print one row for people."""
    less = result["unit"] == "us"
    print(f"{result['title']} ({result['unit']})")
    for name, value in sorted(result["values"].items(), key=lambda item: item[1] if less else -item[1]):
        print(f"  {name:<34}{value:>12,.1f}" if less else f"  {name:<34}{value:>12,.0f}")
    for name, reason in result["missing"].items():
        print(f"  {name:<34}     missing: {reason}")
    for one in result["targets"]:
        if one["ratio"] is None:
            print(f"  -> {one['ours']} / {one['against']}: not measured")
            continue
        word = "reached" if one["reached"] else "NOT REACHED"
        sign = "<=" if less else ">="
        print(f"  -> {one['ours']} / {one['against']}: {one['ratio']:.2f} (target {sign} {one['target']}) {word}")
    print(flush=True)
