"""The `smartipc` command in a hurry: broken files, wrong names, pipes that close, and apps in trouble."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable

import pytest
from kit import App

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]


@pytest.mark.parametrize("top", ["", "supervisor: {runtime_dir: ./r/own}\n"])
def test_a_file_that_was_broken_since_still_names_its_app(app: Callable[..., App], top: str) -> None:
    text = f"app: brittle\n{top}workers: {{c: {{command: [sleep, '1000']}}}}\n"
    one = app(text)
    one.wait_state("c:0", "ready")
    one.config.write_text("app: brittle\nworkers: {c: {comand: [sleep]}}\n")
    status = one.ctl("status", "--json")
    assert (status.returncode, json.loads(status.stdout)["app"]) == (0, "brittle"), status.stderr
    assert one.ctl("restart", "c").returncode == 0
    applied = one.ctl("apply")
    assert applied.returncode == 2
    assert "app.yaml:2:" in applied.stderr
    copy = one.config.with_name("copy.yaml")
    copy.write_text("app: 'brittle'  # a copy of it\nworkers: [\n")
    by_name = subprocess.run(
        [*status.args[:1], "--config", copy, "status"], env=one.env, capture_output=True, timeout=60, check=False
    )
    assert by_name.returncode == 0
    one.config.unlink()
    assert one.ctl("status").returncode == 0
    assert one.ctl("shutdown").returncode == 0
    assert one.wait_ended() == 0
    gone = one.ctl("status")
    assert (gone.returncode, "app.yaml" in gone.stderr) == (2, True), "nothing runs from it, and it tells no name"
