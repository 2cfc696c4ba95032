"""`detkds keys`: who may use the service. The operator's key, or one with scope `admin`, is needed."""

from __future__ import annotations

from typing import Annotated

import typer

from detkds_client import show
from detkds_client.options import Json, Url, connected

keys_app = typer.Typer(invoke_without_command=True, no_args_is_help=False)


@keys_app.callback()
def keys(context: typer.Context, url: Url = None, as_json: Json = False) -> None:
    """List API keys."""
    if context.invoked_subcommand is None:
        with connected(url) as client:
            found = client.keys()
        show.as_json(found) if as_json else show.keys(found)


@keys_app.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="What it is for, to find it again by.")],
    owner: Annotated[str, typer.Option(help="Whose searches and results it makes and sees; several keys may have one owner.")],
    scope: Annotated[str, typer.Option(help="read: looks; run: also starts and stops; admin: everything of everybody, and keys.")] = "run",
    days: Annotated[float, typer.Option(help="How long it is valid; 0: until it is revoked.")] = 90.0,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Make a key and print its secret, once: nobody can read it again."""
    with connected(url) as client:
        made = client.create_key(name, owner=owner, scope=scope, days=days or None)
    if as_json:
        show.as_json(made)
        return
    show.keys([made])
    print(f"\nIts secret, which is not kept: {made['secret']}\nUse it as DETKDS_API_KEY.")


@keys_app.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="Of `detkds keys`.")], url: Url = None, as_json: Json = False
) -> None:
    """End a key; requests that carry it are refused within seconds."""
    with connected(url) as client:
        ended = client.revoke_key(key_id)
    show.as_json(ended) if as_json else show.keys([ended])
