"""Tables of results side by side, and of what a search tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from detkds_client.show import ap, bounds, duration, listed
from detkds_client.types import Candidate, Compared, Comparison, Rung
from detkds_core.policy import readable

SHORT = 12  # characters of a digest that tell it apart
VERSIONS = ("detkds_core", "torch", "device")  # of what a result was made with, those that a table has room for


def comparison(found: Comparison) -> None:
    """A table a group of results of the same images, the best first."""
    for place, group in enumerate(found["groups"]):
        if place:
            print()
        digest = f" (digest {group['dataset_digest'][:SHORT]})" if group["dataset_digest"] else ""
        print(f"{group['dataset']}{digest}, {group['images'] or 'an unknown number of'} report images")
        if group["why"]:
            print(f"apart: {group['why']}")
        rows = [compared(one) for one in sorted(group["results"], key=lambda one: -(one["ap"] if one["ap"] is not None else -1.0))]
        columns = [("id", ""), ("name", ""), ("AP", "right"), ("95 % interval", "right"), ("seeds", ""), ("policy", "")]
        columns += [("pair", "wide"), ("iterations", "wide right"), ("time", "wide right"), ("made with", "wide")]
        listed(columns, rows, "")


def compared(one: Compared) -> Sequence[str]:
    iterations, trunks = one["cost"]["iterations"], one["cost"].get("trunk_iterations")
    return (
        one["id"],
        one["name"],
        ap(one["ap"]),
        bounds(one["interval"]),
        ", ".join(map(str, one["seeds"])) or "-",
        readable(one["formula"]),
        f"{one['teacher']} teaches {one['student']}",
        "-" if iterations is None else f"{iterations:,}" + (f" (trunks {trunks:,})" if trunks else ""),
        duration(one["cost"]["seconds"]),
        versions(one["versions"]),
    )


def versions(found: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {found[name]}" for name in VERSIONS if name in found) or "-"


def lineage(found: Sequence[Candidate]) -> None:
    """A line a candidate by index: how it was made and of which others, every AP of it, and what became of it."""
    rows = [
        (
            str(one["index"]),
            one["island"] or one["stage"],
            one["operator"],
            ", ".join(map(str, one["parents"])) or "-",
            "  ".join(map(measurement, one["rungs"])) or "-",
            outcome(one),
            readable(one["resolved"] or one["formula"]),
        )
        for one in found
    ]
    columns = [("#", "right"), ("island", ""), ("made by", ""), ("of", ""), ("AP at a rung", ""), ("outcome", ""), ("policy", "")]
    listed(columns, rows, "No such candidate.")


def measurement(one: Rung) -> str:
    """`120: 27.4`; with a further seed `120 (seed 2): 27.1`."""
    seed = f" (seed {one['replicate'] + 1})" if one["replicate"] else ""
    return f"{one['rung']}{seed}: {ap(one['ap'])}"


def outcome(one: Candidate) -> str:
    """Its state in words, with the reason where it has one."""
    if one["failure"]:
        return f"infeasible: {one['failure']['detail']}"
    if one["same_as"] is not None:
        return f"a double of {one['same_as']}"
    if one["rejected"]:
        audited = ", trained all the same" if one["audit"] else ""
        return f"refused by {one['rejected']['gate']}: {one['rejected']['detail']}{audited}"
    return one["state"].lower()
