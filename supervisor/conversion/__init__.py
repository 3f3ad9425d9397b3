"""From the configuration of other supervisors to ours: text in, YAML text out. Reads no files and starts nothing."""

from __future__ import annotations

from smartipc.supervisor.conversion.circus import from_circus
from smartipc.supervisor.conversion.procfile import from_procfile
from smartipc.supervisor.conversion.supervisord import from_supervisord

__all__ = ["convert", "from_circus", "from_procfile", "from_supervisord"]


def convert(name: str, text: str) -> str:
    """Return the configuration as ours, with a comment for whatever has no equivalent.

    Args:
        name: the file's name; what it holds is told by its sections, or by the name for a Procfile.
        text: its content.

    Raises:
        ValueError: it is none of supervisord.conf, circus.ini and Procfile, or it is malformed; the message says where.
    """
    if "[watcher:" in text:
        return from_circus(name, text)
    if any(mark in text for mark in ("[program:", "[supervisord]", "[eventlistener:", "[fcgi-program:")):
        return from_supervisord(name, text)
    if name.startswith("Procfile") or name.endswith("Procfile"):
        return from_procfile(name, text)
    raise ValueError(
        f"{name} is no supervisord.conf ([program:x] sections), circus.ini ([watcher:x] sections) or Procfile"
    )
