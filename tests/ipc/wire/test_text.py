"""What a peer says, on one line."""

from __future__ import annotations

import pytest

from smartipc.ipc.wire.text import shown


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("", ""),
        ("hasher:0", "hasher:0"),
        ("größe 漢字", "größe 漢字"),
        ("a\nERROR b", "a\\nERROR b"),
        ("\x1b[2J", "\\x1b[2J"),
        ("\u202egnp", "\\u202egnp"),
        ("\x00\x7f\x9b", "\\x00\\x7f\\x9b"),
        ("\ud800", "\\ud800"),
    ],
)
def test_it_is_shown(said: str, expected: str) -> None:
    assert shown(said) == expected
    assert shown(said).isprintable()


def test_it_is_short() -> None:
    assert shown("x" * 1000) == "x" * 128 + "…"
    assert shown("x" * 1000, 10) == "x" * 10 + "…"
    assert len(shown("\U000e0001" * 1000)) <= 257
