"""Verbs for those who begin: `init` writes a runnable app, `convert` reads another supervisor's configuration."""

from __future__ import annotations

import os

import click

from smartipc.supervisor.cli.client import FAILED, USAGE, leave

_CONFIG = """\
# Every key: `smartipc schema`, or the configuration reference. Check this file: smartipc check config/workers.yaml
python_path: [..]                 # app.py is beside this folder
workers:
  greeter:
    target: app:greeter
    instances: 2                  # greeter:0 and greeter:1 share the work
  visitor:
    target: app:visitor
    args: [world]
    depends_on: [greeter]         # started once both greeters are ready
"""

_APP = '''\
"""Two workers that talk to each other. Run: smartipc-supervise config/workers.yaml"""

import asyncio

import msgspec

from smartipc import Method, SmartIpc


class Name(msgspec.Struct):
    name: str


# Both ends share this value: the address, and the types of request and reply.
greet = Method("greeter.greet", Name, str, idempotent=True)


async def greeter(ipc: SmartIpc) -> None:
    @ipc.handler(greet)
    def _(request: Name) -> str:
        return f"hello {request.name}, from {ipc.name}"

    await ipc.serve()


async def visitor(ipc: SmartIpc, name: str) -> None:
    visits = 0
    while not ipc.stopping:
        print(await ipc.request(greet, Name(name)))
        visits += 1
        ipc.set_status(f"{visits} visits")
        await asyncio.sleep(1)
'''

_TEST = '''\
"""The contract between the workers, without a process."""

import msgspec

from app import Name, greet


def test_a_name_survives_the_wire() -> None:
    sent = msgspec.msgpack.encode(Name("world"))
    assert msgspec.msgpack.decode(sent, type=greet.request) == Name("world")
'''

_FILES = {"config/workers.yaml": _CONFIG, "app.py": _APP, "test_app.py": _TEST}


def register(cli: click.Group) -> None:
    """Add the verbs."""
    cli.add_command(init)
    cli.add_command(convert)


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path())
def init(folder: str) -> None:
    """Write a small app into DIR, which runs as it is. Existing files are never touched."""
    paths = {os.path.join(folder, name): text for name, text in _FILES.items()}
    there = [path for path in paths if os.path.lexists(path)]
    if there:
        leave(FAILED, f"already there, nothing was written: {', '.join(there)}")
    try:
        for path, text in paths.items():
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
            with open(path, "x", encoding="utf-8") as file:
                file.write(text)
    except OSError as error:
        leave(FAILED, f"cannot write {error.filename}: {error.strerror}")
    click.echo("\n".join(paths))
    config = os.path.join(folder, "config/workers.yaml")
    click.echo(f"run it:     smartipc-supervise {config}\nlook at it: smartipc --config {config} status", err=True)


@click.command()
@click.argument("file", type=click.Path())
def convert(file: str) -> None:
    """Print the YAML for a supervisord.conf, circus.ini or Procfile.

    Whatever has no equivalent becomes a comment that says what to do instead.
    """
    from smartipc.supervisor.conversion import convert as converted

    try:
        with open(file, encoding="utf-8") as opened:
            text = opened.read()
    except (OSError, UnicodeDecodeError) as error:
        leave(USAGE, f"cannot read {file}: {error}")
    try:
        click.echo(converted(os.path.basename(file), text), nl=False)
    except ValueError as error:
        leave(USAGE, str(error))
