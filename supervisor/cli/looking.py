"""Verbs that look: status, logs, events."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import click
import msgspec

from smartipc.ipc import control, steering
from smartipc.ipc.wire.text import one_line
from smartipc.supervisor.cli.client import FAILED, NO_SUCH_WORKER, Client, leave, plain
from smartipc.supervisor.cli.naming import NAME

_POLL = 20.0
_COLOURS = {
    "ready": "green", "running": "green", "degraded": "yellow", "backoff": "yellow", "waiting": "cyan",
    "starting": "cyan", "stopping": "cyan", "failed": "red",
}  # fmt: skip


def register(cli: click.Group) -> None:
    """Add the verbs."""
    cli.add_command(status)
    cli.add_command(logs)
    cli.add_command(events)
    cli.add_command(metrics)


@click.command()
@click.argument("name", required=False, type=NAME)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--watch", is_flag=True, help="Show it again every second.")
@click.pass_obj
def status(session: Any, name: str | None, as_json: bool, watch: bool) -> None:
    """Show every instance, or those of NAME. Exit code 1 if one of them is failed."""
    client: Client = session.client()
    while True:
        found = client.ask(control.cli_status, None)
        if name not in (None, "all"):
            found = msgspec.structs.replace(found, workers=_of(name, found.workers, client))
        if watch and sys.stdout.isatty():
            click.clear()
        click.echo(plain(found) if as_json else _table(found))
        if not watch:
            break
        time.sleep(1.0)
    if any(one.state == "failed" for one in found.workers):
        leave(FAILED, "failed: " + ", ".join(one.instance for one in found.workers if one.state == "failed"))


def _of(name: str, workers: list[control.WorkerStatus], client: Client) -> list[control.WorkerStatus]:
    wanted = [one for one in workers if name in (one.worker, one.instance)]
    if wanted:
        return wanted
    inside = {one.name: one.members for one in client.ask(steering.cli_graph, None).groups}
    members = [name] if name in inside else []
    for one in members:  # grows: groups may hold groups
        members += inside.get(one, [])
    if not members:
        known = ", ".join(dict.fromkeys(one.worker for one in workers))
        leave(NO_SUCH_WORKER, f"no such worker: {name!r}; known: {known}")
    return [one for one in workers if one.worker in members]


def colour_of(state: str) -> str:
    """Return the colour of a state, "" for none."""
    return _COLOURS.get(state, "")


def coloured(text: str, state: str) -> str:
    """Return a text in the colour of a state, on a terminal that shows colours to somebody who wants them."""
    wanted = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return click.style(text, fg=colour_of(state)) if wanted and colour_of(state) else text


def _table(found: control.AppStatus) -> str:
    rows = [("INSTANCE", "STATE", "PID", "UPTIME", "RESTARTS", "MEMORY", "STATUS")]
    rows += [
        (
            one.instance,
            one.state,
            str(one.pid or "-"),
            span(one.uptime),
            str(one.restarts),
            f"{one.memory / 2**20:.0f} MiB" if one.memory else "-",
            remark(one),
        )
        for one in found.workers
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [f"app {found.app} {found.state}, supervisor {found.pid}, {found.config}"]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        cells[1] = coloured(cells[1], row[1])
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def remark(one: control.WorkerStatus) -> str:
    """Return what else is to say of an instance."""
    parts = []
    if one.waiting_for:
        parts.append("waits for " + ", ".join(one.waiting_for))
    if one.next_restart_in is not None:
        parts.append(f"restart in {one.next_restart_in:.1f} s")
    if one.next_run_in is not None and one.state == "scheduled":
        parts.append(f"next run in {span(one.next_run_in)}")
    if one.progress is not None:
        total = f"/{one.progress.total:g}" if one.progress.total is not None else ""
        parts.append(f"{one.progress.done:g}{total}")
    if one.status:
        parts.append(one.status)
    if one.last_exit is not None and one.state in ("backoff", "failed", "exited", "scheduled"):
        parts.append(one.last_exit.reason)
    return one_line("; ".join(parts))


def span(seconds: float | None) -> str:
    """Return a duration as 1:02:03."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


@click.command()
@click.argument("name", default="all", type=NAME)
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes.")
@click.option("-n", "--lines", default=100, show_default=True, type=click.IntRange(min=0), help="Last N lines.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.pass_obj
def logs(session: Any, name: str, follow: bool, lines: int, as_json: bool) -> None:
    """Show the last lines of output of NAME."""
    client: Client = session.client()
    after = 0
    found = client.ask(control.cli_logs, control.LogsRequest(name, lines))
    while True:
        for line in found:
            click.echo(plain(line) if as_json else f"{line.instance} | {one_line(line.message)}")
            after = line.seq
        if not follow:
            return
        sys.stdout.flush()
        if not after:  # start from now
            newest = client.ask(control.cli_logs, control.LogsRequest("all", 1))
            after = newest[-1].seq if newest else 0
        found = client.ask(control.cli_logs, control.LogsRequest(name, 1000, after, _POLL))


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes.")
@click.option(
    "--since",
    metavar="SEQ",
    type=click.IntRange(min=0),
    help="Those after this number, also of earlier supervisors of the app; without it, all of the running one.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.pass_obj
def events(session: Any, follow: bool, since: int | None, as_json: bool) -> None:
    """Show what happened: every transition with its cause."""
    client: Client = session.client()
    wait = 0.0
    while True:
        found = client.ask(control.cli_events, control.EventsRequest(since, wait))
        if found.lost and since:
            click.echo(f"{found.lost} events are no longer kept", err=True)
        for event in found.events:
            click.echo(plain(event) if as_json else sentence(event))
        since = max(found.last, since or 0)
        if not follow:
            return
        sys.stdout.flush()
        wait = _POLL


def sentence(event: dict[str, Any]) -> str:
    """Return an event as a line for a person."""
    who = f"{event['instance']}#{event['generation']}" if event["instance"] else "app"
    step = f"{event['from']} -> {event['to']}" if event["event"] == "instance.state" else event["event"]
    return one_line(f"{event['seq']:>6} {event['at']} {who}: {step} ({event['cause']})")


@click.command()
@click.pass_obj
def metrics(session: Any) -> None:
    """Print the metrics of this moment in Prometheus' text format."""
    click.echo(session.client().ask(control.cli_metrics, None), nl=False)
