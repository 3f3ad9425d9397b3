"""What a peer says, on one line; what a less trusted one is told."""

from __future__ import annotations

import time

import pytest

from smartipc.ipc.wire.text import discreet, one_line, sentence_of, shown


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


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("", ""),
        ("boom", "boom"),
        (
            "don't, they can't and won't; 5 requests/s and/or 1.5 GB/s",
            "don't, they can't and won't; 5 requests/s and/or 1.5 GB/s",
        ),
        ("[Errno 2] No such file or directory: '/srv/app/keys.pem'", "[Errno 2] No such file or directory: …"),
        ("invalid literal for int() with base 10: 'hunter2'", "invalid literal for int() with base 10: …"),
        ("b'\\x00key' is not in b\"it's\"", "… is not in …"),
        ("'it\\'s' or \"a\\\"b\" and more", "… or … and more"),
        ("an 'open end and the rest", "an …"),
        ("ends in a backslash 'x\\", "ends in a backslash …"),
        ("cannot open /etc/passwd, ~/.ssh/id or ~root/x", "cannot open …, … or …"),
        ("see ../a/b and ./c; (/d/e) [/f]", "see … and …; (…) […]"),
        ("connect to unix:///run/user/1000/s.sock failed", "connect to unix://… failed"),
        ("in workers/indexer.py at line 3", "in … at line 3"),
        (r"C:\Users\me\x.txt and \\host\share", "… and …"),
        ("the first line\nTraceback: the second", "the first line"),
        ("x" * 5000, "x" * 1024),
    ],
)
def test_it_is_discreet(message: str, told: str) -> None:
    assert discreet(message) == told


@pytest.mark.parametrize("piece", ["'", '"', "'a", "/", "a/", "./", "\\", "b'\\", "~", "C:", "/a.", "a/b."])
def test_discretion_takes_no_time_whatever_is_said(piece: str) -> None:
    began = time.process_time()
    discreet(piece * 100_000)
    assert time.process_time() - began < 0.5


def test_one_line_is_shown_and_not_obeyed() -> None:
    assert one_line("as it is,\tgrüße 🙂 ") == "as it is,\tgrüße 🙂 "
    assert one_line("a\nb\r\x1b[2J\x07\x9b\x7f\u202e\u2028") == "a\\nb\\r\\x1b[2J\\x07\\x9b\\x7f\\u202e\\u2028"
    assert len(one_line("x" * 10_000)) == 10_000


def test_an_error_without_words_says_so() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise ValueError

    assert sentence_of(ValueError("as it says")) == "as it says"
    assert sentence_of(Mute()) == "(its __str__ raised ValueError)"
