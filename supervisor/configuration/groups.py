"""The rules of `groups:` that single keys cannot know. One function per rule, as in validate.py."""

from __future__ import annotations

from smartipc.supervisor.configuration.nodes import Items, Mapping
from smartipc.supervisor.configuration.problems import Place, Problems, did_you_mean
from smartipc.supervisor.core.ordering import before, find_cycle
from smartipc.supervisor.core.spec import AppSpec, GroupSpec

ALL = ("is what commands call everything", "call it something else")
"""What is wrong with a worker or a group of the name "all", and what to do."""


def validate(spec: AppSpec, root: Mapping, problems: Problems, *, ordered: bool) -> None:
    """Add a problem for every rule that is broken; `ordered` tells that the dependencies form no cycle."""
    found = len(problems.found)
    node = root.entries.get("groups")
    parents: dict[str, str] = {}
    for group in spec.groups if isinstance(node, Mapping) else ():
        assert isinstance(node, Mapping)
        _members(group, node, spec, parents, problems)
    if len(problems.found) == found and isinstance(node, Mapping):
        _nesting(spec, node, problems)
    if len(problems.found) == found:
        _workers(spec, root, parents, problems)
        known = all(name in _names(spec) for worker in spec.workers for name, _ in worker.depends_on)
        if isinstance(node, Mapping) and ordered and known:
            _order(spec, node, problems)


def _names(spec: AppSpec) -> list[str]:
    return [worker.name for worker in spec.workers]


def _members(group: GroupSpec, node: Mapping, spec: AppSpec, parents: dict[str, str], problems: Problems) -> None:
    inner = node.entries[group.name]
    members = inner.entries.get("members") if isinstance(inner, Mapping) else None
    workers = _names(spec)
    known = [*workers, *(other.name for other in spec.groups)]
    if group.name == "all":
        problems.add(node.keys["all"], "groups.all", *ALL)
    if group.name in workers:
        problems.add(node.keys[group.name], f"groups.{group.name}", "is the name of a worker, too", "rename one")
    if isinstance(inner, Mapping) and members is None:
        problems.add(node.keys[group.name], f"groups.{group.name}", "key 'members' is missing", "list its workers")
    for number, member in enumerate(group.members):
        place = members.items[number].place if isinstance(members, Items) else node.keys[group.name]
        path = f"groups.{group.name}.members[{number}]"
        if member not in known:
            problems.add(place, path, f"there is no worker or group {member!r}", did_you_mean(member, known))
        elif member in parents:
            problems.add(
                place, path, f"{member} is a member of {parents[member]} already", "a worker or group is in one group"
            )
        else:
            parents[member] = group.name


def _nesting(spec: AppSpec, node: Mapping, problems: Problems) -> None:
    inside = {group.name: group.members for group in spec.groups}
    cycle = find_cycle({name: tuple(one for one in members if one in inside) for name, members in inside.items()})
    if cycle is not None:
        place = node.keys[cycle[0]]
        problems.add(place, f"groups.{cycle[0]}.members", f"the groups form a cycle: {' -> '.join(cycle)}")


def _order(spec: AppSpec, node: Mapping, problems: Problems) -> None:
    cycle = find_cycle(before(spec))
    if cycle is not None:
        group = next(group for group in spec.groups if set(cycle) & set(group.members))
        problems.add(
            _members_place(node, group),
            f"groups.{group.name}.members",
            f"the start order contradicts depends_on: {' after '.join(cycle)}",
            "members are in start order: list what others depend on first",
        )


def _members_place(node: Mapping, group: GroupSpec) -> Place:
    inner = node.entries[group.name]
    assert isinstance(inner, Mapping)
    return inner.keys["members"]


def _workers(spec: AppSpec, root: Mapping, parents: dict[str, str], problems: Problems) -> None:
    workers = root.entries["workers"]
    assert isinstance(workers, Mapping)
    groups = {group.name: group for group in spec.groups}
    for worker in spec.workers:
        node = workers.entries[worker.name]
        assert isinstance(node, Mapping)
        path = f"workers.{worker.name}"
        parent = parents.get(worker.name)
        if worker.on_failed == "stop-group" and parent is None:
            problems.add(node.keys["on_failed"], f"{path}.on_failed", "stop-group, but it is in no group")
        if not worker.significant:
            continue
        place = node.keys["significant"]
        if parent is None or groups[parent].auto_shutdown == "never":
            hint = "give its group auto_shutdown: any-significant or all-significant"
            problems.add(place, f"{path}.significant", "has no effect: no group of it shuts down by itself", hint)
        elif worker.restart.policy == "always":
            hint = "use restart: on-failure or never"
            problems.add(place, f"{path}.significant", "never ends by itself with restart: always", hint)
