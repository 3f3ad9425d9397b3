"""The pipes of one process for its stdout and stderr: made before its start, and undone together if that fails.

Who reads them, and what becomes of the lines, is output.py's business.
"""

from __future__ import annotations

import os

from smartipc.supervisor.core.spec import WorkerSpec
from smartipc.supervisor.host.output import Stream

Reads = tuple[tuple[int, Stream], ...]


class Streams:
    """Pipes for what is not inherited from us.

    Args:
        worker: says what goes where.

    Raises:
        OSError: no descriptor is left; nothing stays open.
    """

    def __init__(self, worker: WorkerSpec) -> None:
        self.ends: list[int] = []
        """What the process gets as stdout and stderr."""
        self.reads: Reads = ()
        """What we read, with its name."""
        self._theirs: list[int] = []
        to: tuple[tuple[Stream, str | None, int], ...] = (
            ("stdout", worker.logs.stdout, 1),
            ("stderr", worker.logs.stderr, 2),
        )
        try:
            for stream, path, ours in to:
                if path == "inherit":
                    self.ends.append(ours)
                    continue
                read, write = os.pipe()
                self.reads += ((read, stream),)
                self._theirs.append(write)
                self.ends.append(write)
        except OSError:
            self.undo()
            raise

    def __repr__(self) -> str:
        return f"<Streams {self.ends}, read at {[read for read, _ in self.reads]}>"

    def started(self) -> None:
        """Close what the process has by now."""
        theirs, self._theirs = self._theirs, []
        for descriptor in theirs:
            os.close(descriptor)

    def undo(self) -> None:
        """Close both sides: there is no process."""
        self.started()
        for read, _ in self.reads:
            os.close(read)
