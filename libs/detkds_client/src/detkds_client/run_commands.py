"""`detkds searches`, `distillations`, `candidates`, `label`, `watch`, `pause`, `resume`, `cancel`: what looks at them and changes them."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from detkds_client import show, show_tables
from detkds_client.following import find_job, follow, shown
from detkds_client.options import Json, Limit, Priority, Refusal, RunId, Url, connected, is_filtered, only_lists

State = Annotated[str | None, typer.Option(help="Those in this state, e.g. RUNNING.")]
Tag = Annotated[str | None, typer.Option(help="Those with this tag.")]
NamePart = Annotated[str | None, typer.Option("--name", help="Those whose name contains this.")]
OnDataset = Annotated[str | None, typer.Option("--dataset", help="Those on this dataset.")]
OfTeacher = Annotated[str | None, typer.Option("--teacher", help="Those with this teacher, a detector.")]
OfStudent = Annotated[str | None, typer.Option("--student", help="Those with this student, a detector.")]
Sort = Annotated[
    str | None, typer.Option(help="created_at, updated_at or finished_at; with - before it the newest first. Default: -created_at.")
]


def searches(
    search_id: Annotated[
        str | None, typer.Argument(metavar="ID", help="One search, with its best candidates; without it, the newest.")
    ] = None,
    state: State = None,
    tag: Tag = None,
    name: NamePart = None,
    dataset: OnDataset = None,
    teacher: OfTeacher = None,
    student: OfStudent = None,
    algorithm: Annotated[str | None, typer.Option(help="Those by this algorithm.")] = None,
    sort: Sort = None,
    limit: Limit = 50,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """List searches, or show one with its best candidates."""
    asked = {
        "state": state,
        "tag": tag,
        "name": name,
        "dataset": dataset,
        "teacher": teacher,
        "student": student,
        "algorithm": algorithm,
        "sort": sort,
    }
    with connected(url) as client:
        if search_id is None:
            found = client.searches(limit=limit, **asked)
            show.as_json(found) if as_json else show.searches(found, filtered=is_filtered(asked))
            return
        only_lists(asked)
        one, measured = client.get_search(search_id), client.candidates(search_id)
        if as_json:
            show.as_json({**one, "candidates": measured})
            return
        show.search(one)
        print()
        show.candidates(measured)


def distillations(
    distillation_id: Annotated[str | None, typer.Argument(metavar="ID", help="One distillation; without it, the newest.")] = None,
    state: State = None,
    tag: Tag = None,
    name: NamePart = None,
    dataset: OnDataset = None,
    teacher: OfTeacher = None,
    student: OfStudent = None,
    sort: Sort = None,
    limit: Limit = 50,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """List distillations, or show one."""
    asked = {"state": state, "tag": tag, "name": name, "dataset": dataset, "teacher": teacher, "student": student, "sort": sort}
    with connected(url) as client:
        if distillation_id is None:
            found = client.distillations(limit=limit, **asked)
            show.as_json(found) if as_json else show.distillations(found, filtered=is_filtered(asked))
            return
        only_lists(asked)
        shown("distillation", client.get_distillation(distillation_id), as_json)


def candidates(
    search_id: Annotated[str, typer.Argument(metavar="ID", help="A search.")],
    state: Annotated[str | None, typer.Option(help="Those in this state: MEASURED, REJECTED, DUPLICATE, INFEASIBLE, PROPOSED.")] = None,
    stage: Annotated[str | None, typer.Option(help="reference, stage1 (single terms) or stage2 (combinations).")] = None,
    island: Annotated[str | None, typer.Option(help="Single terms of this knowledge.")] = None,
    operator: Annotated[str | None, typer.Option(help="Those that were made so, e.g. mutate.")] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """List what a search tried. How each policy was made and of which others, every AP of it, and why it was refused."""
    with connected(url) as client:
        found = client.candidates(search_id, state=state, stage=stage, island=island, operator=operator)
    show.as_json(found) if as_json else show_tables.lineage(found)


def label(
    job_id: RunId,
    name: Annotated[str | None, typer.Option(help="Another name; its result takes it too.")] = None,
    notes: Annotated[str | None, typer.Option(help="Other notes; an empty text takes them away.")] = None,
    tag: Annotated[list[str] | None, typer.Option(metavar="TAG", help="Tags in place of those that it has; repeatable.")] = None,
    no_tags: Annotated[bool, typer.Option("--no-tags", help="Take its tags away.")] = False,
    priority: Priority = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Change name, notes, tags, priority. Of a search or a distillation; the priority until it ends."""
    if tag and no_tags:
        raise Refusal("--tag and --no-tags at once; give the tags that it should have, or --no-tags")
    if name is None and notes is None and not tag and not no_tags and priority is None:
        raise Refusal("what is to change? Give --name, --notes, --tag, --no-tags or --priority")
    tags = [] if no_tags else tag
    with connected(url) as client:
        kind, _ = find_job(client, job_id)
        change: Any = client.label_search if kind == "search" else client.label_distillation
        shown(kind, change(job_id, name=name, notes=notes, tags=tags, priority=priority), as_json)


def watch(job_id: RunId, url: Url = None, as_json: Json = False) -> None:
    """Follow a search or a distillation until it ends."""
    with connected(url) as client:
        follow(client, job_id, as_json)


def pause(job_id: RunId, url: Url = None, as_json: Json = False) -> None:
    """Hold a search or a distillation. Its trainers end within seconds and give their devices back; `detkds resume` lets it go on."""
    changed(job_id, "pause", url, as_json)


def resume(job_id: RunId, url: Url = None, as_json: Json = False) -> None:
    """Let a paused search or distillation go on where it was."""
    changed(job_id, "resume", url, as_json)


def cancel(job_id: RunId, url: Url = None, as_json: Json = False) -> None:
    """Stop a search or a distillation. Its trainer ends within seconds, what is measured stays."""
    changed(job_id, "cancel", url, as_json)


def changed(job_id: str, verb: str, url: str | None, as_json: bool) -> None:
    """Pause, resume or cancel a search or a distillation, and show where it stands."""
    with connected(url) as client:
        kind, _ = find_job(client, job_id)
        change: Any = client.change_search if kind == "search" else client.change_distillation
        shown(kind, change(job_id, verb), as_json)
