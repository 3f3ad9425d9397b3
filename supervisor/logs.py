"""The supervisor's own log: stderr or a file, as text or JSON. Output of workers is host/output.py."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from datetime import UTC, datetime

from smartipc.ipc.wire.text import one_line
from smartipc.supervisor.core.spec import LogSpec
from smartipc.supervisor.host.output import as_json


class _Json(logging.Formatter):
    """One JSON object a line. Whoever logs of an instance names it: `extra={"instance": ...}`."""

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        instance = getattr(record, "instance", "")
        return as_json(record.levelname.lower(), instance, "log", text, record.created).decode().rstrip()


class _Console(logging.Formatter):
    """Time with zone, level, and a sentence on one line, whatever words of others are in it."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC).astimezone().isoformat(sep=" ", timespec="milliseconds")
        text = f"{moment} {record.levelname.lower():7} {one_line(record.getMessage())}"
        return text + "\n" + self.formatException(record.exc_info) if record.exc_info else text


class _File(logging.Handler):
    """A file that may be full for a while: then lines are lost, which is told, and nothing else happens.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._torn = False
        self._lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line, or count it as lost."""
        try:
            line = self.format(record).encode("utf-8", "backslashreplace") + b"\n"
        except Exception:  # what cannot be formatted is shown, as logging does it, and hurts nobody
            self.handleError(record)
            return
        data = (b"\n" if self._torn else b"") + line
        try:
            written = os.write(self._file, data)
        except OSError as error:
            self._lose(record, error.strerror or str(error))
            return
        self._torn = written < len(data)
        if self._torn:
            self._lose(record, "no space left for the whole line")
        elif self._lost:
            lost, self._lost = self._lost, 0
            again = logging.LogRecord(
                record.name, logging.WARNING, "", 0, "%d lines of this log are lost", (lost,), None
            )
            self.emit(again)

    def _lose(self, record: logging.LogRecord, reason: str) -> None:
        self._lost += 1
        if self._lost == 1:
            with contextlib.suppress(OSError, AttributeError):
                sys.stderr.write(f"{self._path}: {reason}; lines are lost, first: {record.getMessage()}\n")

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        super().close()


def configure(spec: LogSpec) -> logging.Handler:
    """Install the handler and return it; the caller removes it at the end."""
    handler: logging.Handler = _File(spec.file) if spec.file else logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if spec.format == "json" else _Console())
    logger = logging.getLogger("smartipc")
    logger.setLevel(spec.level.upper())
    logger.propagate = False
    logger.addHandler(handler)
    return handler
