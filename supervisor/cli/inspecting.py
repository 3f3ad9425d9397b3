"""Verbs that look closer: why and top; chaos, which gives something to look at; completion for shells."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import click

from smartipc.ipc import control, inspection
from smartipc.ipc.inspection import Disturbance, Why, WhyRequest
from smartipc.ipc.wire.text import one_line
from smartipc.supervisor.cli.client import Client, plain
from smartipc.supervisor.cli.looking import colour_of, coloured, remark, sentence, span
from smartipc.supervisor.cli.naming import NAME
from smartipc.supervisor.cli.steering import finish
from smartipc.supervisor.core.exits import describe


def register(cli: click.Group) -> None:
    """Add the verbs."""
    for verb in (why, top, chaos, completion):
        cli.add_command(verb)


@click.command()
@click.argument("names", nargs=-1, type=NAME, metavar="[NAME...]")
@click.option("-n", "--lines", default=10, show_default=True, type=click.IntRange(min=0), help="Lines of output.")
@click.option("--stacks", is_flag=True, help="All that was written of its threads when it hung.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_obj
def why(session: Any, names: tuple[str, ...], lines: int, stacks: bool, as_json: bool) -> None:
    """Explain why NAME is as it is.

    Its transitions and exits, the check that fails, where it hung, its last lines, whom it waits for and why, and who
    holds a shutdown. Without NAME, all instances that are neither ready nor ended as they should.
    """
    report = session.client().ask(inspection.cli_why, WhyRequest(list(names) or ["all"], lines=lines, wrong=not names))
    if as_json:
        click.echo(plain(report))
        return
    blocks = ["\n".join(_explained(one, stacks=stacks)) for one in report.instances]
    if report.holding:
        blocks.append("\n".join(["the app is stopping, and waits for", *(f"  {line}" for line in report.holding)]))
    click.echo("\n\n".join(blocks) if blocks else f"app {report.app} is {report.state}, and nothing is wrong")


def _explained(one: Why, *, stacks: bool) -> Iterator[str]:
    yield _headline(one)
    if one.next_restart_in is not None:
        yield f"  next try in {one.next_restart_in:.1f} s"
    if one.next_run_in is not None:
        yield f"  next run in {span(one.next_run_in)}"
    if one.check:
        yield f"  its check fails: {one_line(one.check)}"
    if one.status:
        yield f"  it says: {one_line(one.status)}"
    if one.last_exit is not None:
        how = describe(one.last_exit)
        if one.last_exit.reason and one.last_exit.reason not in how:
            how = f"{one.last_exit.reason}; {how}"
        yield f"  last exit: {one_line(how)}, after {one.last_exit.uptime:.1f} s, at {one.last_exit_at}"
    if one.hung_in and not stacks:
        yield "  where it was when it was aborted, innermost first:"
        yield from (f"    {one_line(line.strip())}" for line in one.hung_in)
    elif one.stacks and stacks:
        yield "  its stacks when it was aborted:"
        yield from (f"    {one_line(line)}".rstrip() for line in one.stacks)
    for other in one.waits_for:
        yield from (f"  {line}" for line in _waits(other))
    if one.events:
        yield "  what happened:"
        yield from (f"  {sentence(event)}" for event in one.events)
    if one.lines:
        yield "  its last lines:"
        yield from (f"    {one_line(line.message)}" for line in one.lines)


def _waits(one: Why) -> Iterator[str]:
    yield f"waits for {_headline(one)}"
    for other in one.waits_for:
        yield from (f"  {line}" for line in _waits(other))


def _headline(one: Why) -> str:
    state = coloured(one.state, one.state)
    cause = f": {one_line(one.cause)}" if one.cause else ""
    since = f" for {span(one.seconds)}" if one.cause else ""
    return f"{one.instance} is {state}{since}{cause}"


@click.command()
@click.option(
    "--interval", default=1.0, show_default=True, type=click.FloatRange(min=0.1), help="Seconds between looks."
)
@click.pass_obj
def top(session: Any, interval: float) -> None:
    """Show all instances live, the busiest first, until Ctrl-C. Off a terminal, once."""
    from rich.console import Console
    from rich.live import Live

    client: Client = session.client()
    client.ask(control.cli_status, None)  # CPU is measured from one look to the next
    time.sleep(min(interval, 0.2))
    console = Console()
    if not console.is_terminal:
        console.print(_screen(client.ask(control.cli_status, None), None))
        return
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(_screen(client.ask(control.cli_status, None), console.height), refresh=True)
            time.sleep(interval)


def _screen(found: control.AppStatus, height: int | None) -> Any:
    from rich.table import Table

    rows = sorted(found.workers, key=lambda one: (-(one.cpu or 0.0), -(one.memory or 0), one.instance))
    shown = rows if height is None else rows[: max(1, height - 4)]
    memory = sum(one.memory or 0 for one in rows) / 2**20
    cpu = sum(one.cpu or 0.0 for one in rows)
    ready = sum(one.ready for one in rows)
    title = f"app {found.app} {found.state}: {ready} of {len(rows)} ready, {cpu:.0f} % CPU, {memory:.0f} MiB"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, expand=height is not None)
    for name, justify in (
        ("INSTANCE", "left"), ("STATE", "left"), ("PID", "right"), ("CPU %", "right"), ("MEMORY", "right"),
        ("UPTIME", "right"), ("RESTARTS", "right"), ("BEAT", "right"), ("STATUS", "left"),
    ):  # fmt: skip
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for one in shown:
        state = f"[{colour_of(one.state)}]{one.state}[/]" if colour_of(one.state) else one.state
        table.add_row(
            one.instance,
            state,
            str(one.pid or "-"),
            f"{one.cpu:.1f}" if one.cpu is not None else "-",
            f"{one.memory / 2**20:.0f} MiB" if one.memory else "-",
            span(one.uptime),
            str(one.restarts),
            f"{one.heartbeat_age:.1f} s" if one.heartbeat_age is not None else "-",
            _plain_markup(remark(one)),
        )
    return table


def _plain_markup(text: str) -> str:
    from rich.markup import escape

    return escape(text)


@click.command()
@click.argument("kind", type=click.Choice(["kill", "stop", "hang"]))
@click.argument("names", nargs=-1, required=True, type=NAME, metavar="NAME...")
@click.option("--json", "as_json", is_flag=True, help="One JSON object: the result of each instance.")
@click.pass_obj
def chaos(session: Any, kind: Any, names: tuple[str, ...], as_json: bool) -> None:
    """Disturb instances, as if by accident, to see what the app makes of it.

    kill is SIGKILL to the whole process group, stop is SIGSTOP, hang makes the loop of a worker function stand still
    (its beats end) and stops a command. What follows is the ordinary course of things: it counts as a failure.
    """
    finish(session.client().ask(inspection.cli_chaos, Disturbance(kind, list(names))).results, as_json=as_json)


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell.

    bash: eval "$(smartipc completion bash)" in ~/.bashrc; zsh likewise in ~/.zshrc; fish: smartipc completion fish >
    ~/.config/fish/completions/smartipc.fish
    """
    from click.shell_completion import get_completion_class

    root = click.get_current_context().find_root().command
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(root, {}, "smartipc", "_SMARTIPC_COMPLETE").source())
