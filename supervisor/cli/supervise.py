"""The command `smartipc-supervise`: load a configuration, run the app in the foreground, exit with its code."""

from __future__ import annotations

import os
import sys

import click

from smartipc import __version__
from smartipc.ipc.errors import ConfigError, ConnectFailed
from smartipc.supervisor.configuration import load
from smartipc.supervisor.host.rundir import AlreadyRunning, UnsafeDirectory


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("config", type=click.Path())
@click.version_option(__version__, prog_name="smartipc-supervise")
def main(config: str) -> None:
    """Run the app that CONFIG describes until it ends or is told to stop.

    Output of the workers appears on stdout and stderr, prefixed with their names; the supervisor's own log is on
    stderr. SIGTERM or Ctrl-C stops everything in order; a second one at once.

    Exit codes: 0 ended as asked, 1 a worker that must not fail did, or the start failed, 2 invalid configuration or
    usage, 3 this app is running already.
    """
    _hold_standard_streams()
    try:
        spec = load(config)
    except ConfigError as error:
        click.echo(error, err=True)
        count = len(error.problems)
        click.echo(f"{count} problem{'s' if count > 1 else ''}, nothing started", err=True)
        sys.exit(2)
    from smartipc.supervisor.host.launch import refused_users
    from smartipc.supervisor.runner import run_app
    from smartipc.supervisor.web.server import services

    refused = refused_users(spec)
    if refused:
        click.echo("\n".join(refused) + "\nnothing started", err=True)
        sys.exit(2)

    try:
        code = run_app(spec, services(spec))
    except ConfigError as error:
        click.echo(f"{error}\nnothing started", err=True)
        sys.exit(2)
    except AlreadyRunning as error:
        click.echo(error, err=True)
        sys.exit(3)
    except (UnsafeDirectory, ConnectFailed, OSError) as error:
        click.echo(f"the start failed: {error}", err=True)
        sys.exit(1)
    sys.exit(code)


def _hold_standard_streams() -> None:
    """Open what of descriptors 0 to 2 was closed by whoever started us.

    Else the lock, a socket or a pipe gets the number, the lines of workers are written into it, and children inherit
    it as their own stdout.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            os.set_inheritable(number, True)
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))
