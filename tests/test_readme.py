"""What the README says works as it is written there."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from kit import App, wait_for

README = Path(__file__).parents[1] / "README.md"


def blocks(marker: str) -> list[str]:
    text = README.read_text()
    section = text.split(f"<!-- {marker} -->")[1].split("<!-- end -->")[0]
    return re.findall(r"```\w+\n(.*?)```", section, re.DOTALL)


@pytest.mark.system
def test_the_ten_line_example_runs(app: Callable[..., App], folder: Path) -> None:
    python, yaml = blocks("example")
    (folder / "greeting.py").write_text(python)
    (folder / "greeting.yaml").write_text(yaml)
    one = app(folder / "greeting.yaml")
    wait_for(lambda: "hello world" in one.out.read_text(), "the greeting is printed")
    assert re.search(r"^visitor:0 \| hello world, from greeter:[01]$", one.out.read_text(), re.MULTILINE)
    one.wait_state("visitor:0", "exited")
    assert one.ctl("request", "greeter.greet", '{"name": "you"}').stdout.startswith('"hello you, from greeter:')


def test_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", README.read_text()):
        assert (README.parent / link).exists(), link


def test_the_test_command_is_one_line_that_installs_and_tests() -> None:
    (command,) = blocks("test-command")
    assert command.count("\n") == 1
    assert "venv" in command
    assert command.strip().endswith("pytest")


@pytest.mark.system
def test_the_tutorial_runs(app: Callable[..., App], folder: Path) -> None:
    text = (README.parent / "docs" / "tutorial" / "first-app.md").read_text()
    files = re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", text, re.DOTALL)
    for name, content in files:
        (folder / name).write_text(content)
    assert [name for name, _ in files] == ["counting.py", "counting.yaml"]
    one = app(folder / "counting.yaml")
    wait_for(lambda: "counted 6 words" in one.out.read_text(), "the words are counted")
    assert one.ctl("check", str(folder / "counting.yaml"), "--import").returncode == 0
    assert one.ctl("request", "counter.count_words", '{"text": "how many are these"}').stdout == "4\n"
    assert one.ctl("shutdown").returncode == 0
    assert one.wait_ended() == 0


def test_the_documentation_links_lead_somewhere() -> None:
    for page in (README.parent / "docs").rglob("*.md"):
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), (page, link)
