"""Verbs that change what runs: reload, reset, scale, apply, signal; and graph, which shows what they work on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from smartipc.ipc import control, steering
from smartipc.supervisor.cli.client import FAILED, USAGE, leave, plain
from smartipc.supervisor.cli.naming import NAME

_MARKS = {"add": "+", "remove": "-", "scale": "~", "restart": "~", "change": "~"}


def register(cli: click.Group) -> None:
    """Add the verbs."""
    for verb in (reload, reset, scale, apply, signal, graph):
        cli.add_command(verb)


def finish(results: dict[str, str], *, as_json: bool) -> None:
    """Print results if asked for, and leave with 1 if one is a failure."""
    if as_json:
        click.echo(plain({"results": results}))
    failed = {name: reason for name, reason in results.items() if reason}
    if failed:
        leave(FAILED, "\n".join(f"{name}: {reason}" for name, reason in failed.items()))


_NAMES = click.argument("names", nargs=-1, required=True, type=NAME, metavar="NAME...")
_NO_WAIT = click.option("--no-wait", is_flag=True, help="Return at once.")
_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object: the result of each instance.")


@click.command()
@_NAMES
@_NO_WAIT
@_JSON
@click.pass_obj
def reload(session: Any, names: tuple[str, ...], no_wait: bool, as_json: bool) -> None:
    """Replace instances one by one, each new life ready before the old one drains.

    If the first replacement fails, everything stays as it was. Returns when all are replaced.
    """
    outcome = session.client().ask(steering.cli_reload, control.Names(list(names), not no_wait))
    finish(outcome.results, as_json=as_json)


@click.command()
@_NAMES
@_JSON
@click.pass_obj
def reset(session: Any, names: tuple[str, ...], as_json: bool) -> None:
    """Forget the failures of instances: their restart budget and the growth of their delays. Starts nothing."""
    finish(session.client().ask(steering.cli_reset, control.Names(list(names))).results, as_json=as_json)


@click.command()
@click.argument("counts", nargs=-1, required=True, metavar="NAME=N...")
@_NO_WAIT
@_JSON
@click.pass_obj
def scale(session: Any, counts: tuple[str, ...], no_wait: bool, as_json: bool) -> None:
    """Give workers another number of instances; those that stay are not touched. Returns when it is so.

    It holds until the configuration is applied again.
    """
    wanted: dict[str, int] = {}
    for text in counts:
        name, equals, number = text.partition("=")
        if not (name and equals and number.isascii() and number.isdigit() and 1 <= int(number) <= 10_000):
            leave(USAGE, f"{text!r} is not NAME=N with N from 1 to 10000")
        wanted[name] = int(number)
    outcome = session.client().ask(steering.cli_scale, steering.ScaleRequest(wanted, not no_wait))
    finish(outcome.results, as_json=as_json)


@click.command()
@click.argument("file", type=click.Path(), required=False)
@click.option("--dry-run", is_flag=True, help="Only print the plan.")
@_NO_WAIT
@click.option("--json", "as_json", is_flag=True, help="One JSON object: steps, problems and results.")
@click.pass_obj
def apply(session: Any, file: str | None, dry_run: bool, no_wait: bool, as_json: bool) -> None:
    """Go over to a changed configuration: print the plan, then restart only what changed.

    Without FILE it is the one that the app runs from. An invalid file changes nothing: exit code 2.
    """
    path = str(Path(file).absolute()) if file is not None else None
    outcome = session.client().ask(steering.cli_apply, steering.ApplyRequest(path, dry_run, not no_wait))
    if as_json:
        click.echo(plain(outcome))
    else:
        for step in outcome.steps:
            click.echo(f"{_MARKS[step.kind]} {step.kind} {step.name}" + (f": {step.what}" if step.what else ""))
        if not outcome.steps and not outcome.problems:
            click.echo("nothing to do")
    if outcome.problems:
        leave(USAGE, "\n".join([*outcome.problems, "nothing was changed"]))
    sys.stdout.flush()
    finish(outcome.results, as_json=False)


@click.command()
@click.argument("name")
@click.argument("signal_name", metavar="SIG")
@_JSON
@click.pass_obj
def signal(session: Any, name: str, signal_name: str, as_json: bool) -> None:
    """Send a signal (HUP, SIGUSR1, 10, ...) to the process groups of NAME."""
    full = _signal(signal_name)
    finish(session.client().ask(steering.cli_signal, steering.SignalRequest([name], full)).results, as_json=as_json)


def _signal(text: str) -> str:
    import signal as signals

    if text.isascii() and text.isdigit() and int(text) in set(signals.Signals):
        return signals.Signals(int(text)).name
    full = text.upper() if text.upper().startswith("SIG") else f"SIG{text.upper()}"
    if full not in signals.Signals.__members__:
        leave(USAGE, f"there is no signal {text!r}")
    return full


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object: workers and groups.")
@click.pass_obj
def graph(session: Any, as_json: bool) -> None:
    """Show groups, their members in start order, and what depends on what."""
    found = session.client().ask(steering.cli_graph, None)
    click.echo(plain(found) if as_json else "\n".join([found.app, *_tree(found)]))


def _tree(found: steering.Graph) -> list[str]:
    workers = {one.name: one for one in found.workers}
    groups = {one.name: one for one in found.groups}
    top = [one.name for one in found.groups if one.group is None]
    top += [one.name for one in found.workers if one.group is None]

    def lines(name: str, indent: str, last: bool) -> list[str]:
        branch, below = ("└── ", "    ") if last else ("├── ", "│   ")
        if name not in groups:
            return [indent + branch + _worker(workers[name])]
        group = groups[name]
        inner = [
            line
            for number, member in enumerate(group.members, start=1)
            for line in lines(member, indent + below, number == len(group.members))
        ]
        return [f"{indent}{branch}{name} ({group.strategy})", *inner]

    return [line for number, name in enumerate(top, start=1) for line in lines(name, "", number == len(top))]


def _worker(one: steering.GraphWorker) -> str:
    counted = sorted(one.states.items())
    states = ", ".join(f"{count} {state}" if one.instances > 1 else state for state, count in counted)
    needs = ", ".join(f"{name} {condition}" for name, condition in one.depends_on.items())
    return f"{one.name}: {states}" + (" (significant)" if one.significant else "") + (f" <- {needs}" if needs else "")
