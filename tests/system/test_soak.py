"""One minute of benchmarks/soak.py: sixteen workers, every pattern at once, one of them killed every second."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "soak.py"


@pytest.mark.system
@pytest.mark.timeout(300)
def test_a_minute_of_kills_loses_and_repeats_nothing() -> None:
    done = subprocess.run([sys.executable, PROGRAM, "--minutes", "1"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("nothing was wrong\n")
