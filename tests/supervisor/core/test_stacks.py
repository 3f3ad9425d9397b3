"""Where a worker hung, told from the dump of all its threads."""

from __future__ import annotations

import pytest

from smartipc.supervisor.core.stacks import MOST, dump, essence

LIB = '  File "/usr/lib/python3.11/threading.py", line {} in run'
SITE = '  File "/venv/lib/python3.11/site-packages/urllib3/connection.py", line {} in recv'
OWN = '  File "/srv/app/work.py", line {} in crunch'
OURS = [
    '  File "/venv/lib/python3.11/site-packages/smartipc/workers/runtime.py", line 87 in _call',
    '  File "/src/smartipc/workers/bootstrap.py", line 63 in main',
    '  File "<string>", line 1 in <module>',
]
HEAD = ["Fatal Python error: Aborted", "", "Thread 0x00007f01 (most recent call first):", LIB.format(1), ""]
CURRENT = "Current thread 0x00007f02 (most recent call first):"
FOOT = ["", "Extension modules: msgspec._core (total: 1)"]


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ([], (0, 0)),
        (["a", "b"], (2, 2)),
        ([*HEAD, CURRENT, OWN.format(1), *FOOT], (0, 9)),
        (["before", *HEAD, CURRENT, OWN.format(1), *FOOT, "after"], (1, 10)),
        ([*HEAD, CURRENT, *FOOT, "between", *HEAD, CURRENT, OWN.format(1)], (9, 16)),
        (
            [LIB.format(8), "", "Thread 0x01 (most recent call first):", LIB.format(9), "", CURRENT, OWN.format(1)],
            (2, 7),
        ),
        (["Thread 0x01 is what my own log says"], (1, 1)),
    ],
)
def test_a_dump_is_found_among_other_lines(lines: list[str], found: tuple[int, int]) -> None:
    assert dump(lines) == found


def frames(*lines: str) -> tuple[str, ...]:
    return essence([*HEAD, CURRENT, *lines, *FOOT])


def test_the_main_thread_counts_down_to_the_outermost_frame_of_its_own_code() -> None:
    assert frames(OWN.format(1), OWN.format(2), *OURS) == (OWN.format(1), OWN.format(2))
    assert frames(SITE.format(1), OWN.format(2), LIB.format(3), OWN.format(4), *OURS) == (
        SITE.format(1), OWN.format(2), LIB.format(3), OWN.format(4),
    )  # fmt: skip


def test_without_own_code_it_is_whatever_runs() -> None:
    assert frames(SITE.format(1), *OURS) == (SITE.format(1), *OURS)
    many = [SITE.format(number) for number in range(40)]
    assert frames(*many) == (*many[:6], "  ...", *many[6:11])


def test_deep_in_a_library_the_innermost_own_frames_are_not_lost() -> None:
    deep = [SITE.format(number) for number in range(50)]
    found = frames(*deep, *(OWN.format(number) for number in range(20)), *OURS)
    assert found == (*deep[:6], "  ...", *(OWN.format(number) for number in range(5)))
    assert len(found) == MOST


def test_another_thread_may_be_the_one_that_got_the_signal() -> None:
    stacks = ["Fatal Python error: Aborted", "", CURRENT, LIB.format(1), "", "Thread 0x01 (most recent call first):"]
    assert essence([*stacks, OWN.format(7), *OURS]) == (OWN.format(7),)


def test_no_stacks_no_essence() -> None:
    assert essence([]) == ()
