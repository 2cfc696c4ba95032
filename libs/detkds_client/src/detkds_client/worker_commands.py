"""`detkds workers` and `detkds job`: who works, on which device, and what a job waits for."""

from __future__ import annotations

from typing import Annotated

import typer

from detkds_client import show, show_workers
from detkds_client.client import Client
from detkds_client.options import Json, Refusal, Url, connected
from detkds_client.types import Worker

workers_app = typer.Typer(invoke_without_command=True, no_args_is_help=False)
WorkerName = Annotated[str, typer.Argument(metavar="NAME", help="Of `detkds workers`, or the worker's id.")]


@workers_app.callback()
def workers(context: typer.Context, url: Url = None, as_json: Json = False) -> None:
    """List workers, and which job of which search each device holds."""
    if context.invoked_subcommand is None:
        with connected(url) as client:
            found = client.workers()
        show.as_json(found) if as_json else show_workers.workers(found)


@workers_app.command("drain")
def drain(name: WorkerName, url: Url = None, as_json: Json = False) -> None:
    """Let a worker end what it runs and take nothing new, also when it is started anew."""
    with connected(url) as client:
        one = client.drain_worker(named(client, name)["id"])
    show.as_json(one) if as_json else show_workers.workers([one])


@workers_app.command("undrain")
def undrain(name: WorkerName, url: Url = None, as_json: Json = False) -> None:
    """Let a worker take jobs again."""
    with connected(url) as client:
        one = client.undrain_worker(named(client, name)["id"])
    show.as_json(one) if as_json else show_workers.workers([one])


def job(job_id: Annotated[str, typer.Argument(metavar="ID", help="Of `detkds workers`.")], url: Url = None, as_json: Json = False) -> None:
    """Show one job: where it runs, or why it waits."""
    with connected(url) as client:
        one = client.job(job_id)
    show.as_json(one) if as_json else show_workers.job(one)


def named(client: Client, name: str) -> Worker:
    """The worker with this name or id. Raises Refusal."""
    found = client.workers()
    for one in found:
        if name in (one["name"], one["id"]):
            return one
    known = ", ".join(one["name"] for one in found) or "none is there"
    raise Refusal(f"there is no worker {name!r}: {known}")
