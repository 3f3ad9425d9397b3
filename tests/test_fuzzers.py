"""The programs of fuzz/ still run, and find nothing in a moment. Longer runs are for people: `make fuzz`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from smartipc.ipc.transports import hatch

FUZZ = Path(__file__).parents[1] / "fuzz"


@pytest.mark.parametrize("program", sorted(one.name for one in FUZZ.glob("*.py")))
def test_a_moment_of_it_finds_nothing(program: str) -> None:
    if program == "hatch.py" and not hatch.available():
        pytest.skip("no named semaphores here")
    argv = [sys.executable, "-W", "error", "-X", "faulthandler", str(FUZZ / program), "2", "1"]
    run = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stderr == ""
    assert " 0 scribbles" not in run.stdout
