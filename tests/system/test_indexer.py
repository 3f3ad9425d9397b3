"""The default app on real trees, whole and under fire."""

from __future__ import annotations

import hashlib
import os
import random
import re
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from kit import App, alive, wait_for

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]
CONFIG = Path(__file__).parents[2] / "config" / "workers.yaml"
LAST = re.compile(r"indexed (\d+) files, (\d+) bytes, (\d+) duplicate groups, (\d+) skipped in \d+\.\d+ s\Z")


def make_tree(root: Path, files: int, size: int = 200) -> None:
    source = random.Random(7)
    for number in range(files):
        folder = root / f"d{number % 37}" / f"e{number % 11}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"f{number}").write_bytes(source.randbytes(source.randrange(size)))


def expected(root: Path) -> dict[str, tuple[int, str]]:
    found = {}
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder) / name
            if path.is_symlink() or not path.is_file() or not os.access(path, os.R_OK):
                continue
            data = path.read_bytes()
            shown = os.fsencode(str(path)).decode("utf-8", "backslashreplace")
            found[shown] = (len(data), hashlib.sha256(data).hexdigest())
    return found


def indexed(database: Path) -> dict[str, tuple[int, str]]:
    with closing(sqlite3.connect(database)) as db:
        return {path: (size, sha) for path, size, sha in db.execute("SELECT path, size, sha256 FROM files")}


def run_index(app: Callable[..., App], root: Path, database: Path) -> App:
    return app(CONFIG, INDEX_ROOT=str(root), INDEX_DB=str(database))


def last_line(one: App) -> re.Match[str]:
    match = LAST.match(one.out.read_text().splitlines()[-1])
    assert match, one.out.read_text()[-500:]
    return match


def test_a_tree_is_indexed_and_the_app_ends_by_itself(app: Callable[..., App], folder: Path) -> None:
    root, database = folder / "tree", folder / "i.db"
    make_tree(root, 3000)
    (root / "same1").write_bytes(b"twice")
    (root / "same2").write_bytes(b"twice")
    one = run_index(app, root, database)
    assert one.wait_ended() == 0
    wanted = expected(root)
    assert indexed(database) == wanted
    files, size, groups, skipped = map(int, last_line(one).groups())
    assert (files, size) == (len(wanted), sum(size for size, _ in wanted.values()))
    digests = [sha for _, sha in wanted.values()]
    assert groups == sum(1 for sha in set(digests) if digests.count(sha) > 1)
    assert skipped == 0


def test_odd_names_and_files_are_counted_never_fatal(app: Callable[..., App], folder: Path) -> None:
    root, database = folder / "tree", folder / "i.db"
    root.mkdir()
    (root / "new\nline").write_bytes(b"1")
    (root / "back\\slash").write_bytes(b"2")
    Path(os.fsdecode(bytes(root) + b"/bad\xff\xfename")).write_bytes(b"3")
    (root / "empty").write_bytes(b"")
    (root / "loop").symlink_to(root)
    (root / "dangling").symlink_to("nowhere")
    (root / "alias").symlink_to("empty")
    os.mkfifo(root / "fifo")
    one = run_index(app, root, database)
    assert one.wait_ended() == 0
    assert indexed(database) == expected(root)
    files, _, _, skipped = map(int, last_line(one).groups())
    assert (files, skipped) == (4, 4)


def test_a_second_run_updates(app: Callable[..., App], folder: Path) -> None:
    root, database = folder / "tree", folder / "i.db"
    make_tree(root, 300)
    assert run_index(app, root, database).wait_ended() == 0
    (root / "d1" / "e1" / "f1").write_bytes(b"changed")
    (root / "d2" / "e2" / "f2").unlink()
    (root / "new").write_bytes(b"new")
    one = run_index(app, root, database)
    assert one.wait_ended() == 0
    assert indexed(database) == expected(root)
    assert int(last_line(one)[1]) == len(expected(root))


def test_the_database_may_lie_in_the_tree(app: Callable[..., App], folder: Path) -> None:
    root = folder / "tree"
    make_tree(root, 50)
    one = run_index(app, root, root / "i.db")
    assert one.wait_ended() == 0
    wanted = {path: row for path, row in expected(root).items() if not path.startswith(str(root / "i.db"))}
    assert indexed(root / "i.db") == wanted


def living(one: App, worker: str) -> list[int]:
    """Pids of the worker's processes that run its code."""
    rows = one.status().values()
    running = [row["pid"] for row in rows if row["worker"] == worker and row["state"] in ("running", "ready")]
    return [pid for pid in running if alive(pid)]  # a zombie of the last kill may not have been noticed yet


def kill_one(one: App, worker: str, number: int = signal.SIGKILL) -> bool:
    """Signal one process of a worker as soon as there is one; tell whether the app still ran."""

    def look() -> list[int] | None:
        assert one.process is not None
        return living(one, worker) or ([0] if one.process.poll() is not None else None)

    while pid := random.choice(wait_for(look, f"a {worker} runs", 20)):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue  # it ended by itself since we looked
        if number == signal.SIGKILL:
            wait_for(lambda: not alive(pid), "the killed process is gone", 5)
        return True
    return False


def test_nothing_is_lost_under_kill_minus_nine(app: Callable[..., App], folder: Path) -> None:
    root, database = folder / "tree", folder / "i.db"
    make_tree(root, 24_000, 8_000)
    one = run_index(app, root, database)
    one.wait_state("scanner:0", "running")
    victims = ["hasher"] * 18 + ["catalog"] * 3
    random.shuffle(victims)
    victims.insert(len(victims) // 2, "scanner")
    killed = [victim for victim in victims if kill_one(one, victim)]
    assert len(killed) == len(victims), f"the run was over after {len(killed)} kills"
    one.wait_state("scanner:0", "running", "ready")
    restarts = {name: row["restarts"] for name, row in one.status().items()}
    assert sum(restarts.values()) >= len(killed) - 2  # the last ones may still be in backoff
    died = [event for event in one.events() if event["to"] == "backoff" and event["exit"]["signal"] == "SIGKILL"]
    assert len(died) == len(killed)
    assert one.wait_ended(120) == 0
    assert indexed(database) == expected(root)
    one.wait_gone()


def test_a_stopped_hasher_is_noticed_killed_and_replaced(app: Callable[..., App], folder: Path) -> None:
    root, database = folder / "tree", folder / "i.db"
    make_tree(root, 8000, 20_000)
    one = run_index(app, root, database)
    one.wait_state("scanner:0", "running")
    kill_one(one, "hasher", signal.SIGSTOP)
    assert one.wait_ended() == 0, one.err.read_text()[-5000:]
    assert indexed(database) == expected(root)
    assert re.search(r"hasher:\d: instance.hang", one.err.read_text())


def test_killing_the_supervisor_leaves_nothing(app: Callable[..., App], folder: Path) -> None:
    root, database = folder / "tree", folder / "i.db"
    make_tree(root, 8000, 20_000)
    one = run_index(app, root, database)
    one.wait_state("scanner:0", "running")
    kill_one(one, "hasher", signal.SIGSTOP)  # it cannot notice the death by itself
    os.kill(one.pid, signal.SIGKILL)
    one.wait_ended()
    one.wait_gone(3.0)
    again = run_index(app, root, database)
    assert again.wait_ended() == 0
    assert indexed(database) == expected(root)


def test_sigterm_stops_in_order_within_the_grace(app: Callable[..., App], folder: Path) -> None:
    root = folder / "tree"
    make_tree(root, 8000, 20_000)
    one = run_index(app, root, folder / "i.db")
    one.wait_state("scanner:0", "running")
    begun = time.monotonic()
    os.kill(one.pid, signal.SIGTERM)
    assert one.wait_ended() == 0
    assert time.monotonic() - begun < 5
    one.wait_gone()
    text = one.err.read_text()
    assert text.index("scanner:0: stopped") < text.index("catalog:0: stopping")
