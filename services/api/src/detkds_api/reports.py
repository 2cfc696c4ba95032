"""`GET /results/ID/report`: the report of a search or a distillation, from what is stored of it.

Apart from the other routes, since the report draws pictures: its libraries are imported when the first one is asked for.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Any, cast

from sqlalchemy.orm import Session

from detkds_api.candidates import CandidateView, every_candidate
from detkds_api.comparison import images_of, seeds_of
from detkds_core.policy import formula, from_json, readable
from detkds_core.policy.named import name_of
from detkds_core.report import CandidatePoint, ReportData, Row, Verdict, confirmed_rows, render, row_names, rung_means
from detkds_core.report.data import Role, State
from detkds_core.store import results
from detkds_core.store.models import Result

# The page has its style inside, which the policy of the dashboard forbids, and needs nothing else: no script, no form, no other origin.
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; sandbox"
    ),
    "Cache-Control": "no-cache",
}
DRAWING = threading.Lock()  # matplotlib is not made for threads


def page(data: ReportData) -> str:
    """The report as HTML."""
    with DRAWING:
        return render(data)


def report_of(session: Session, result: Result) -> ReportData:
    """What the report of a result shows. Validation images are not kept with a result, so it has none of these."""
    evidence = result.evidence
    search = result.kind == "search"
    seeds, images = evidence.get("seeds"), evidence.get("images")
    selection = images.get("selection") if isinstance(images, Mapping) else None
    searched_on = f"{selection} selection images" if selection else "the selection images"
    seed = seeds.get("search") if isinstance(seeds, Mapping) else None
    return ReportData(
        title=result.name,
        dataset=result.dataset,
        pair=f"{result.teacher} teaches {result.student}",
        rows=confirmed_rows(result.metrics, results.parameters(session, result.student) or 0, readable) if search else trained_rows(result),
        formula=readable(formula(from_json(result.policy))),
        policy=result.policy,
        candidates=[candidate_point(one) for one in every_candidate(session, result.search_id)] if result.search_id else [],
        evidence=dict(evidence_lines(result)),
        verdict=confirmed(result.metrics) if search else trained(result),
        insight=evidence.get("insight") or {},
        searched_on=searched_on if seed is None else f"{searched_on}, with seed {seed}",
        funnel=(evidence.get("summary") or {}).get("funnel") or {},
    )


def confirmed(metrics: Mapping[str, Any]) -> Verdict | None:
    """As the confirmation of a search was judged; None where it was not."""
    return Verdict.from_json(metrics, row_names(metrics)) if "verdict" in metrics else None


def trained_rows(result: Result) -> list[Row]:
    """Teacher and student of a distillation, as far as they were measured; with which seed the teacher was trained nobody said."""
    student: Role = "searched" if any(result.policy.get(part) for part in ("terms", "distillers")) else "alone"
    names: Mapping[str, tuple[str, Role, int | None]] = {
        "teacher": ("teacher", "teacher", None),
        "student": ("student" if student == "searched" else "student alone", student, result.evidence.get("seed")),
    }
    rows = []
    for who, (name, role, seed) in names.items():
        figures = result.metrics.get(who) or {}
        if any(figures.get(one) is None for one in ("ap", "ap50", "ap75")):
            continue
        rows.append(
            Row(
                name=name,
                role=role,
                seeds=(seed,),
                ap=(figures["ap"],),
                ap50=(figures["ap50"],),
                ap75=(figures["ap75"],),
                parameters=figures.get("parameters") or 0,
                images=figures.get("images") or 0,
            )
        )
    return rows


def trained(result: Result) -> Verdict:
    """What one training says, which is compared with no other."""
    teacher = (result.metrics.get("teacher") or {}).get("ap")
    said = "The student was not measured." if result.ap is None else f"The student has {result.ap:.1f} AP"
    if result.ap is not None:
        said += f", where the teacher has {teacher:.1f}." if teacher is not None else "."
    return Verdict(f"{said} What distillation brought, one training alone does not tell: a search compares several seeds.", None, None)


def candidate_point(one: CandidateView) -> CandidatePoint:
    """A candidate as the report draws it."""
    return CandidatePoint(
        index=one.index,
        stage=one.stage,
        formula=readable(one.resolved or one.formula),
        fitness=one.ap,
        island=one.island,
        operator=one.operator,
        failure=f"{one.failure.get('kind')}: {one.failure.get('detail')}" if one.failure else None,
        name=name_of(from_json(one.policy)) if one.stage == "reference" else None,
        state=cast(State, one.state),
        rungs=rung_means((each.rung, each.ap) for each in one.rungs),
    )


def evidence_lines(result: Result) -> Iterator[tuple[str, str]]:
    """What the figures rest on, a line each; what is not known is left out."""
    evidence = result.evidence
    yield "dataset", f"{result.dataset}, digest {result.dataset_digest}"
    if (images := images_of(result)) is not None:
        yield "report images", f"{images:,}"
    if seeds := seeds_of(evidence):
        yield "seeds", ", ".join(map(str, seeds))
    if recipe := evidence.get("recipe"):
        yield "recipe", settings(recipe)
    if confirmation := evidence.get("confirmation"):
        yield "confirmation", settings({name: value for name, value in confirmation.items() if name != "distillers"})
    if draws := evidence.get("draws"):
        yield "intervals", f"over the seeds and {draws} draws of the report images, which the search never saw"
    if candidates := evidence.get("candidates"):
        yield "candidates", ", ".join(f"{count:,} {state}" for state, count in candidates.items())
    if evidence.get("continues"):
        yield "continues", f"search {evidence['continues']}"
    if evidence.get("search"):
        yield "policy", f"of search {evidence['search']}"
    if inherited := evidence.get("inherited"):
        yield "inherited", f"{inherited['tensors']} of the {inherited['of']} tensors of neck and head, from the teacher"
    if warnings := result.metrics.get("warnings"):
        yield "warnings", "; ".join(map(str, warnings))
    cost = evidence.get("cost") or {}
    if spent := [
        f"{cost[name]:,.0f} {unit}" for name, unit in (("iterations", "iterations"), ("seconds", "s")) if cost.get(name) is not None
    ]:
        yield "took", ", ".join(spent)
    if versions := {**(evidence.get("versions") or {}), **result.environment}:
        yield "made with", settings(versions)
    yield "result", f"{result.id}, {result.created_at:%Y-%m-%d %H:%M} UTC"


def settings(values: Mapping[str, Any]) -> str:
    """`iterations 120, batch 8`; without what is null or false."""
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items() if value is not None and value is not False)
