"""Procfile to ours: `name: command` lines, run by a shell where they need one."""

from __future__ import annotations

import re
import shlex

from smartipc.supervisor.conversion.draft import Draft, literal

_LINE = re.compile(r"([A-Za-z0-9_-]+):\s*(\S.*)")
_SHELL = re.compile(r"[$`|&;<>()*?~\[\]{}#\n]|^\s*\w+=")


def from_procfile(source: str, text: str) -> str:
    """Convert a Procfile.

    Raises:
        ValueError: a line is no `name: command`; names it.
    """
    draft = Draft(source)
    draft.top.comments.append("If there is a .env file beside it, add: env_file: .env")
    for place, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        found = _LINE.fullmatch(line.strip())
        if found is None:
            raise ValueError(f"{source}:{place}: expected 'name: command', got {line.strip()!r}")
        name, command = found.groups()
        block = draft.worker(name)
        if "$PORT" in command or "${PORT" in command:
            block.comments.append("$PORT: nobody sets it here; put it into env, or hand a socket over by `sockets`")
        block.put("command", _words(command))
        block.put("restart", "always")
    return draft.text()


def _words(command: str) -> list[str]:
    """Split a plain command; whatever needs a shell gets one, which it replaces."""
    if _SHELL.search(command):
        return ["sh", "-c", literal(command if re.search(r"[|&;]|^\s*\w+=", command) else f"exec {command}")]
    return shlex.split(command)
