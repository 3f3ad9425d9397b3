"""Names as arguments: workers, instances and `all`, completed in the shell by asking the running app."""

from __future__ import annotations

import contextlib
import io

import click
from click.shell_completion import CompletionItem

from smartipc.ipc import control
from smartipc.supervisor.cli.client import find


class Name(click.types.StringParamType):
    """A worker, an instance (`hasher:2`) or `all`; whether it exists is the supervisor's answer."""

    name = "name"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002 - click's signature
        """Return the names that begin so; none where no app answers."""
        root = ctx.find_root().params
        # `find` says on stderr why it finds nothing, and exits: a shell that completes must see neither.
        with contextlib.suppress(SystemExit), contextlib.redirect_stderr(io.StringIO()):
            client = find(root.get("app"), root.get("config"))
            status = client.ask(control.cli_status, None)
            client.close()
            known = ["all", *dict.fromkeys(one.worker for one in status.workers)]
            known += [one.instance for one in status.workers]
            return [CompletionItem(name) for name in known if name.startswith(incomplete)]
        return []


NAME = Name()
