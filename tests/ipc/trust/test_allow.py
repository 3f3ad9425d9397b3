"""What `allow` permits."""

from __future__ import annotations

import pytest

from smartipc.ipc.control import Allow
from smartipc.ipc.trust.allow import covers, permits


def test_what_is_not_written_is_denied() -> None:
    nothing = Allow()
    assert not permits(nothing, "request", "a.b")
    assert not permits(nothing, "publish", "a")
    assert not permits(nothing, "subscribe", "a")
    some = Allow(request=("catalog.*", "log.>"), publish=("index.>",), subscribe=("index.*",))
    assert permits(some, "request", "catalog.add")
    assert not permits(some, "request", "catalog.add.many")
    assert permits(some, "request", "log.a.b")
    assert not permits(some, "publish", "catalog.add")
    assert permits(some, "publish", "index.a.b")


@pytest.mark.parametrize(
    ("wider", "pattern", "covered"),
    [
        ("a.b", "a.b", True),
        ("a.b", "a.c", False),
        ("a.*", "a.b", True),
        ("a.*", "a.*", True),
        ("a.*", "a.>", False),
        ("a.*", "a.b.c", False),
        ("a.*", "*.b", False),
        ("a.b", "a.*", False),
        ("a.>", "a.*", True),
        ("a.>", "a.>", True),
        ("a.>", "a", False),
        ("a.>", ">", False),
        (">", "a.*.>", True),
        ("*.*", "a", False),
        ("*", ">", False),
    ],
)
def test_a_subscription_must_be_covered_as_a_whole(wider: str, pattern: str, covered: bool) -> None:
    assert covers(wider, pattern) is covered
    assert permits(Allow(subscribe=(wider,)), "subscribe", pattern) is covered
