"""The end of a distillation: its trainer's result becomes a result with its checkpoint."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from detkds_core.store import distillations, jobs, results
from detkds_core.store.models import Job

# What a trainer leaves in its folder, by name in its result.
FILES = ("checkpoint", "checkpoint_pth", "checkpoint_last", "checkpoint_last_pth", "config", "detections")
FIGURES = ("student", "teacher", "warnings", "scales", "evaluations", "seconds")


def finish(session: Session, job_id: str) -> bool:
    """Write the result of a distillation whose job has succeeded, and end it, together. False: done before, or cancelled."""
    job = jobs.get(session, job_id)
    if job is None or job.distillation_id is None or not jobs.collect(session, job):
        return False
    distillation = distillations.get(session, job.distillation_id)
    if distillation is None or not distillations.succeed(session, distillation.id):
        return False
    result = job.result or {}
    spec = distillation.spec
    results.create(
        session,
        distillation,
        policy=spec["policy"],
        ap=result["student"]["ap"],
        metrics={name: result[name] for name in FIGURES if name in result},
        evidence={
            "dataset": {"name": distillation.dataset, "digest": distillation.dataset_digest},
            "seed": spec.get("seed"),
            "recipe": result.get("recipe") or spec.get("recipe"),
            "teacher": spec.get("teacher"),
            "student": spec.get("student"),
            "inherited": result.get("inherited"),
            "images": {"report": result["student"].get("images")},
            "search": distillation.search_id,
            "cost": {"seconds": result.get("seconds"), "iterations": (result.get("recipe") or spec.get("recipe") or {}).get("iterations")},
            "curve": result.get("curve"),
        },
        artifacts=artifacts(job, result),
        environment=result.get("environment") or {},
    )
    return True


def artifacts(job: Job, result: dict[str, Any]) -> dict[str, Any]:
    """Names among the artifacts, and the digests of those that a worker published, by what they are.

    Raises ValueError for a name that would lead out of the attempt's folder: a trainer reads data that others made.
    """
    found: dict[str, Any] = {}
    for kind in FILES:
        name = result.get(kind)
        if name is None:
            continue
        if not isinstance(name, str) or "/" in name or "\\" in name or name in ("", ".", ".."):
            raise ValueError(f"{kind} is {name!r}, not the name of a file in the folder of the attempt")
        found[kind] = f"{job.id}/{job.attempt}/{name}"
    files = result.get("files") or {}
    digests = {kind: files[result[kind]]["sha256"] for kind in found if result[kind] in files}
    return {**found, "sha256": result.get("sha256"), "digests": digests}
