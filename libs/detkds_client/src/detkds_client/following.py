"""Commands that are for a search and for a distillation alike: which of the two an id is, and how it is followed to its end."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import typer

from detkds_client import show
from detkds_client.client import Client
from detkds_client.connection import FINAL_STATES, ProblemError
from detkds_client.options import Refusal
from detkds_client.show_progress import following


def find_job(client: Client, job_id: str) -> tuple[str, Any]:
    """("search" | "distillation", its document). Raises Refusal when it is neither."""
    for kind, get in (("search", client.get_search), ("distillation", client.get_distillation)):
        try:
            return kind, get(job_id)
        except ProblemError as error:
            if error.status != 404:
                raise
    raise Refusal(f"{job_id} is neither a search nor a distillation; `detkds searches` and `detkds distillations` list them")


def follow(client: Client, job_id: str, as_json: bool) -> None:
    """Show progress until the end, then the outcome. Ctrl-C leaves the work running and says how to come back."""
    kind, document = find_job(client, job_id)
    wait: Callable[..., Any] = client.wait_search if kind == "search" else client.wait_distillation
    if not as_json:
        print(f"{kind} {document['name']} {job_id}")
        show.plan(document["spec"])
        sys.stdout.flush()
    try:
        if as_json:
            document = wait(job_id)
        else:
            with following() as on_progress:
                document = wait(job_id, on_progress)
    except KeyboardInterrupt:
        print(f"\nThe {kind} goes on. Come back with: detkds watch {job_id}\nStop it with:       detkds cancel {job_id}", file=sys.stderr)
        raise typer.Exit(130) from None
    result = client.result(document["result_id"]) if document["result_id"] else None
    if as_json:
        show.as_json({**document, "result": result})
    else:
        show.search(document) if kind == "search" else show.distillation(document)
        if result is not None:
            print()
            show.result(result)
            if kind == "search":
                print(f"\nTrain the student with it: detkds distill --policy search:{job_id}")
    if document["state"] in FINAL_STATES and document["state"] != "SUCCEEDED":
        raise typer.Exit(1)


def shown(kind: str, document: Any, as_json: bool) -> None:
    """A search or a distillation as it stands."""
    if as_json:
        show.as_json(document)
    elif kind == "search":
        show.search(document)
    else:
        show.distillation(document)


def begun(client: Client, kind: str, document: Any, wait: bool, as_json: bool) -> None:
    """What has just been started: followed to its end, or shown as it stands."""
    if wait:
        follow(client, document["id"], as_json)
    else:
        shown(kind, document, as_json)
