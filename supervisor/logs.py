"""The supervisor's own log: stderr or a file, as text or JSON. Output of workers is host/output.py."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime

from smartipc.supervisor.core.spec import LogSpec
from smartipc.supervisor.host.output import as_json


class _Json(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return as_json(record.levelname.lower(), "", "log", text, record.created).decode().rstrip()


class _Console(logging.Formatter):
    """Time with zone, level, sentence."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC).astimezone().isoformat(sep=" ", timespec="milliseconds")
        text = f"{moment} {record.levelname.lower():7} {record.getMessage()}"
        return text + "\n" + self.formatException(record.exc_info) if record.exc_info else text


def configure(spec: LogSpec) -> logging.Handler:
    """Install the handler and return it; the caller removes it at the end."""
    handler: logging.Handler = logging.FileHandler(spec.file) if spec.file else logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if spec.format == "json" else _Console())
    logger = logging.getLogger("smartipc")
    logger.setLevel(spec.level.upper())
    logger.propagate = False
    logger.addHandler(handler)
    return handler
