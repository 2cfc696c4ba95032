"""`detkds search`, `extend`, `distill`, `clone`: what starts a search or a distillation."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from detkds_client import show
from detkds_client.connection import given
from detkds_client.following import begun, find_job
from detkds_client.options import (
    DatasetName,
    DeviceMemory,
    Inherit,
    Json,
    Name,
    Notes,
    Pair,
    Priority,
    RecipeFields,
    Refusal,
    Resize,
    RunId,
    Student,
    Tags,
    Teacher,
    Url,
    Wait,
    connected,
)
from detkds_client.spelling import changes, choice, distillers_of, fields, numbers, policy_of, teacher_choice


def search(
    pair: Pair = None,
    dataset: DatasetName = None,
    teacher: Teacher = None,
    student: Student = None,
    candidates: Annotated[int | None, typer.Option(help="How many policies to propose at most. Default: 48.")] = None,
    iterations: Annotated[int | None, typer.Option(help="Budget in student iterations.")] = None,
    hours: Annotated[float | None, typer.Option(help="Budget in hours of one device, by what an iteration took before.")] = None,
    wall_clock_hours: Annotated[
        float | None, typer.Option(help="Budget in hours by the clock, confirmation included, with the workers that are there.")
    ] = None,
    algorithm: Annotated[
        str, typer.Option(help="detkds; for comparison: random, random_halving, evolution, genetic, tpe, nsga2.")
    ] = "detkds",
    weights: Annotated[str, typer.Option(help="balanced: by the ratio of gradients; published: DetKDS' own numbers.")] = "balanced",
    mode: Annotated[str, typer.Option(help="strict: the same policies every time; logged: never waits for a slow job.")] = "strict",
    preview: Annotated[bool, typer.Option("--preview", help="Only say what the search would do and cost.")] = False,
    seed: Annotated[int, typer.Option(help="Everything random follows from it.")] = 0,
    knowledge: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Search only these kinds of knowledge; repeatable.")] = None,
    space: Annotated[str, typer.Option(help="published: the names that DetKDS can reach; full: all that the language has.")] = "published",
    reference: Annotated[
        list[str] | None,
        typer.Option(metavar="POLICY", help="Named policies to begin with; repeatable. Default: those that suit."),
    ] = None,
    rungs: Annotated[
        list[str] | None,
        typer.Option(metavar="N,N,...", help="Iterations of the short trainings, rising, with commas between or repeated."),
    ] = None,
    group: Annotated[int | None, typer.Option(help="Candidates that are trained together.")] = None,
    parallelism: Annotated[int | None, typer.Option(help="Jobs that may be under way at once.")] = None,
    finalists: Annotated[int | None, typer.Option(help="Candidates that are confirmed.")] = None,
    confirm_seeds: Annotated[int | None, typer.Option(help="Fresh seeds of the confirmation.")] = None,
    confirm_iterations: Annotated[int | None, typer.Option(help="Its iterations; default: those of the recipe.")] = None,
    distillers: Annotated[
        list[str] | None,
        typer.Option(
            metavar="POLICY,...",
            help="Hand-designed policies to compare with, with commas between or repeated; all: every one that suits the pair.",
        ),
    ] = None,
    warm_start: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Begin with the best policies of an earlier search; repeatable.")
    ] = None,
    recipe: RecipeFields = None,
    inherit: Inherit = None,
    resize: Resize = False,
    priority: Priority = None,
    device_memory: DeviceMemory = None,
    name: Name = None,
    notes: Notes = None,
    tag: Tags = None,
    wait: Wait = True,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Search the policy that suits your pair on your data."""
    if candidates is None and iterations is None and hours is None and wall_clock_hours is None:
        candidates = 48
    confirmation = given(finalists=finalists, seeds=confirm_seeds, iterations=confirm_iterations, distillers=distillers_of(distillers))
    with connected(url) as client:
        wanted: dict[str, Any] = {
            "pair": pair,
            "dataset": dataset,
            "teacher": teacher_choice(teacher),
            "student": choice(student),
            "candidates": candidates,
            "iterations": iterations,
            "hours": hours,
            "wall_clock_hours": wall_clock_hours,
            "algorithm": algorithm,
            "weights": weights,
            "mode": mode,
            "seed": seed,
            "knowledge": knowledge,
            "space": space,
            "references": reference,
            "rungs": numbers("--rungs", rungs),
            "group": group,
            "parallelism": parallelism,
            "confirmation": confirmation or None,
            "warm_start": warm_start,
            "recipe": fields(recipe),
            "inherit": inherit,
            "resize": resize or None,
            "priority": priority,
            "device_memory_gib": device_memory,
            "name": name,
            "notes": notes,
            "tags": tag,
        }
        if preview:
            bought = client.preview_search(**wanted)
            show.as_json(bought) if as_json else show.preview(bought)
            return
        started = client.search(**wanted)
        begun(client, "search", started, wait, as_json)


def extend(
    search_id: Annotated[str, typer.Argument(metavar="ID", help="A search that has SUCCEEDED.")],
    iterations: Annotated[int | None, typer.Option(help="Further student iterations.")] = None,
    candidates: Annotated[int | None, typer.Option(help="Further policies at most.")] = None,
    hours: Annotated[float | None, typer.Option(help="Further hours of one device, by what an iteration took before.")] = None,
    wall_clock_hours: Annotated[
        float | None, typer.Option(help="Further hours by the clock, confirmation included, with the workers that are there.")
    ] = None,
    priority: Priority = None,
    name: Name = None,
    wait: Wait = True,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Go on where a search ended, as a new one. Nothing is measured again, and the old result stays."""
    more: dict[str, Any] = {"iterations": iterations, "candidates": candidates, "hours": hours, "wall_clock_hours": wall_clock_hours}
    if all(given is None for given in more.values()):
        raise Refusal("how much more? Give one of --iterations, --candidates, --hours and --wall-clock-hours")
    with connected(url) as client:
        started = client.extend_search(search_id, **more, priority=priority, name=name)
        begun(client, "search", started, wait, as_json)


def distill(
    policy: Annotated[str, typer.Option(help="A policy's name or formula, `@file.json`, or `search:ID` for a search's winner.")],
    pair: Pair = None,
    dataset: DatasetName = None,
    teacher: Teacher = None,
    student: Student = None,
    seed: Annotated[int, typer.Option(help="Everything random follows from it.")] = 0,
    recipe: RecipeFields = None,
    inherit: Inherit = None,
    resize: Resize = False,
    priority: Priority = None,
    device_memory: DeviceMemory = None,
    name: Name = None,
    notes: Notes = None,
    tag: Tags = None,
    wait: Wait = True,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Train the student under a policy. Leaves a plain MMDetection checkpoint."""
    with connected(url) as client:
        started = client.distill(
            policy=policy_of(policy),
            pair=pair,
            dataset=dataset,
            teacher=teacher_choice(teacher),
            student=choice(student),
            seed=seed,
            recipe=fields(recipe),
            inherit=inherit,
            resize=resize or None,
            priority=priority,
            device_memory_gib=device_memory,
            name=name,
            notes=notes,
            tags=tag,
        )
        begun(client, "distillation", started, wait, as_json)


def clone(
    job_id: RunId,
    seed: Annotated[int | None, typer.Option(help="Another seed.")] = None,
    policy: Annotated[str | None, typer.Option(help="Another policy, of a distillation: as of `detkds distill`.")] = None,
    recipe: RecipeFields = None,
    other: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Another field of the request, e.g. --set confirmation.seeds=3; repeatable."),
    ] = None,
    name: Name = None,
    notes: Notes = None,
    tag: Tags = None,
    wait: Wait = True,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Repeat the request of a search or a distillation. What is given is different."""
    wanted = changes(other)
    wanted |= given(seed=seed, policy=policy_of(policy) if policy is not None else None, name=name, notes=notes, tags=tag)
    if recipe:
        wanted["recipe"] = {**(wanted.get("recipe") or {}), **(fields(recipe) or {})}
    with connected(url) as client:
        kind, _ = find_job(client, job_id)
        again = client.clone_search(job_id, **wanted) if kind == "search" else client.clone_distillation(job_id, **wanted)
        begun(client, kind, again, wait, as_json)
