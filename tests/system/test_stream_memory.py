"""The program that sends 10 GiB through one stream, with less: memory stays flat, pings overtake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "stream_memory.py"


@pytest.mark.system
@pytest.mark.parametrize("reader", ["async", "blocking"])
def test_memory_stays_flat_and_pings_overtake(reader: str) -> None:
    command = [sys.executable, str(PROGRAM), "--gib", "0.25", "--reader", reader, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    figures = json.loads(done.stdout)
    assert figures["bytes"] == 256 * 1024 * 1024
    assert figures["memory_rise_mib"] < 16
    assert figures["pings"] >= 3
    assert figures["ping_max_ms"] < 50
    assert done.returncode == 0
