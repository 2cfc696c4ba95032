"""What the trainers of a search found out beside its figures, for its result.

It must not depend on when jobs ended or how they were split, and it does not: what they say follows from their specifications, it is told
in the order of the search's decisions and of its confirmation's seeds, and what several say is told once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from detkds_core.store.models import Job

NAMED = 8  # candidates of a warning; of more only how many
COUNTS = "each counts as wrong and matches no object"


def warnings_of(spec: Mapping[str, Any], own: Sequence[Job], names: Mapping[int, str]) -> list[str]:
    """What has to be said of a search. spec: what was known of it before, own: its jobs, names: of its confirmation's entrants."""
    done = in_order(own)
    said = [*spec.get("warnings", ()), *(text for job in done for text in (job.result or {}).get("warnings", ()))]
    return list(dict.fromkeys([*said, *candidates_not_finite(done), *entrants_not_finite(done, names)]))


def inherited(own: Sequence[Job]) -> dict[str, int] | None:
    """How many tensors of neck and head the student has of its teacher, which is the same in all jobs; None: it was not to inherit."""
    return next((job.result["inherited"] for job in in_order(own) if job.result and job.result.get("inherited")), None)


def in_order(own: Sequence[Job]) -> list[Job]:
    """The jobs that have a result: a decision's after those of the decisions before it, a confirmation's by its seed, last."""

    def place(job: Job) -> tuple[bool, int, int]:
        confirms = job.kind == "confirm"
        return confirms, job.spec["seed" if confirms else "number"], job.spec["candidates"][0]["index"]

    return sorted((job for job in own if job.result), key=place)


def candidates_not_finite(done: Sequence[Job]) -> Iterator[str]:
    """Which candidates of the search detected what is no number, in one sentence."""
    found = sorted({row["index"] for job in done if job.kind == "evaluate" for row in not_finite(job)})
    if found:
        more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
        who = f"candidate{'s' * (len(found) > 1)} {', '.join(map(str, found[:NAMED]))}{more}"
        yield f"some detections of {who} on the selection images have a box or score that is not finite; {COUNTS}"


def entrants_not_finite(done: Sequence[Job], names: Mapping[int, str]) -> Iterator[str]:
    """Which policies of the confirmation did, how often with which seed: the figures of the result are of these."""
    by_entrant: dict[int, list[str]] = {}
    for job in done:
        for row in not_finite(job) if job.kind == "confirm" else ():
            by_entrant.setdefault(row["index"], []).append(f"{row['not_finite']} with seed {job.spec['seed']}")
    for entrant, counts in sorted(by_entrant.items()):
        yield f"detections of {names[entrant]} on the report images whose box or score is not finite: {', '.join(counts)}; {COUNTS}"


def not_finite(job: Job) -> list[dict[str, Any]]:
    """The rows of a job's candidates whose detections were not all finite."""
    return [row for row in (job.result or {}).get("candidates", ()) if row.get("not_finite")]
