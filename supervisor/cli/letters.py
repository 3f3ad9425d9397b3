"""`smartipc dead-letters`: one-way messages that nobody could handle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click
import msgspec

from smartipc.ipc import letters
from smartipc.ipc.letters import LetterNames
from smartipc.ipc.wire.text import one_line
from smartipc.supervisor.cli.client import FAILED, USAGE, leave, plain

F = TypeVar("F", bound=Callable[..., Any])
_JSON = click.option("--json", "as_json", is_flag=True, help="JSON instead of text.")
_IDS = click.argument("ids", nargs=-1, required=True, metavar="ID...|all")


def register(cli: click.Group) -> None:
    """Add the group."""
    cli.add_command(dead_letters)


@click.group("dead-letters")
def dead_letters() -> None:
    """Show, send again or throw away one-way messages that nobody could handle."""


def _names(ids: tuple[str, ...]) -> LetterNames:
    if ids == ("all",):
        return LetterNames(all=True)
    for text in ids:
        if not (text.isascii() and text.isdigit()):
            leave(USAGE, f"{text!r} is no id: give the numbers that `dead-letters list` shows, or `all`")
    return LetterNames([int(text) for text in ids])


@dead_letters.command("list")
@_JSON
@click.pass_obj
def list_letters(session: Any, as_json: bool) -> None:
    """Show all letters, oldest first; with --json one array."""
    found = session.client().ask(letters.cli_letters, None)
    if as_json:
        click.echo(plain(found))
        return
    if not found:
        click.echo("no dead letters")
    for one in found:
        tries = f"{one.attempts} attempt{'s' if one.attempts != 1 else ''}"
        click.echo(
            one_line(
                f"{one.id:>6}  {one.at}  {one.kind:<7}  {one.address}  from {one.sender or '-'}  {tries}: {one.reason}"
            )
        )


@dead_letters.command("show")
@click.argument("ident", metavar="ID", type=click.IntRange(min=1))
@_JSON
@click.pass_obj
def show(session: Any, ident: int, as_json: bool) -> None:
    """Show one letter with its payload."""
    found = session.client().ask(letters.cli_letter, LetterNames([ident]))
    if not found:
        leave(FAILED, f"there is no letter {ident}")
    if as_json:
        click.echo(plain(found[0]))
        return
    for name, value in msgspec.to_builtins(found[0]).items():
        click.echo(f"{name + ':':<10} {one_line(value) if isinstance(value, str) else plain(value)}")


def _act(verb: str, does: str) -> Callable[[F], F]:
    def wrap(function: F) -> F:
        command = click.pass_obj(function)
        return dead_letters.command(verb, help=does)(_IDS(_JSON(command)))  # type: ignore[return-value]

    return wrap


@_act("replay", "Send letters again. One that fails again comes back as a new letter.")
def replay(session: Any, ids: tuple[str, ...], as_json: bool) -> None:
    """See the help text."""
    _finish(session.client().ask(letters.cli_replay, _names(ids)).results, as_json=as_json)


@_act("purge", "Throw letters away.")
def purge(session: Any, ids: tuple[str, ...], as_json: bool) -> None:
    """See the help text."""
    _finish(session.client().ask(letters.cli_purge, _names(ids)).results, as_json=as_json)


def _finish(results: dict[str, str], *, as_json: bool) -> None:
    failed = {name: reason for name, reason in results.items() if reason}
    if as_json:
        click.echo(plain({"results": results}))
    else:
        click.echo(f"{len(results) - len(failed)} done")
    if failed:
        leave(FAILED, "\n".join(f"{name}: {reason}" for name, reason in failed.items()))
