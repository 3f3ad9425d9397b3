"""Fixtures for all tests. System tests get a real supervisor, and must leave nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))  # tests import their kit by its bare name

from kit import App, marked, wait_for

# How long one example takes is the machine's business, and says nothing of what is tested.
settings.register_profile("smartipc", deadline=None)
settings.load_profile("smartipc")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A private directory with a short name: socket paths are at most 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix="sipc-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def app(folder: Path) -> Iterator[Callable[..., App]]:
    """Start supervisors; at the end no process, socket or file of theirs may be left."""
    apps: list[App] = []

    def start(config: str | Path, **env: str) -> App:
        one = App(folder, config, env)
        apps.append(one)
        return one.start()

    yield start
    for one in apps:
        one.stop()
    for one in apps:
        try:
            wait_for(lambda: not marked(one.mark), "every process of the app is gone", 5.0)  # noqa: B023
        finally:
            for left in marked(one.mark):
                left.kill()
        if one.process is not None and one.process.returncode == -signal.SIGKILL:
            continue  # a killed supervisor cannot tidy up; its successor does
        sockets = [path for path in (folder / "r").rglob("*") if path.is_socket()]
        assert sockets == [], one.err.read_text()[-3000:]


@pytest.fixture(autouse=True)
def no_open_descriptors(request: pytest.FixtureRequest) -> Iterator[None]:
    """System tests leave no descriptor open in the test process."""
    if request.node.get_closest_marker("system") is None or not os.path.isdir("/proc/self/fd"):
        yield
        return
    resource_tracker.ensure_running()  # multiprocessing keeps it for the whole process from the first need on
    before = set(os.listdir("/proc/self/fd"))
    yield
    after = set(os.listdir("/proc/self/fd"))
    assert len(after) <= len(before), after - before
