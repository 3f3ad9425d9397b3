"""The stacks that faulthandler writes when a worker is aborted: found in its stderr, and what of them matters.

Pure text in, text out. The form is CPython's: the newest thread first and the main thread, whose loop it is that hung,
last; in each the innermost frame first.
"""

from __future__ import annotations

from collections.abc import Sequence

MOST = 12
"""Lines of the part that matters."""
_FATAL = "Fatal Python error:"
_THREAD = ("Thread 0x", "Current thread 0x")
_INSIDE = (
    *_THREAD,
    "  File ",
    "  <",
    "  ...",
    "...",
    "<no Python frame>",
    "Extension modules:",
    "Python runtime state:",
)
_NOT_THEIRS = ("/site-packages/", "/lib/python3", "/smartipc/", 'File "<')
"""What tells a frame of a library, of the interpreter or of ours from one of the worker's own code."""


def dump(lines: Sequence[str]) -> tuple[int, int]:
    """Return from where to where (exclusive) the last dump goes; twice the same number if there is none."""
    first = max((index for index, line in enumerate(lines) if line.startswith(_FATAL)), default=None)
    if first is None:  # a long one, of which only the end is kept
        first = next((index for index, line in enumerate(lines) if line.startswith(_THREAD)), len(lines))
        if not any(line.startswith("Current thread 0x") for line in lines[first:]):
            return len(lines), len(lines)
    end = first + 1
    while end < len(lines) and (not lines[end] or lines[end].startswith(_INSIDE)):
        end += 1
    return first, end


def essence(stacks: Sequence[str]) -> tuple[str, ...]:
    """Return the frames of the main thread that tell where it hung, the innermost first, at most MOST lines.

    They end with the outermost frame of the worker's own code; what is called by it below is how a worker is run. Of
    very deep ones the innermost are kept, and the innermost of the worker's own.
    """
    starts = [index for index, line in enumerate(stacks) if line.startswith(_THREAD)]
    if not starts:
        return ()
    frames = [line for line in stacks[starts[-1] + 1 :] if line.startswith("  ")]
    own = [index for index, line in enumerate(frames) if not any(word in line for word in _NOT_THEIRS)]
    frames = frames[: own[-1] + 1] if own else frames
    if len(frames) <= MOST:
        return tuple(frames)
    half = MOST // 2
    more = [index for index in own if index >= half][: MOST - half - 1] or range(half, MOST - 1)
    return (*frames[:half], "  ...", *(frames[index] for index in more))
