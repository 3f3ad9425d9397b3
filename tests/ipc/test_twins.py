"""The two flavours say the same: every public member exists in both, with the same parameters and the same promise."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from smartipc.ipc import endpoint, handle
from smartipc.ipc.sync import endpoint as sync_endpoint
from smartipc.ipc.sync import handle as sync_handle

TWINS = [(endpoint.Endpoint, sync_endpoint.Endpoint), (handle.SmartIpc, sync_handle.SmartIpc)]
WAITING = {"stopped": "timeout"}
"""Only blocking code must be told how long to wait: an await can be cancelled."""


def public(cls: type) -> dict[str, Any]:
    members = inspect.getmembers(cls, lambda one: callable(one) or isinstance(one, property))
    return {name: member for name, member in members if not name.startswith("_")}


def parameters(function: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    of = inspect.signature(function).parameters.values()
    return [(one.name, one.kind, one.default) for one in of]


@pytest.mark.parametrize(("one", "other"), TWINS)
def test_both_have_the_same_members(one: type, other: type) -> None:
    assert set(public(one)) == set(public(other))


@pytest.mark.parametrize(
    ("one", "other", "name"),
    [(one, other, name) for one, other in TWINS for name, member in public(one).items() if callable(member)],
)
def test_a_member_takes_the_same_in_both(one: type, other: type, name: str) -> None:
    theirs = [found for found in parameters(getattr(other, name)) if found[0] != WAITING.get(name)]
    assert parameters(getattr(one, name)) == theirs


@pytest.mark.parametrize("name", sorted(public(endpoint.Endpoint)))
def test_a_verb_is_explained_in_both(name: str) -> None:
    ours, theirs = (
        inspect.getdoc(getattr(endpoint.Endpoint, name)),
        inspect.getdoc(getattr(sync_endpoint.Endpoint, name)),
    )
    assert ours
    assert theirs
    assert ("Raises:" in ours) <= ("Raises:" in theirs)
    assert ("Args:" in ours) is ("Args:" in theirs)
