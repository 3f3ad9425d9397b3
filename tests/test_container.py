"""The Dockerfile names what the repository has. Nothing is built here."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

from smartipc.supervisor.cli.ctl import cli

ROOT = Path(__file__).parent.parent
DOCKERFILE = ROOT / "config/examples/Dockerfile"
PAGE = ROOT / "docs/how-to/containers.md"


def instructions() -> list[tuple[str, str]]:
    """Return the instructions, each on one line."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [
        (word, rest.strip()) for word, _, rest in (line.partition(" ") for line in text.splitlines() if line.strip())
    ]


def test_every_file_that_it_takes_is_there() -> None:
    runs = " ".join(rest for word, rest in instructions() if word == "RUN")
    taken = set(re.findall(r"/src(/[\w./-]+)", runs))
    assert taken == {"/config/workers.yaml"}
    assert all((ROOT / name[1:]).is_file() for name in taken)
    assert ("COPY", ". /src") in instructions()
    assert f"-f {DOCKERFILE.relative_to(ROOT)}" in DOCKERFILE.read_text()


def test_what_it_runs_is_installed_and_understood() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    found = dict(instructions())
    (program,) = json.loads(found["ENTRYPOINT"])
    assert program == "smartipc-supervise"
    assert program in scripts
    (config,) = json.loads(found["CMD"])
    assert f"/src/config/workers.yaml {config}" in " ".join(rest for _, rest in instructions())
    asked, verb = json.loads(found["HEALTHCHECK"].partition("CMD ")[2])
    assert asked in scripts
    assert verb in cli.commands
    assert ("ENV", "PATH=/opt/smartipc/bin:$PATH") in instructions()
    assert found["ENV"] == f"PWD={found['WORKDIR']}"


def test_the_page_says_the_same() -> None:
    shown = re.findall(r"^#   (docker .*)$", DOCKERFILE.read_text(), flags=re.MULTILINE)
    assert len(shown) == 2
    assert all(line in PAGE.read_text() for line in shown)


def test_the_context_leaves_out_what_git_does() -> None:
    ignored = set((ROOT / ".dockerignore").read_text().split())
    assert {".git", ".venv", "build", "dist"} <= ignored
    assert not {"src", "ipc", "supervisor", "workers", "config", "pyproject.toml", "README.md", "LICENSE"} & ignored
