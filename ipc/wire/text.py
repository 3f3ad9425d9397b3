"""Words of a peer, made fit for a log, a terminal and an error; ours, made fit for a less trusted peer. Text only."""

from __future__ import annotations

import re

LONGEST = 128
_TOLD = 1024
"""Longest message of an error that crosses to a less trusted peer."""

_QUOTED = re.compile(r"""(?<!\w)[bruBRU]{0,2}(['"])(?:\\.|(?!\1)[^\\])*(?:\1|\\?\Z)""")
_PATH = re.compile(
    r"""
    (?<![\w.~]) (?: ~\w* | \.\.? )? (?: / [^\s/'"`:,;()\[\]{}<>]+ )+ /?   # /a/b, ~/a, ./a, ../a
    | (?<![\w/.-]) (?: [\w.-]+ / )+ [\w-]+ \.\w+                         # a/b.c
    | (?<!\w) (?: [A-Za-z]: | \\ ) [\\/] [^\s'"`,;()\[\]{}<>]*            # C:\a, \\host\a
    """,
    re.VERBOSE,
)

_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def shown(text: str, longest: int = LONGEST) -> str:
    """Return a peer's words on one line, at most about `longest` characters: nothing unprintable is left as it is.

    Line ends would forge log lines, control characters command terminals, marks of direction hide what is written.
    """
    cut = text[:longest]
    if not cut.isprintable():
        cut = "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in cut)
        cut = cut[: 2 * longest]
    return f"{cut}…" if len(text) > longest else cut


def one_line(text: str) -> str:
    """Return a text as one line that a terminal shows and does not obey, of whatever length; tabs stay.

    For the words of workers, of other programs and of exceptions, where people read them.
    """
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def sentence_of(error: BaseException) -> str:
    """Return what an exception says, whatever its class does when it is asked."""
    try:
        return str(error)
    except Exception as failure:  # somebody's `__str__`; the error itself must still be told
        return f"(its __str__ raised {type(failure).__name__})"


def discreet(message: str) -> str:
    """Return the message of an error as far as a less trusted peer may read it: its first line, without values.

    What stands in quotes, as Python's own exceptions show arguments, and what looks like a path become an ellipsis.
    """
    line = message.partition("\n")[0][:_TOLD]
    return _PATH.sub("…", _QUOTED.sub("…", line))
