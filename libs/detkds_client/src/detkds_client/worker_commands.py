"""`detkds workers`, `job` and `logs`: who works, on which device, what a job waits for, and what its trainers wrote."""

from __future__ import annotations

from typing import Annotated

import typer

from detkds_client import show, show_workers
from detkds_client.client import Client
from detkds_client.connection import ProblemError
from detkds_client.following import find_job
from detkds_client.options import Json, Refusal, Url, connected
from detkds_client.types import Job, Worker

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
    """Let a worker end what it runs and take nothing new. Also when it is started anew."""
    with connected(url) as client:
        one = client.drain_worker(named(client, name)["id"])
    show.as_json(one) if as_json else show_workers.workers([one])


@workers_app.command("undrain")
def undrain(name: WorkerName, url: Url = None, as_json: Json = False) -> None:
    """Let a worker take jobs again."""
    with connected(url) as client:
        one = client.undrain_worker(named(client, name)["id"])
    show.as_json(one) if as_json else show_workers.workers([one])


def job(
    job_id: Annotated[str, typer.Argument(metavar="ID", help="Of `detkds workers`, or `detkds logs SEARCH`.")],
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Show one job: where it runs, or why it waits."""
    with connected(url) as client:
        one = client.job(job_id)
    show.as_json(one) if as_json else show_workers.job(one)


def logs(
    job_id: Annotated[str, typer.Argument(metavar="ID", help="A job, or a distillation; of a search, its jobs are listed.")],
    attempt: Annotated[int | None, typer.Option(min=1, help="Which of its tries. Default: the last one that has left a log.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on with what is written, until the attempt ends.")] = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Print what a trainer wrote."""
    with connected(url) as client:
        one = find_training(client, job_id)
        if one is None:
            found = client.jobs(search=job_id)
            show.as_json(found) if as_json else show_workers.jobs(found)
            return
        if as_json:
            show.as_json(one)
            return
        if attempt is None and not one["logs"]:
            raise Refusal(f"job {one['id']} is {one['state']}; no attempt of it has left a log yet")
        try:
            for text in client.read_log(one["id"], attempt or one["logs"][-1], follow=follow):
                print(text, end="", flush=True)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None


def find_training(client: Client, job_id: str) -> Job | None:
    """The job of this id, or of a distillation of this id; None: it is a search. Raises Refusal when it is none of them."""
    try:
        return client.job(job_id)
    except ProblemError as error:
        if error.status != 404:
            raise
    kind, _ = find_job(client, job_id)
    if kind == "search":
        return None
    found = client.jobs(distillation=job_id, limit=1)
    if not found:
        raise Refusal(f"distillation {job_id} has no job")
    return found[0]


def named(client: Client, name: str) -> Worker:
    """The worker with this name or id. Raises Refusal."""
    found = client.workers()
    for one in found:
        if name in (one["name"], one["id"]):
            return one
    known = f"one of {', '.join(one['name'] for one in found)}" if found else "none is there"
    raise Refusal(f"there is no worker {name!r}; {known}")
