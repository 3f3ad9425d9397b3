"""The documentation keeps its word: what it shows compiles, is accepted and, where it is a whole, runs as written.

A block is a file if `<!-- file: NAME -->` stands before it; several blocks of one name are one file.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import certificates
import psutil
import pytest
from kit import App, wait_for

import smartipc
from smartipc.supervisor.configuration.load import load

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_FILE = re.compile(r"<!-- file: (\S+) -->\n```\w+\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    return [body for found, body in _BLOCK.findall(page.read_text()) if found == language]


def write_files(page: str, folder: Path) -> list[str]:
    """Write the files of a page; return their names."""
    files: dict[str, str] = {}
    for name, body in _FILE.findall((ROOT / page).read_text()):
        files[name] = f"{files[name]}\n\n{body}" if name in files else body
    for name, body in files.items():
        (folder / name).write_text(body)
    return list(files)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_python_is_python_and_imports_what_there_is(page: Path) -> None:
    for block in blocks(page, "python"):
        tree = compile(block, named(page), "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        compile(block, named(page), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "smartipc":
                module = importlib.import_module(node.module or "")
                for alias in node.names:
                    assert hasattr(module, alias.name) or importlib.import_module(f"{node.module}.{alias.name}")
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "smartipc":
                assert node.attr in smartipc.__all__, (page, node.attr)


def completed(block: str) -> str | None:
    """Make a piece of a configuration whole: groups get members, keys a worker; None: not ours."""
    if block.startswith("    "):
        return f"workers:\n  web:\n    command: [web]\n{block}"
    keys = set(re.findall(r"^(\w+):", block, re.MULTILINE))
    if not keys <= {"app", "python_path", "supervisor", "defaults", "workers", "groups", "sockets"}:
        return None
    if "workers" in keys:
        return block
    groups = re.findall(r"^  (\w+): \{members: \[([^]]*)\]", block, re.MULTILINE)
    members = {one.strip() for _, some in groups for one in some.split(",")} - {name for name, _ in groups}
    workers = "".join(f"  {name}: {{command: [{name}]}}\n" for name in sorted(members or {"web"}))
    return f"{block}workers:\n{workers}"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_configurations_and_pieces_of_them_are_accepted(page: Path, folder: Path) -> None:
    (folder / "app").mkdir()  # which a page watches
    (folder / "settings.toml").touch()
    others = 0
    for block in blocks(page, "yaml"):
        whole = completed(block)
        if whole is None:
            others += 1
            continue
        (folder / "app.yaml").write_text(whole)
        load(folder / "app.yaml", environ={})
    assert others == {"dashboard.md": 1, "containers.md": 1}.get(page.name, 0)  # of Prometheus and Kubernetes


@pytest.mark.system
@pytest.mark.parametrize(
    ("page", "lines"),
    [
        (
            "docs/how-to/requests.md",
            ["scanner:0 | hashing.py is hashed", "scanner:0 | hashing.yaml is hashed", "scanner:0 | hasher:0 hasher:1"],
        ),
        (
            "docs/how-to/publish-subscribe.md",
            ["screen:0 | 7 done, says indexer:0", "counter:0 | counted to 7"],
        ),
        ("docs/how-to/streams.md", ["lister:0 | found listing.py"]),
        ("docs/how-to/channels.md", ["person:0 | Why? Because.", "person:0 | Why not? Because."]),
        ("docs/how-to/big-buffers.md", ["camera:0 | north sees ['a cat']", "quick:0 | south sees ['a cat']"]),
    ],
)
def test_apps_run(app: Callable[..., App], folder: Path, page: str, lines: list[str]) -> None:
    files = write_files(page, folder)
    one = app(folder / next(name for name in files if name.endswith(".yaml")))
    for line in lines:
        assert f"`{line}`" in (ROOT / page).read_text()
        wait_for(lambda line=line: line in one.out.read_text().splitlines(), line)  # type: ignore[misc]


def environment(folder: Path) -> dict[str, str]:
    (folder / "r").mkdir(mode=0o700, exist_ok=True)
    # A page may run pytest itself: options and coverage of this run are none of its business.
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "COVERAGE"))}
    return {**kept, "XDG_RUNTIME_DIR": str(folder / "r"), "PYTHONUNBUFFERED": "1"}


def listens(pid: int) -> bool:
    """Tell whether a process has a listening socket."""
    nodes = set()
    with contextlib.suppress(FileNotFoundError):  # closed meanwhile, or the process has ended
        for one in os.listdir(f"/proc/{pid}/fd"):
            nodes.add(os.readlink(f"/proc/{pid}/fd/{one}"))
    unix = {
        f"socket:[{row.split()[6]}]"
        for row in Path("/proc/net/unix").read_text().splitlines()
        if row.split()[3] == "00010000"
    }
    return bool(nodes & unix) or any(
        one.status == psutil.CONN_LISTEN and one.pid == pid for one in psutil.net_connections("inet")
    )


@contextmanager
def program(folder: Path, name: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Run a Python file until the block is left."""
    out = folder / f"{name}.out"
    with out.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, name], cwd=folder, env=environment(folder), stdout=file, stderr=subprocess.STDOUT
        )
    try:
        if not name.startswith(
            "watch"
        ):  # a host: its guests try for ten seconds, and its start may take that under load
            wait_for(lambda: listens(process.pid) or process.poll() is not None, f"{name} listens")
        yield process, out
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)


def finish(folder: Path, *command: str) -> str:
    """Run a command to its end and return what it printed."""
    run = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


@pytest.mark.system
def test_the_two_programs_of_the_readme_run(folder: Path) -> None:
    write_files("README.md", folder)
    with program(folder, "host.py"):
        assert finish(folder, "guest.py") == "hello world\n"


@pytest.mark.system
def test_the_tutorial_without_a_supervisor_runs(folder: Path) -> None:
    assert write_files("docs/tutorial/without-a-supervisor.md", folder) == ["prices.py", "watch.py", "buy.py"]
    with program(folder, "watch.py") as (_, heard):
        with program(folder, "prices.py"):
            wait_for(lambda: "watching" in heard.read_text(), "the watcher is there")
            assert finish(folder, "buy.py") == "two pears cost 6\n"
            wait_for(lambda: heard.read_text().count("shop sold 2 pears") == 1, "the watcher saw it")
        with program(folder, "prices.py"):  # and again, while the watcher runs on and comes back by itself

            def seen() -> bool:
                assert finish(folder, "buy.py") == "two pears cost 6\n"
                return heard.read_text().count("shop sold 2 pears") >= 2

            wait_for(seen, "the watcher came back")


@pytest.mark.system
def test_serving_and_connecting_run(folder: Path) -> None:
    write_files("docs/how-to/serve-and-connect.md", folder)
    for shop in ("shop.py", "blocking_shop.py"):
        with program(folder, shop):
            assert finish(folder, "till.py") == "pears cost 5\n"
    assert finish(folder, "caller.py") == "till done\n['done']\n"


@pytest.mark.system
def test_connecting_over_tcp_runs(folder: Path) -> None:
    """As written, but for the hosts, of which the page has two, and the port, which may be taken."""
    page = "docs/how-to/secure-tcp.md"
    files = write_files(page, folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name in files:
        text = (folder / name).read_text().replace(":7000", f":{port}")
        (folder / name).write_text(text.replace("0.0.0.0", "127.0.0.1").replace("db.example.org", "localhost"))
    (command,) = blocks(ROOT / page, "sh")
    subprocess.run(command.replace("python", sys.executable), shell=True, cwd=folder, check=True, timeout=60)
    assert (folder / "token").stat().st_mode & 0o777 == 0o600
    for name, source in (("server.pem", "certificate"), ("server.key", "key"), ("ca.pem", "certificate")):
        shutil.copy(certificates.FOLDER / f"{source}.pem", folder / name)
    with program(folder, "near_host.py"):
        assert finish(folder, "near_guest.py") == "hello neighbour\n"
    with program(folder, "far_host.py"):
        assert finish(folder, "far_guest.py") == "hello stranger\n"


@pytest.mark.system
def test_an_app_inside_a_program_runs(folder: Path) -> None:
    assert write_files("docs/how-to/embedding.md", folder) == ["program.py"]
    (folder / "hashing.py").write_text(
        "async def hasher(ipc):\n"
        "    ipc.handler('hash_file')(lambda request: 'digest of ' + request['path'])\n"
        "    await ipc.serve()\n"
    )
    (folder / "workers.yaml").write_text('python_path: [.]\nworkers:\n  hasher: {target: "hashing:hasher"}\n')
    assert "digest of /etc/hostname\n" in finish(folder, "program.py")


@pytest.mark.system
def test_the_test_of_a_worker_passes(folder: Path) -> None:
    assert write_files("docs/how-to/testing-your-workers.md", folder) == ["test_counter.py"]
    (folder / "src" / "shop").mkdir(parents=True)
    (folder / "src" / "shop" / "counter.py").write_text(
        "def serve(ipc):\n"
        "    total = []\n"
        "    ipc.handler('add')(lambda number: total.append(number) or sum(total))\n"
        "    ipc.serve()\n"
    )
    assert "1 passed" in finish(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_counter.py")


def test_the_errors_are_listed_with_what_they_say() -> None:
    table = (ROOT / "docs" / "reference" / "errors.md").read_text()
    rows: dict[str, list[Any]] = {}
    for line in table.splitlines():
        if line.startswith("| `"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            rows.setdefault(cells[0].strip("`"), []).append(cells[1:])
    everything = {
        name: one
        for name in smartipc.__all__
        if isinstance(one := getattr(smartipc, name), type) and issubclass(one, smartipc.SmartIpcError)
    }
    del everything["SmartIpcError"]
    assert set(rows) == set(everything)
    for name, one in everything.items():
        if issubclass(one, smartipc.CallError) and one is not smartipc.CallError:
            processed, retryable = rows[name][1]
            assert processed.startswith(f'"{one.processed_default}"'), name
            assert retryable == ("yes" if one.retryable_default else "no"), name
