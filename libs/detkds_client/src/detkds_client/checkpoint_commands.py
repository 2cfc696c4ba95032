"""`detkds checkpoints`: weights of teachers and students, brought to a service on another machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from detkds_client import show
from detkds_client.options import Classes, Json, Refusal, Url, connected
from detkds_client.spelling import names
from detkds_client.types import Checkpoint

Detector = Annotated[str | None, typer.Option(help="Whose weights they are (`detkds detectors`); a request for another is then refused.")]
Called = Annotated[str | None, typer.Option("--name", help="What to call it; default: the file's name.")]

checkpoints_app = typer.Typer(invoke_without_command=True, no_args_is_help=False)


@checkpoints_app.callback()
def checkpoints(context: typer.Context, url: Url = None, as_json: Json = False) -> None:
    """List the checkpoints that were brought."""
    if context.invoked_subcommand is None:
        with connected(url) as client:
            found = client.checkpoints()
        show.as_json(found) if as_json else show.checkpoints(found)


@checkpoints_app.command("upload")
def upload(
    file: Annotated[Path, typer.Argument(help="A .safetensors file, or a PyTorch checkpoint.")],
    classes: Classes = None,
    detector: Detector = None,
    name: Called = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Send a checkpoint in parts. The same command again goes on where one broke off."""
    if not file.is_file():
        raise Refusal(f"{file} is no file")
    bar = Progress(
        TextColumn(file.name),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )
    with connected(url) as client, bar:
        task = bar.add_task("upload", total=file.stat().st_size)
        done = client.upload_checkpoint(
            file, name=name, classes=names(classes), detector=detector, on_progress=lambda sent, _: bar.update(task, completed=sent)
        )
    tell(done, as_json)


@checkpoints_app.command("add")
def add(
    place: Annotated[
        str,
        typer.Argument(
            metavar="PATH|URL",
            help="A file on the service's machine, below DETKDS_DATA_ROOTS, or an https address at one of its DETKDS_CHECKPOINT_HOSTS.",
        ),
    ],
    sha256: Annotated[str | None, typer.Option(help="What the file's SHA-256 shall be; needed for an address.")] = None,
    classes: Classes = None,
    detector: Detector = None,
    name: Called = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Take in a checkpoint without sending it. It lies on the service's machine, or on a host that it may fetch from."""
    with connected(url) as client:
        done = client.add_checkpoint(place, sha256=sha256, name=name, classes=names(classes), detector=detector)
    tell(done, as_json)


@checkpoints_app.command("show")
def show_checkpoint(
    checkpoint_id: Annotated[str, typer.Argument(metavar="ID", help="Of `detkds checkpoints`.")], url: Url = None, as_json: Json = False
) -> None:
    """Show a checkpoint. Of a REFUSED one, why."""
    with connected(url) as client:
        found = client.checkpoint(checkpoint_id)
    show.as_json(found) if as_json else show.checkpoint(found)


@checkpoints_app.command("delete")
def delete(
    checkpoint_id: Annotated[str, typer.Argument(metavar="ID", help="Of `detkds checkpoints`.")], url: Url = None, as_json: Json = False
) -> None:
    """Remove a checkpoint and its files. One that a search, a distillation or a result needs is kept."""
    with connected(url) as client:
        done = client.delete_checkpoint(checkpoint_id)
    show.as_json(done) if as_json else print(f"{done['name']} ({done['id']}) is deleted")


def tell(done: Checkpoint, as_json: bool) -> None:
    if as_json:
        show.as_json(done)
        return
    show.checkpoints([done])
    print(f"\nUse it as --teacher {done['detector'] or 'DETECTOR'}:{done['id']}")
