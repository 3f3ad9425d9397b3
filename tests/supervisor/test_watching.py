"""What counts as a change of watched files."""

from __future__ import annotations

import asyncio
from pathlib import Path

from smartipc.supervisor.watching import changed, scan


def test_a_scan_sees_sources_and_nothing_else(tmp_path: Path) -> None:
    for name in ("a.py", "sub/b.py", "sub/.hidden", ".git/config", "__pycache__/a.pyc", "c.pyc", "d.py~", "e.swp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    single = tmp_path / ".env"
    single.write_text("")
    seen = asyncio.run(scan([str(tmp_path), str(single), str(tmp_path / "gone")]))
    assert sorted(Path(path).relative_to(tmp_path).as_posix() for path in seen) == [".env", "a.py", "sub/b.py"]


def test_a_change_is_named() -> None:
    assert changed({"/a": (1, 1)}, {"/a": (1, 1)}) == "nothing"
    assert changed({"/a": (1, 1)}, {"/a": (2, 1), "/b": (1, 1)}) == "/a and 1 more"
    assert changed({"/a": (1, 1)}, {}) == "/a"
