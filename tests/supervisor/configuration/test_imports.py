"""`check --import`: what only an import finds, at the place where it is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from smartipc.supervisor.configuration.imports import import_problems
from smartipc.supervisor.configuration.load import load, target_places

CONFIG = """\
python_path: [.]
include: [more.yaml]
defaults: {env: {A: "1"}}
workers:
  good: {target: "code:good"}
  c: {command: [no-such-program]}
  typo:
    instances: 2
    target: code:goood
  broken: {target: "broken:f"}
"""
MORE = "workers:\n  far: {target: 'nowhere:f', cwd: missing}\n  near: {target: nowhere:f}\n"


def test_every_problem_has_its_line_and_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "app.yaml").write_text(CONFIG)
    (tmp_path / "more.yaml").write_text(MORE)
    (tmp_path / "code.py").write_text("async def good(ipc): ...\n")
    (tmp_path / "broken.py").write_text("import os\nprint('noise')\nos.write(2, bytes([255, 10]))\n1/0\n")
    monkeypatch.chdir(tmp_path)
    found = [str(one) for one in import_problems(load("app.yaml"), target_places("app.yaml"))]
    assert [one.partition(": workers")[0] for one in found] == [
        "app.yaml:9:13", "app.yaml:10:20", "more.yaml:2:17", "more.yaml:3:18",
    ]  # fmt: skip
    for text, phrase in zip(
        found, ("no attribute 'goood'", "ZeroDivisionError", "cannot be tried in cwd", "no module named 'nowhere'"),
        strict=True,
    ):  # fmt: skip
        assert phrase in text
