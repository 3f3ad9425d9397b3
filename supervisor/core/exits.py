"""What the end of a life means: success, failure, or a failure that must not be repeated. Pure judgement.

Nothing here knows states or budgets; whether a wanted restart may happen is the core's affair.
"""

from __future__ import annotations

from enum import Enum
from typing import assert_never

from smartipc.ipc.control import ExitFacts
from smartipc.supervisor.core.spec import RestartSpec


class Verdict(Enum):
    """How an unplanned end is judged."""

    SUCCESS = "success"
    FAILURE = "failure"
    PREVENTED = "prevented"


def judge(exit_: ExitFacts, restart: RestartSpec) -> Verdict:
    """Judge an end that nobody ordered by the worker's exit codes; a signal is always a failure.

    `prevent_codes` win over `success_codes`, as RestartPreventExitStatus does in systemd.
    """
    if exit_.code is not None and exit_.code in restart.prevent_codes:
        return Verdict.PREVENTED
    if exit_.code is not None and exit_.code in restart.success_codes:
        return Verdict.SUCCESS
    return Verdict.FAILURE


def restarts(verdict: Verdict, restart: RestartSpec) -> bool:
    """Tell whether the policy wants another life after this end."""
    match restart.policy:
        case "always":
            return verdict is not Verdict.PREVENTED
        case "on-failure":
            return verdict is Verdict.FAILURE
        case "never":
            return False
        case _:
            assert_never(restart.policy)


def describe(exit_: ExitFacts) -> str:
    """Return the end as a few words: "killed by SIGKILL", "exit code 1 (ValueError: ...)"."""
    if exit_.signal is not None:
        words = f"killed by {exit_.signal}"
        if exit_.core_dumped:
            words += ", core dumped"
        if exit_.oom:
            words += ", probably out of memory"
        return words
    if exit_.code is None:
        return exit_.reason or "ended, how is not known"
    return f"exit code {exit_.code} ({exit_.reason})" if exit_.reason else f"exit code {exit_.code}"
