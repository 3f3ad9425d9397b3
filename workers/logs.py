"""Set up logging in a worker: one handler on stderr, which the supervisor drains and prefixes.

No files, no rotation, no timestamps: whoever drains the stream adds those.
"""

from __future__ import annotations

import logging
import sys


def configure(level: str) -> None:
    """Send every record of level `level` ("debug", "info", "warning", "error") and above to stderr.

    Replaces handlers that were inherited from a parent process, and leaves none of them open twice.
    """
    logging.basicConfig(
        level=level.upper(), stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s", force=True
    )
