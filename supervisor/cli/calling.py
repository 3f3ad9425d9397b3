"""Verbs that call: request, broadcast, publish, subscribe."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click
import msgspec

from smartipc.ipc import control
from smartipc.ipc.contracts import Topic, check_pattern
from smartipc.supervisor.cli.client import FAILED, NO_SUCH_WORKER, USAGE, leave, plain


def register(cli: click.Group) -> None:
    """Add the verbs."""
    for verb in (request, broadcast, publish, subscribe):
        cli.add_command(verb)


def _payload(text: str | None) -> Any:
    if text is None:
        return None
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        leave(USAGE, f"the payload is not JSON: {error}")


def _address(text: str) -> str:
    worker, dot, method = text.partition(".")
    if not (worker and dot and method):
        leave(USAGE, f"{text!r} is not an address: expected worker.method")
    return text


def _topic(text: str, check: Callable[[str], object]) -> str:
    try:
        check(text)
    except ValueError as error:
        leave(USAGE, str(error))
    return text


@click.command()
@click.argument("address")
@click.argument("payload", required=False, metavar="[JSON]")
@click.option("--slot", type=click.IntRange(min=0), help="Only this instance.")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), metavar="S", help="Seconds; default 30.")
@click.pass_obj
def request(session: Any, address: str, payload: str | None, slot: int | None, timeout: float | None) -> None:
    """Ask an instance, print its reply as JSON. Without JSON it sends null."""
    call = control.CallRequest(_address(address), _payload(payload), slot, timeout)
    outcome = session.client().ask(control.cli_request, call)
    if outcome.error is not None:
        leave(
            NO_SUCH_WORKER if outcome.error_type == "NoSuchWorker" else FAILED, f"{outcome.error_type}: {outcome.error}"
        )
    click.echo(plain(outcome.value))


@click.command()
@click.argument("address")
@click.argument("payload", required=False, metavar="[JSON]")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), metavar="S", help="Seconds; default 30.")
@click.pass_obj
def broadcast(session: Any, address: str, payload: str | None, timeout: float | None) -> None:
    """Ask every instance, print one JSON object a line: instance and value or error."""
    call = control.CallRequest(_address(address), _payload(payload), None, timeout)
    outcomes = session.client().ask(control.cli_broadcast, call)
    for one in outcomes:
        if one.error is None:
            click.echo(plain({"instance": one.instance, "value": one.value}))
        else:
            click.echo(plain({"instance": one.instance, "error": f"{one.error_type}: {one.error}"}))
    failed = [one.instance for one in outcomes if one.error is not None]
    if failed:
        leave(FAILED, f"{len(failed)} of {len(outcomes)} failed: {', '.join(failed)}")


@click.command()
@click.argument("topic")
@click.argument("payload", metavar="JSON")
@click.pass_obj
def publish(session: Any, topic: str, payload: str) -> None:
    """Publish one message."""
    name = _topic(topic, lambda text: Topic(text, object))
    session.client().ask(control.cli_publish, control.PublishRequest(name, _payload(payload)))


@click.command()
@click.argument("pattern")
@click.option("-n", "--count", type=click.IntRange(min=1), help="End after N messages.")
@click.pass_obj
def subscribe(session: Any, pattern: str, count: int | None) -> None:
    """Print messages as they are published, one JSON object a line. `*` is one token, `>` the rest."""
    _topic(pattern, check_pattern)
    client = session.client()
    left = count
    while left is None or left > 0:
        for message in client.ask(control.cli_subscribe, control.WatchRequest(pattern, 20.0)):
            if left is not None:
                if left == 0:
                    break
                left -= 1
            click.echo(plain(message))
        sys.stdout.flush()
