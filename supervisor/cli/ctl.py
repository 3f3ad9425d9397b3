"""The command `smartipc`: talk to a running app.

Verbs that look are in looking.py and inspecting.py, that call in calling.py, that change what runs in steering.py, that
write files for a beginning in starting.py.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import click

from smartipc import __version__
from smartipc.ipc import control
from smartipc.ipc.contracts import Method
from smartipc.ipc.errors import ConfigError
from smartipc.supervisor.cli import calling, inspecting, letters, looking, starting, steering
from smartipc.supervisor.cli.client import FAILED, USAGE, Client, find, leave
from smartipc.supervisor.cli.naming import NAME


class Session:
    """The options of the group; connects when a verb first asks."""

    def __init__(self, app: str | None, config: str | None) -> None:
        self._app = app
        self._config = config

    def client(self) -> Client:
        """Connect."""
        return find(self._app, self._config)


class _Quiet(click.Group):
    """Leave without a word where nothing is wrong: whoever reads has enough, or Ctrl-C ends what goes on for ever.

    The codes are those of a program that the signal ends. click's own are 1 for both, and it says "Aborted!".
    """

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            _drop_stdout()
            sys.exit(128 + signal.SIGPIPE)
        except KeyboardInterrupt:
            sys.exit(128 + signal.SIGINT)


@click.group(cls=_Quiet, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--app", metavar="NAME", envvar="SMARTIPC_APP", help="The app to talk to; also from SMARTIPC_APP.")
@click.option("--config", metavar="FILE", type=click.Path(), help="The app of this configuration file.")
@click.version_option(__version__, prog_name="smartipc")
@click.pass_context
def cli(context: click.Context, app: str | None, config: str | None) -> None:
    """Look at and steer a running app.

    Without --app or --config it is the only app of this user that runs. NAME is a worker (hasher), an instance
    (hasher:2) or `all`.

    Exit codes: 0 done, 1 it failed, 2 usage, 3 no such app is running, 4 no such worker.
    """
    context.obj = Session(app, config)


def _order(verb: str, method: Method[control.Names, control.OrderOutcome], does: str) -> None:
    def run(session: Session, names: tuple[str, ...], no_wait: bool, as_json: bool) -> None:
        outcome = session.client().ask(method, control.Names(list(names), not no_wait))
        steering.finish(outcome.results, as_json=as_json)

    command: Callable[..., None] = click.pass_obj(run)
    command.__doc__ = f"{does} Returns when it is done."
    command = click.option("--no-wait", is_flag=True, help="Return at once.")(command)
    command = click.option("--json", "as_json", is_flag=True, help="One JSON object: each result.")(command)
    command = click.argument("names", nargs=-1, required=True, type=NAME, metavar="NAME...")(command)
    cli.command(verb, help=f"{does} Returns when it is done.")(command)


_order("start", control.cli_start, "Start instances, with what they depend on.")
_order("stop", control.cli_stop, "Stop instances and keep them stopped.")
_order("restart", control.cli_restart, "Give instances a fresh life.")


@cli.command()
@click.option("--no-wait", is_flag=True, help="Return at once.")
@click.pass_obj
def shutdown(session: Session, no_wait: bool) -> None:
    """End the app in order. Returns when every worker is down."""
    session.client().ask(control.cli_shutdown, control.Names([], not no_wait))


@cli.command()
@click.argument("file", type=click.Path())
@click.option("--import", "imports", is_flag=True, help="Also import every target, each in a process of its own.")
def check(file: str, imports: bool) -> None:
    """Check a configuration file; list every problem."""
    from smartipc.supervisor.configuration import load

    try:
        spec = load(file)
    except ConfigError as error:
        leave(USAGE, str(error))
    if imports:
        from smartipc.supervisor.configuration.imports import import_problems
        from smartipc.supervisor.configuration.load import target_places

        problems = import_problems(spec, target_places(file))
        if problems:
            leave(USAGE, "\n".join(map(str, problems)))
    workers = len(spec.workers)
    click.echo(f"{file}: app {spec.app}, {workers} worker{'s' if workers != 1 else ''}, no problems")


@cli.command()
def schema() -> None:
    """Print the JSON Schema of configuration files, for editors."""
    from smartipc.supervisor.configuration.schema import text

    click.echo(text(), nl=False)


looking.register(cli)
calling.register(cli)
letters.register(cli)
steering.register(cli)
inspecting.register(cli)
starting.register(cli)


def main() -> None:
    """Run the command; an output that takes nothing ends it with a sentence."""
    try:
        if sys.stdout is None:  # started with descriptor 1 closed
            leave(FAILED, "stdout is closed")
        cli(standalone_mode=True)
    except OSError as error:
        _drop_stdout()
        leave(FAILED, str(error.strerror or error))
    except KeyboardInterrupt:  # before the verb began
        sys.exit(128 + signal.SIGINT)


def _drop_stdout() -> None:
    """Let what is buffered still go nowhere: it would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
