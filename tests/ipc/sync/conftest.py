"""A stage per test, on a short path, that leaves no descriptor and no thread behind."""

from __future__ import annotations

import gc
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from smartipc.ipc.sync.testing import Stage


@pytest.fixture
def nothing_left() -> Iterator[None]:
    gc.collect()
    descriptors = set(os.listdir("/proc/self/fd"))
    threads = threading.active_count()
    yield
    gc.collect()
    left = set(os.listdir("/proc/self/fd")) - descriptors
    assert {os.readlink(f"/proc/self/fd/{one}") for one in left if Path(f"/proc/self/fd/{one}").is_symlink()} == set()
    assert threading.active_count() == threads


@pytest.fixture
def stage(nothing_left: None) -> Iterator[Stage]:
    with tempfile.TemporaryDirectory(prefix="s-") as folder:
        yield Stage(folder)
        assert os.listdir(folder) == [], "a socket was left behind"
