"""Groups: who restarts with whom, and what a group may still afford. Pure arithmetic on the spec, and budgets.

OTP's rules (supervisor.erl, do_restart and add_restart), with pools as one member. Nothing here moves an instance;
lifecycle.py asks and acts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from smartipc.supervisor.core.budget import Budget
from smartipc.supervisor.core.spec import AppSpec, GroupSpec


@dataclass(frozen=True, slots=True)
class Reaction:
    """What the groups make of a failure whose restart is due at some moment."""

    group: str = ""
    """The group that pays for the restart; "" for a worker in none."""
    mates: tuple[str, ...] = ()
    """Workers whose other instances restart along, in start order."""
    escalated: str = ""
    """The nested group that is restarted as a whole, because its own budget is spent."""
    spent: str = ""
    """The outermost group that has to be given up; then nothing is restarted."""


class Groups:
    """The tree of groups of one app.

    Args:
        spec: the app; every member exists and is in one group only, and no group is inside itself.
    """

    def __init__(self, spec: AppSpec) -> None:
        self._groups = {group.name: group for group in spec.groups}
        self._parents = {member: group.name for group in spec.groups for member in group.members}
        self._budgets = {group.name: Budget(group.max_restarts, group.window) for group in spec.groups}

    def __repr__(self) -> str:
        return f"<Groups {', '.join(f'{name} {budget!r}' for name, budget in self._budgets.items())}>"

    def __getitem__(self, name: str) -> GroupSpec:
        """Return a group.

        Raises:
            KeyError: there is none of that name.
        """
        return self._groups[name]

    def parent(self, member: str) -> GroupSpec | None:
        """Return the group that a worker or group is in."""
        name = self._parents.get(member)
        return self._groups[name] if name is not None else None

    def workers(self, member: str) -> tuple[str, ...]:
        """Return the worker itself, or all workers of a group and the groups in it, in start order."""
        group = self._groups.get(member)
        if group is None:
            return (member,)
        return tuple(name for one in group.members for name in self.workers(one))

    def react(self, worker: str, at: float, granted: Mapping[str, int]) -> Reaction:
        """Decide on a failure of `worker` that is to be repaired at `at`. Counts nothing yet: see `record`.

        Args:
            worker: whose instance failed; it is in a group.
            at: monotonic seconds.
            granted: for each group, restarts that it has allowed and that are still to come.
        """
        group = self.parent(worker)
        assert group is not None, "who is in no group is not asked about"
        if self._budgets[group.name].allows(at, granted.get(group.name, 0)):
            return Reaction(group.name, self._along(group, worker))
        member = group.name
        while (outer := self.parent(member)) is not None:
            if self._budgets[outer.name].allows(at, granted.get(outer.name, 0)):
                along = {*self.workers(member), *self._along(outer, member)}
                return Reaction(outer.name, tuple(n for n in self.workers(outer.name) if n in along), member)
            member = outer.name
        return Reaction(spent=member)

    def _along(self, group: GroupSpec, failed: str) -> tuple[str, ...]:
        """Return the workers that the group's strategy restarts when that member has failed."""
        if group.strategy == "one-for-all":
            return self.workers(group.name)
        if group.strategy == "rest-for-one":
            later = group.members[group.members.index(failed) + 1 :]
            return tuple(name for member in later for name in self.workers(member))
        return ()

    def record(self, group: str, now: float) -> str:
        """Count a restart and return how it stands: "2 of 5 in 60 s of group pipeline"."""
        spec = self._groups[group]
        count = self._budgets[group].record(now)
        return f"{count} of {spec.max_restarts} in {spec.window:g} s of group {group}"

    def clear(self, group: str) -> None:
        """Forget the restarts of a group and of the groups in it: it starts afresh."""
        self._budgets[group].clear()
        for member in self._groups[group].members:
            if member in self._groups:
                self.clear(member)

    def clear_around(self, member: str) -> None:
        """Forget the restarts of the group that a worker or group is in, and of those around it."""
        while (group := self.parent(member)) is not None:
            self._budgets[group.name].clear()
            member = group.name

    def adopt(self, old: Groups) -> None:
        """Take over the restarts that an earlier version of the spec has counted."""
        for name, group in self._groups.items():
            if name in old._budgets:
                self._budgets[name] = old._budgets[name]
                self._budgets[name].limit(group.max_restarts, group.window)


def start_edges(spec: AppSpec) -> dict[str, tuple[str, ...]]:
    """Return, for each worker, the workers that its groups start before it: those of the member just before."""
    groups = Groups(spec)
    edges: dict[str, list[str]] = {worker.name: [] for worker in spec.workers}
    for group in spec.groups:
        for before, after in zip(group.members, group.members[1:], strict=False):
            for name in groups.workers(after):
                edges[name] += groups.workers(before)
    return {name: tuple(dict.fromkeys(before)) for name, before in edges.items()}
