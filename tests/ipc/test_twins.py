"""The two flavours say the same: every public member exists in both, with the same parameters and the same promise."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from smartipc.ipc import client, endpoint, handle, server, streaming
from smartipc.ipc.sync import client as sync_client
from smartipc.ipc.sync import endpoint as sync_endpoint
from smartipc.ipc.sync import handle as sync_handle
from smartipc.ipc.sync import server as sync_server
from smartipc.ipc.sync import streaming as sync_streaming

TWINS = [
    (endpoint.Endpoint, sync_endpoint.Endpoint),
    (handle.SmartIpc, sync_handle.SmartIpc),
    (client.IpcClient, sync_client.IpcClient),
    (server.IpcServer, sync_server.IpcServer),
    (streaming.IpcChannel, sync_streaming.IpcChannel),
    (streaming.Items, sync_streaming.Items),
]
WAITING = {"stopped": "timeout", "closed": "timeout", "receive": "timeout"}
"""Only blocking code must be told how long to wait: an await can be cancelled."""
NAMED = {"aclose": "close"}
"""What is awaited by another name, as everywhere in Python."""
INSIDE = {"accepted", "try_send"}
"""Between a channel and what opens or serves it."""


def public(cls: type) -> dict[str, Any]:
    members = inspect.getmembers(cls, lambda one: callable(one) or isinstance(one, property))
    return {
        NAMED.get(name, name): member for name, member in members if not name.startswith("_") and name not in INSIDE
    }


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
    theirs = [found for found in parameters(public(other)[name]) if found[0] != WAITING.get(name)]
    assert parameters(public(one)[name]) == theirs


@pytest.mark.parametrize(
    ("one", "other", "name"), [(one, other, name) for one, other in TWINS for name in sorted(public(one))]
)
def test_a_member_is_explained_in_both(one: type, other: type, name: str) -> None:
    ours, theirs = inspect.getdoc(public(one)[name]), inspect.getdoc(public(other)[name])
    assert ours
    assert theirs
    assert ("Raises" in ours) <= ("Raises" in theirs)
    assert ("Args:" in ours) is ("Args:" in theirs)
