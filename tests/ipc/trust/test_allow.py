"""What `allow` permits."""

from __future__ import annotations

import pytest

from smartipc.ipc.trust.allow import Allow, covers


def test_what_is_not_written_is_denied() -> None:
    nothing = Allow()
    assert not nothing.permits("request", "a.b")
    assert not nothing.permits("publish", "a")
    assert not nothing.permits("subscribe", "a")
    some = Allow(request=("catalog.*", "log.>"), publish=("index.>",), subscribe=("index.*",))
    assert some.permits("request", "catalog.add")
    assert not some.permits("request", "catalog.add.many")
    assert some.permits("request", "log.a.b")
    assert not some.permits("publish", "catalog.add")
    assert some.permits("publish", "index.a.b")


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
    assert Allow(subscribe=(wider,)).permits("subscribe", pattern) is covered
