"""Words of a peer, made fit for a log, a terminal and an error sentence. Text only."""

from __future__ import annotations

LONGEST = 128


def shown(text: str, longest: int = LONGEST) -> str:
    """Return a peer's words on one line, at most about `longest` characters: nothing unprintable is left as it is.

    Line ends would forge log lines, control characters command terminals, marks of direction hide what is written.
    """
    cut = text[:longest]
    if not cut.isprintable():
        cut = "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in cut)
        cut = cut[: 2 * longest]
    return f"{cut}…" if len(text) > longest else cut
